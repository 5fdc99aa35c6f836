"""The images of a folder in ImageNet's layout, named by keys that do not change when the folder moves.

    ROOT/n01440764/n01440764_10026.JPEG   ->   key "n01440764/n01440764_10026.JPEG", class "n01440764"

Both stages list and decode images with this file, so that a label map and a crop always speak of the same pixels.
"""

import functools
import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key
from torch import Tensor

from pipeline.errors import InputError


class UnreadableImage(InputError):
    """A file that Pillow cannot decode: no image, cut short, or gone."""


@dataclass(frozen=True)
class ImageFolder:
    """The images below `root`, in the order of their keys.

    Attributes:
        root: the folder that holds the class folders.
        classes: the class folders' names. Class i is classes[i]; numbers sort as numbers (ImageNetV2's 0 ... 999).
        keys: every image's path below root, POSIX, with extension; sorted.
        targets: (N,) int64 class of each key.
    """

    root: Path
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, key: str) -> Path:
        return self.root / key

    @classmethod
    def scan(cls, root: Path) -> "ImageFolder":
        """List the images of ROOT/CLASS/*.

        Raises:
            InputError: root is missing, is no folder, has no class folders, or one of them holds no image.
        """
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise InputError(f"{root} {what}; expected a folder with one sub-folder of images per class")
        visible = (p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        folders = sorted(visible, key=lambda p: (natural_key(p.name), p.name))  # the name itself: Cat and cat are two
        if not folders:
            raise InputError(f"{root} has no sub-folders; expected one folder of images per class (ROOT/CLASS/*.JPEG)")
        extensions = get_img_extensions(as_set=True)
        keys_and_targets: list[tuple[str, int]] = []
        for target, folder in enumerate(folders):
            names = [p.name for p in folder.iterdir() if p.suffix.lower() in extensions and not p.name.startswith(".")]
            if not names:
                inner = sum(p.is_dir() for p in folder.iterdir())
                hint = f"; it holds {inner} folders: did you mean {folder}?" if inner else "; fill it or remove it"
                raise InputError(f"{folder} holds no image ({', '.join(sorted(extensions))}){hint}")
            keys_and_targets += [(f"{folder.name}/{name}", target) for name in names]
        keys_and_targets.sort()
        keys, targets = zip(*keys_and_targets, strict=True)
        for key in keys:
            if not key.isascii() and any("\ud800" <= letter <= "\udfff" for letter in key):
                raise InputError(f"{root}: the name {key!r} is not UTF-8; rename the file")
        return cls(root, tuple(f.name for f in folders), keys, np.array(targets, dtype=np.int64))

    def without(self, keys: set[str]) -> "ImageFolder":
        """The same folder with some images left out; the classes stay."""
        keep = [i for i, key in enumerate(self.keys) if key not in keys]
        return ImageFolder(self.root, self.classes, tuple(self.keys[i] for i in keep), self.targets[keep])


def digest_of(keys: Iterable[str]) -> str:
    """sha256 of the ordered keys, one to a line: two label sets with the same digest speak of the same images."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()


def read_rgb(path: Path, before_decoding: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decode an image of any Pillow mode as RGB. EXIF rotation is not applied, as everywhere in timm and torchvision.

    Args:
        before_decoding: sees the image when only its size is known, and may ask a JPEG for less (Image.draft).
    Raises:
        UnreadableImage: the file is missing, is no image, or is cut short.
    """
    try:
        with Image.open(path) as image:
            if before_decoding is not None:
                before_decoding(image)
            if image.mode.startswith("I;16"):  # Pillow clips 16-bit grey at 255; its high byte is the picture
                grey = np.asarray(image).astype(np.uint16) >> 8
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            image.info.pop("transparency", None)  # Pillow warns about it, and RGB has no place for it
            return image.convert("RGB")
    except Exception as error:  # what a damaged file makes Pillow raise is not all listed anywhere
        reason = str(error).replace(f": '{path}'", "").replace(f" '{path}'", "")
        raise UnreadableImage(f"{path}: {reason}") from error


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
    """worker_init_fn of every DataLoader: Ctrl-C reaches the workers too, and must not end them in a traceback each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
