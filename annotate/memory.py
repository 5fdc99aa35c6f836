"""What is said where a batch does not fit a device's memory.

Shapes: B images, S and T rows and columns of pixels.
"""

import torch
from torch import Tensor

from relabel.runtime.errors import first_line


def out_of_memory_message(images: Tensor, device: torch.device, error: BaseException) -> str:
    """What to say of (B, 3, S, T) images that the device has no memory for."""
    count = f"{len(images)} images" if len(images) > 1 else "a single image"
    return (
        f"{device} has no memory for {count} of {'x'.join(map(str, images.shape[-2:]))} pixels ({first_line(error)});"
        " use a smaller --input-size, another annotator, or another device"
    )
