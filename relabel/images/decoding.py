"""Decode an image file to RGB. Annotation, training and evaluation share this function, so all see the same pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from relabel.runtime.errors import InputError


class UnreadableImage(InputError):
    """A file that Pillow cannot decode: it is not an image, truncated, or missing."""


class EncodedImage:
    """An image file that has been opened but not decoded: its size is known, and `decode` gives the pixels.

    Attributes:
        width, height: in pixels, of the file.
    """

    def __init__(self, image: Image.Image, name: str) -> None:
        self._image, self._name = image, name
        self.width, self.height = image.size

    def decode(self, reduction: int = 1) -> tuple[Image.Image, int]:
        """Decode as RGB. EXIF rotation is not applied, as everywhere in timm and torchvision.

        Args:
            reduction: 1, 2, 4 or 8: ask for 1/reduction of the width and height. Only JPEGs can give less than all.
        Returns:
            the image, and the reduction r that was applied: its pixel i shows the file's pixels r * i to r * (i + 1).
        Raises:
            UnreadableImage: the file is truncated, damaged, or of a kind that has no RGB form.
        """
        image = self._image
        try:
            if reduction > 1 and image.draft(None, (image.width // reduction, image.height // reduction)) is None:
                reduction = 1
            if image.mode.startswith("I") or image.mode == "F":
                return high_byte(image).convert("RGB"), reduction
            image.info.pop("transparency", None)  # Pillow warns about it, and RGB has no place for it
            return image.convert("RGB"), reduction
        except Exception as error:  # what a damaged file makes Pillow raise is not documented
            raise UnreadableImage(f"{self._name}: {error}") from error


@contextmanager
def open_image(file: Path | BinaryIO, name: str | None = None) -> Iterator[EncodedImage]:
    """Open an image file without decoding it.

    Args:
        name: what to call it in a message; its path if None.
    Raises:
        UnreadableImage: the file is missing, or not an image.
    """
    try:
        image = Image.open(file)
    except Exception as error:  # what a damaged file makes Pillow raise is not documented
        reason = str(error).replace(f": '{file}'", "").replace(f" '{file}'", "").replace(f" {file!r}", "")
        raise UnreadableImage(f"{name or file}: {reason}") from error
    with image:
        yield EncodedImage(image, name or str(file))


def read_rgb(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Open and decode an image file as RGB. Raises UnreadableImage, as `open_image` and `EncodedImage.decode` do."""
    with open_image(file, name) as encoded:
        return encoded.decode()[0]


def high_byte(image: Image.Image) -> Image.Image:
    """16-bit greyscale, in whatever mode Pillow holds it, as 8-bit: the high byte. Pillow's own conversion would clip.

    Raises:
        ValueError: more than 16 bits, or floating point: nothing says which value is white.
    """
    grey = np.asarray(image)
    if image.mode == "F" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError(
            f"greyscale values from {grey.min()} to {grey.max()} (Pillow's mode {image.mode}): it is unknown which value is"
            " white; save the image with 8 or 16 bits"
        )
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8))
