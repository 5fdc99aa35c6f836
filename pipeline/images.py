"""The images that both stages speak of, named by keys that do not change with where the images lie, and their decoding.

    n01440764/n01440764_10026.JPEG      a key: the class, and the file's name

pipeline/image_sources.py finds them in a folder, a list, tar files or a Hugging Face data set. Both stages list and decode
images by these files, so that a label map and a crop always speak of the same pixels.
"""

import bisect
import functools
import hashlib
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError


class UnreadableImage(InputError):
    """A file that Pillow cannot decode: no image, cut short, or gone."""


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

    def read(self, index: int, before_decoding: Callable[[Image.Image], None] | None = None) -> Image.Image:
        """Decode image `index` as RGB; see `read_rgb`.

        Raises:
            UnreadableImage: the file is missing, is no image, or is cut short.
        """
        name = self.name(index)
        try:
            file = self.open(self.places[index])
        except Exception as error:  # a tar or a data set that went away while it is read
            raise UnreadableImage(f"{name}: {error}") from error
        return read_rgb(io.BytesIO(file) if isinstance(file, bytes) else file, name, before_decoding)

    def without(self, keys: set[str]) -> "ImageSet":
        """The same set with some images left out; the classes stay."""
        keep = [i for i, key in enumerate(self.keys) if key not in keys]
        kept = tuple(self.keys[i] for i in keep)
        return replace(self, keys=kept, targets=self.targets[keep], places=self.places[keep])


def digest_of(keys: Iterable[str]) -> str:
    """sha256 of the ordered keys, one to a line: two label sets with the same digest speak of the same images."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()


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


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, S, T) uint8, or float in its units -> float32 with this mean and standard deviation (of values in [0, 1])."""
    return (images.float() - per_channel(tuple(mean), images.device)) / per_channel(tuple(std), images.device)


@functools.cache
@torch.inference_mode(False)  # made once for annotating and training alike
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1), in units of uint8. Kept on the device: a copy from the host in every step would wait for the stream."""
    return torch.tensor(values, device=device).view(3, 1, 1) * 255


Batch = TypeVar("Batch")


def batches_of(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Iterate over a DataLoader whose workers decode images.

    Raises:
        UnreadableImage: with the one line that names the file, instead of a worker's traceback.
    """
    try:
        yield from loader
    except UnreadableImage as error:
        last_line = str(error).strip().splitlines()[-1]
        raise UnreadableImage(last_line.removeprefix(f"{__name__}.{UnreadableImage.__name__}: ")) from None


def leave_signals_to_the_main_process(worker: int) -> None:
    """worker_init_fn of every DataLoader: workers end when the main process tells them to, or is gone.

    A terminal's Ctrl-C and torchrun's SIGTERM go to the whole process group, which they leave; SIGTERM to one of them alone
    is how the main process ends those that hang.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
