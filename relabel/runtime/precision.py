"""What a forward pass computes in: float32, or half precision by autocast."""

import torch

from relabel.runtime.errors import InputError


def autocast_dtype_of(amp: bool | None, amp_dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The half precision that --amp and --amp-dtype ask for, None for float32.

    Args:
        amp: whether to; if None, on CUDA alone.
        amp_dtype: bfloat16, which it is if None, or float16.
    Raises:
        InputError: amp_dtype where nothing is half precision.
    """
    wanted = device.type == "cuda" if amp is None else amp
    if wanted:
        half: torch.dtype = getattr(torch, amp_dtype or "bfloat16")
        return half
    if amp_dtype is not None:
        raise InputError(f"--amp-dtype {amp_dtype} does nothing: all is float32 here; give --amp too, or leave it out")
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Within, compute in this half precision; in float32 if None."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def dtype_name(dtype: torch.dtype | None) -> str:
    """As a label set's manifest names it too: float32, bfloat16 or float16."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def dtype_from_name(precision: str) -> torch.dtype | None:
    """The dtype of such a name, None for float32."""
    return None if precision == "float32" else getattr(torch, precision)
