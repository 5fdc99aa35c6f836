"""Windows of images, in whole pixels: what a random resized crop cuts out.

Training draws its crops here, and so does annotation of regions.
"""

import functools

import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from relabel.runtime.errors import InputError

Window = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the file


def draw_window(name: str, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> Window:
    """A random window, as torchvision's RandomResizedCrop draws it, from torch's global generator.

    Args:
        name: what to call the image in a message.
        size: width and height of the image in pixels.
        scale: range of the window's share of the image's area.
        ratio: range of its width / height.
    Raises:
        InputError: the image is too narrow for the ratio.
    """
    if min(size) < 1:
        raise InputError(f"{name}: the part of it that has labels is less than a pixel wide; remove the image")
    top, left, rows, columns = RandomResizedCrop.get_params(of_size(*size), list(scale), list(ratio))
    if rows == 0 or columns == 0:
        ratios = " to ".join(f"{edge:.4g}" for edge in ratio)
        raise InputError(
            f"{name}: {size[0]} x {size[1]} pixels are too narrow for a crop of crop_ratio {ratios} (width by height);"
            " remove the image, or set a crop_ratio that includes 1"
        )
    return left, top, left + columns, top + rows


@functools.lru_cache(16)
def of_size(width: int, height: int) -> Tensor:
    """torchvision wants an image, but reads only its size."""
    return torch.empty(3, height, width, device="meta")
