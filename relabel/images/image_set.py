"""The images that both stages speak of, named by keys that do not change with where the images lie, and their decoding.

    n01440764/n01440764_10026.JPEG      a key: the class, and the file's name

relabel/images/sources.py finds them in a folder, a list, tar files or a Hugging Face data set. Both stages list and decode
images by these files, so that a label map and a crop always speak of the same pixels.
"""

import bisect
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from relabel.images.decoding import EncodedImage, UnreadableImage, open_image


@dataclass(frozen=True)
class ImageSet:
    """Images in the order of their keys.

    Attributes:
        source: what the user named: a folder, a list, tar files or a data set.
        classes: names of the classes; class i is classes[i]. Numbers sort as numbers (ImageNetV2's 0 ... 999).
        keys: CLASS/NAME of every image, with extension; sorted, unique.
        targets: (N,) int64 class of each key.
        places: (N,) where each image lies, as `open` understands it.
        open: from a place to the path, or to the bytes, of an image file. Safe to call in any process, after any fork.
    """

    source: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    targets: np.ndarray
    places: np.ndarray
    open: Callable[[object], Path | bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, key: str) -> int:
        """Where a key stands among the sorted keys.

        Raises:
            KeyError: there is no such image.
        """
        index = bisect.bisect_left(self.keys, key)
        if index == len(self) or self.keys[index] != key:
            raise KeyError(key)
        return index

    def name(self, index: int) -> str:
        """What to call an image in a message: its path, or its key within its source."""
        place = self.places[index]
        return str(self.open(place)) if isinstance(place, str) else f"{self.source}:{self.keys[index]}"

    @contextmanager
    def open_image(self, index: int) -> Iterator[EncodedImage]:
        """Open the file of image `index` without decoding it.

        Raises:
            UnreadableImage: the file is missing, or not an image.
        """
        name = self.name(index)
        try:
            file = self.open(self.places[index])
        except Exception as error:  # a tar or a data set that went away while it was read
            raise UnreadableImage(f"{name}: {error}") from error
        with open_image(io.BytesIO(file) if isinstance(file, bytes) else file, name) as encoded:
            yield encoded

    def read(self, index: int) -> Image.Image:
        """Decode image `index` as RGB.

        Raises:
            UnreadableImage: the file is missing, not an image, or cut short.
        """
        with self.open_image(index) as encoded:
            return encoded.decode()[0]

    def without(self, keys: set[str]) -> "ImageSet":
        """The same set with some images left out; the classes stay."""
        keep = [i for i, key in enumerate(self.keys) if key not in keys]
        kept = tuple(self.keys[i] for i in keep)
        return replace(self, keys=kept, targets=self.targets[keep], places=self.places[keep])


def keys_digest(keys: Iterable[str]) -> str:
    """sha256 of the ordered keys, one to a line: two label sets with the same digest speak of the same images."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()
