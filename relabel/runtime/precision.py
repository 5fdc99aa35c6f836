"""The precision of a forward pass: float32, or half precision by autocast."""

import torch

from relabel.runtime.errors import InputError


def autocast_dtype_of(amp: bool | None, amp_dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The half-precision dtype that --amp and --amp-dtype select; None for float32.

    Args:
        amp: whether to use half precision; if None, only on CUDA.
        amp_dtype: bfloat16 or float16; bfloat16 if None.
    Raises:
        InputError: amp_dtype is given, but half precision is off.
    """
    half_precision = device.type == "cuda" if amp is None else amp
    if half_precision:
        half: torch.dtype = getattr(torch, amp_dtype or "bfloat16")
        return half
    if amp_dtype is not None:
        raise InputError(f"--amp-dtype {amp_dtype} has no effect in float32; add --amp, or leave --amp-dtype out")
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context that computes in this half precision; in float32 if None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def dtype_name(dtype: torch.dtype | None) -> str:
    """The name that a label set's manifest uses too: float32, bfloat16 or float16."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def dtype_from_name(precision: str) -> torch.dtype | None:
    """The reverse of `dtype_name`."""
    return None if precision == "float32" else getattr(torch, precision)
