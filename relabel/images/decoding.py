"""Decode an image file to RGB: one function for annotating, training and evaluation, so they all see the same pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from relabel.runtime.errors import InputError


class UnreadableImage(InputError):
    """A file that Pillow cannot decode: no image, cut short, or gone."""


def read_rgb(
    file: Path | BinaryIO, name: str | None = None, before_decoding: Callable[[Image.Image], None] | None = None
) -> Image.Image:
    """Decode an image of any Pillow mode as RGB. EXIF rotation is not applied, as everywhere in timm and torchvision.

    Args:
        name: what to call it in a message; its path if None.
        before_decoding: sees the image when only its size is known, and may ask a JPEG for less (Image.draft).
    Raises:
        UnreadableImage: the file is missing, is no image, or is cut short.
    """
    try:
        with Image.open(file) as image:
            if before_decoding is not None:
                before_decoding(image)
            if image.mode.startswith("I") or image.mode == "F":
                return wide_grey(image).convert("RGB")
            image.info.pop("transparency", None)  # Pillow warns about it, and RGB has no place for it
            return image.convert("RGB")
    except Exception as error:  # what a damaged file makes Pillow raise is not all listed anywhere
        reason = str(error).replace(f": '{file}'", "").replace(f" '{file}'", "").replace(f" {file!r}", "")
        raise UnreadableImage(f"{name or file}: {reason}") from error


def wide_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, in whatever type Pillow holds it, as grey of 8: the high byte is the picture; Pillow would clip.

    Raises:
        ValueError: more than 16 bits, or floating point: nothing says which of its values is white.
    """
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError(
            f"grey values of Pillow's mode {image.mode} from {grey.min()} to {grey.max()} have no agreed white;"
            " save it with 8 or 16 bits"
        )
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8))
