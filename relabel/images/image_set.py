"""The images of a run, identified by keys that do not depend on where the images are stored.

    n01440764/n01440764_10026.JPEG      a key: the class and the file name

relabel/images/sources.py lists the images of a folder, a list, tar files or a Hugging Face data set. Both stages list and
decode images through these modules, so a label map and a crop always refer to the same pixels.
"""

import bisect
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relabel.images.decoding import (
    EncodedImage,
    UnavailableImage,
    UnreadableImage,
    fingerprint_of,
    open_image,
    open_regular_file,
)
from relabel.images.keys import Keys


@dataclass(frozen=True)
class ImageSet:
    """Images in the order of their keys.

    Attributes:
        source: what the user named: a folder, a list, tar files or a data set.
        classes: names of the classes; class i is classes[i]. Numbers sort as numbers (ImageNetV2's 0 ... 999).
        keys: CLASS/NAME of every image, with extension; sorted and unique.
        targets: (N,) int64 class of each image.
        locations: (N,) where each image is stored, in the form that `open` takes; bytes are its path.
        open: returns the path or the bytes of the image file at a location. Safe in any process, also after a fork.
    """

    source: str
    classes: tuple[str, ...]
    keys: Keys
    targets: np.ndarray
    locations: np.ndarray
    open: Callable[[Any], Path | bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, key: str) -> int:
        """The index of a key.

        Raises:
            KeyError: there is no such image.
        """
        index = bisect.bisect_left(self.keys, key)
        if index == len(self) or self.keys[index] != key:
            raise KeyError(key)
        return index

    def name(self, index: int) -> str:
        """What to call an image in a message: its path, or its key within its source."""
        location = self.locations[index]
        return str(self.open(location)) if isinstance(location, bytes) else f"{self.source}:{self.keys[index]}"

    @contextmanager
    def open_image(self, index: int) -> Iterator[EncodedImage]:
        """Open the file of image `index` without decoding it.

        Raises:
            UnreadableImage: the file is not an image.
            UnavailableImage: the file is missing, or the system cannot read it.
        """
        try:
            file = self.open(self.locations[index])
        except UnreadableImage:
            raise
        except Exception as error:  # the tar or data set has disappeared since it was listed
            raise UnavailableImage.because(self.name(index), error) from error
        name = str(file) if isinstance(file, Path) else self.name(index)
        with open_image(io.BytesIO(file) if isinstance(file, bytes) else file, name) as encoded:
            yield encoded

    def file_size(self, index: int) -> int:
        """Bytes of the file of image `index`; of images in folders and tars without reading it.

        Raises:
            UnavailableImage: the file is missing, or the system cannot read it.
        """
        location = self.locations[index]
        if self.locations.dtype.names and location["size"] >= 0:  # in a tar, and in one piece
            return int(location["size"])
        try:
            file = self.open(location)
            return len(file) if isinstance(file, bytes) else file.stat().st_size
        except Exception as error:
            raise UnavailableImage.because(self.name(index), error) from error

    def fingerprint(self, index: int) -> tuple[int, bytes]:
        """Size in bytes and sha256 of the file of image `index`, which need not be an image any more.

        Raises:
            UnavailableImage: the file is missing, or the system cannot read it.
        """
        try:
            file = self.open(self.locations[index])
            with io.BytesIO(file) if isinstance(file, bytes) else open_regular_file(file, self.name(index)) as opened:
                return fingerprint_of(opened)
        except Exception as error:
            raise UnavailableImage.because(self.name(index), error) from error

    def read(self, index: int) -> Image.Image:
        """Decode image `index` as RGB.

        Raises:
            UnreadableImage: the file is not an image, truncated, or damaged.
            UnavailableImage: the file is missing, or the system cannot read it.
        """
        with self.open_image(index) as encoded:
            return encoded.decode()[0]

    def without(self, keys: set[str]) -> "ImageSet":
        """The same set without some of its images; the classes stay the same."""
        keep = [i for i, key in enumerate(self.keys) if key not in keys]
        return replace(self, keys=Keys(self.keys.encoded[keep]), targets=self.targets[keep], locations=self.locations[keep])


def keys_digest(keys: Iterable[str]) -> str:
    """sha256 of the ordered keys, one per line: label sets with the same digest cover the same images."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()
