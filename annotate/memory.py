"""Memory that is full: how torch's errors for it are told from others, and what is said of it.

Shapes: B images, S and T rows and columns of pixels.
"""

import torch
from torch import Tensor

from pipeline.errors import first_line

# as CUDA, the CPU (twice), cuDNN and cuBLAS, and oneDNN put it
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED", "could not create a primitive")


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def no_memory_for(images: Tensor, device: torch.device, error: BaseException) -> str:
    """What to say of (B, 3, S, T) images that the device has no memory for."""
    count = f"{len(images)} images" if len(images) > 1 else "a single image"
    return (
        f"{device} has no memory for {count} of {'x'.join(map(str, images.shape[-2:]))} pixels ({first_line(error)});"
        " use a smaller --input-size, another annotator, or another device"
    )
