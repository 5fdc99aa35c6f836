"""What a forward pass computes in, as --amp and --amp-dtype ask for it."""

import torch

from pipeline.errors import InputError


def autocast_of(amp: bool | None, amp_dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The half precision to compute in, None for float32.

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


def name_of(autocast: torch.dtype | None) -> str:
    """As a label set's manifest names it too: float32, bfloat16 or float16."""
    return "float32" if autocast is None else str(autocast).removeprefix("torch.")
