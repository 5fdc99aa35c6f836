"""Decode ordinary JPEGs by simplejpeg: the pixels that Pillow gives, bit for bit, in less time.

Both call libjpeg-turbo; simplejpeg writes three bytes per pixel into an array, where Pillow keeps four in an image of its
own. What is not ordinary is left to Pillow: four channels, odd subsampling, anything that the decoder warns of, such as a
file that ends early, and images so large that Pillow warns of them or refuses them.
"""

from typing import Any

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: Pillow decodes everything
    simplejpeg = None

JPEG_START = b"\xff\xd8\xff"  # of every JPEG
COLOURS = ("YCbCr", "Gray")
SUBSAMPLINGS = ("444", "422", "420", "Gray")
SHORTEST_REDUCED = 8  # pixels of a side; of shorter ones, several eighths round to the same size


def ordinary_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of an ordinary JPEG, from its header; None if Pillow is to open the file."""
    if simplejpeg is None:
        return None
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    ordinary = colours in COLOURS and subsampling in SUBSAMPLINGS
    return (width, height) if ordinary and width * height <= (Image.MAX_IMAGE_PIXELS or 0) else None


def decode_ordinary(content: bytes, width: int, height: int, reduction: int) -> np.ndarray | None:
    """Decode a JPEG of which `ordinary_size` gave the size.

    Args:
        reduction: 1, 2, 4 or 8: 1/reduction of the width and height, rounded up.
    Returns:
        (H, W, 3) uint8 RGB; None if Pillow is to decode the file.
    """
    smallest: dict[str, Any] = {}
    if reduction > 1:
        if min(width, height) < SHORTEST_REDUCED:
            return None
        smallest = {"min_width": -(-width // reduction), "min_height": -(-height // reduction), "min_factor": reduction}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, **smallest)
    except ValueError:  # an error or a warning of libjpeg's
        return None
    return pixels
