"""Decode an image file to RGB. Annotation, training and evaluation share this code, so all see the same pixels: Pillow's.

Ordinary JPEGs are decoded by a faster way to the same pixels (jpeg.py). Of others only raster formats are read that Pillow
decodes by itself. It looks at a file's content, not at its name: it would start Ghostscript for a PostScript program that is
called x.jpg.
"""

import errno
import functools
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from relabel.images.jpeg import JPEG_START, decode_ordinary, ordinary_size
from relabel.runtime.errors import InputError

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
LONGEST_SIDE = 65_535  # pixels, as in a JPEG; resizing a PNG of 1 x 89,000,000, which Pillow would open, takes 80 GB
TWELVE_BITS = 0xFFF


class UnreadableImage(InputError):
    """A file whose content cannot be decoded: it is not an image, truncated, or damaged."""


class UnavailableImage(InputError):
    """A file that the system cannot read: it has vanished since it was listed, or its disk, network or permissions fail.

    This says nothing about the image, so it is never skipped: an outage would leave a label set of the rest.
    """

    @classmethod
    def because(cls, name: str, reason: object) -> "UnavailableImage":
        return cls(f"{name}: {reason}. Make it readable, or remove it from the images, and run the command again")


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def extensions() -> frozenset[str]:
    """The endings of these formats' file names, in lower case."""
    known = Image.registered_extensions()
    return frozenset(ending for ending, name in known.items() if name in (*formats(), "MPO"))  # MPO: JPEGs in one file


class EncodedImage:
    """An image file that has been opened but not decoded: its size is known, and `decode` or `pixels` decodes it.

    Args:
        opened: the content of the file if it is an ordinary JPEG, else the file as Pillow has opened it.
    Attributes:
        width, height: in pixels, of the file.
        name: what to call it in a message.
    """

    def __init__(self, size: tuple[int, int], file: BinaryIO, name: str, opened: bytes | Image.Image) -> None:
        self.width, self.height = size
        self.name, self._file, self._opened = name, file, opened

    def fingerprint(self) -> tuple[int, bytes]:
        """The file's size in bytes and its sha256, to know later whether it has changed. To be called before `decode`.

        Raises:
            UnavailableImage: the system cannot read it.
        """
        with named_errors(self.name, self._file):
            position = self._file.tell()
            found = fingerprint_of(self._file)
            self._file.seek(position)
            return found

    def decode(self, reduction: int = 1) -> tuple[Image.Image, int]:
        """Decode as RGB. EXIF rotation is not applied, as everywhere in timm and torchvision.

        Args:
            reduction: 1, 2, 4 or 8: ask for 1/reduction of the width and height. Only JPEGs can give less than all.
        Returns:
            the image, and the reduction r that was applied: its pixel i shows the file's pixels r * i to r * (i + 1).
        Raises:
            UnreadableImage: the file is truncated, damaged, or of a kind that has no RGB form.
            UnavailableImage: the system cannot read it.
        """
        pixels = self._ordinary_pixels(reduction)
        return (Image.fromarray(pixels), reduction) if pixels is not None else self._decode_by_pillow(reduction)

    def pixels(self, reduction: int = 1) -> tuple[np.ndarray, int]:
        """As `decode`, but (H, W, 3) uint8, which may be read-only."""
        pixels = self._ordinary_pixels(reduction)
        if pixels is not None:
            return pixels, reduction
        image, reduction = self._decode_by_pillow(reduction)
        return np.asarray(image), reduction

    def _ordinary_pixels(self, reduction: int) -> np.ndarray | None:
        if isinstance(self._opened, Image.Image):
            return None
        return decode_ordinary(self._opened, self.width, self.height, reduction)

    def _decode_by_pillow(self, reduction: int) -> tuple[Image.Image, int]:
        with named_errors(self.name, self._file):
            image = self._opened if isinstance(self._opened, Image.Image) else opened_by_pillow(self._file)
            if reduction > 1 and image.draft(None, (image.width // reduction, image.height // reduction)) is None:
                reduction = 1
            if image.mode.startswith("I") or image.mode == "F":
                return high_byte(image, self.name).convert("RGB"), reduction
            image.info.pop("transparency", None)  # Pillow warns about it, and RGB has no place for it
            image.load()
            return (image if image.mode == "RGB" else image.convert("RGB")), reduction  # convert would copy, up to 700 MB


def fingerprint_of(file: BinaryIO) -> tuple[int, bytes]:
    """Size in bytes and sha256 of a file, whatever it holds."""
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    return file.seek(0, os.SEEK_END), sha256


@contextmanager
def open_image(file: Path | BinaryIO, name: str | None = None) -> Iterator[EncodedImage]:
    """Open an image file without decoding it.

    Args:
        name: what to call it in a message; its path if None.
    Raises:
        UnreadableImage: it is not an image, or has a side that is too long.
        UnavailableImage: it is missing, no regular file, or the system cannot read it.
    """
    name = name or str(file)
    with ExitStack() as opened:
        if isinstance(file, Path):
            file = opened.enter_context(open_regular_file(file, name))
        with named_errors(name, file):
            encoded = as_encoded(file, name)
        yield encoded


def as_encoded(file: BinaryIO, name: str) -> EncodedImage:
    """An open file as an EncodedImage; an ordinary JPEG is read whole, and of others the header."""
    start = file.read(len(JPEG_START))
    if start == JPEG_START:
        content = start + file.read()
        size = ordinary_size(content)
        if size is not None:
            return EncodedImage(size, file, name, content)
    image = opened_by_pillow(file)
    return EncodedImage(image.size, file, name, image)


def opened_by_pillow(file: BinaryIO) -> Image.Image:
    """Raises: whatever Pillow does; ValueError: a side is too long."""
    file.seek(0)
    image = Image.open(file, formats=formats())
    if max(image.size) > LONGEST_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels; sides of up to {LONGEST_SIDE:,} pixels can be read")
    return image


def read_rgb(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Open and decode an image file as RGB. Raises what `open_image` and `EncodedImage.decode` do."""
    with open_image(file, name) as encoded:
        return encoded.decode()[0]


def open_regular_file(path: Path, name: str) -> BinaryIO:
    """Open a file for reading; a named pipe, socket or device in its place is an error.

    Raises:
        UnavailableImage: the system cannot open it, or it is not a regular file.
    """
    try:
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115  (the caller closes it)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnavailableImage.because(name, str(error).replace(f": {str(path)!r}", "")) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnavailableImage.because(name, "not a regular file")
    return file


def without_waiting(path: str, flags: int) -> int:
    """Opens a file; a named pipe too, without waiting for its writer."""
    try:
        return os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # a file server has a lease on it, and gives it up when it is asked to
        return os.open(path, flags)


@contextmanager
def named_errors(name: str, file: object) -> Iterator[None]:
    """Errors of the system become UnavailableImage, and all others UnreadableImage, with the image's name."""
    try:
        yield
    except Exception as error:  # what a damaged file makes Pillow raise is not documented
        reason = str(error).replace(f" {file!r}", "")
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # EINVAL: damage sent Pillow before byte 0
            raise UnavailableImage.because(name, reason) from error
        raise UnreadableImage(f"{name}: {reason}") from error


def high_byte(image: Image.Image, name: str) -> Image.Image:
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
    if 0 < grey.max() <= TWELVE_BITS:
        warn_of_darkness(name, int(grey.max()))
    return Image.fromarray((grey.astype(np.uint16) >> 8).astype(np.uint8))


warned_of_darkness: list[str] = []  # one image per process is enough


def warn_of_darkness(name: str, largest: int) -> None:
    if not warned_of_darkness:
        warned_of_darkness.append(name)
        logger.warning(
            f"{name}: 16-bit greyscale with values up to {largest} of 65,535 is nearly black; if white is 4,095 (12 bits),"
            " multiply the values of such images by 16 and save them again"
        )
