"""FKD's soft labels (github.com/szq0214/FKD, Shen and Xing 2022): a file per image with the crops and the answers to them.

    STORE/imagenet/train/CLASS/NAME.tar       written by torch.save, whatever its name says

A file is a list of three arrays: `coords` (N, 4), top / H, left / W, height / H and width / W; `flips` (N,), whether the
crop was mirrored, after cutting; `labels`, (N, 2, k) classes and probabilities, or (N, 2) one class and its probability, or
(N,) classes.

Shapes: N crops, k classes stored per crop, W and H pixels of the image.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from annotate.interchange.allow_list import StoredArray, read_plain
from annotate.interchange.image_folder import folder_of_classes, stem_of
from annotate.interchange.image_regions import ImageRegions, RegionStore, image_regions
from annotate.interchange.published_maps import EXACT_INTEGERS
from relabel.images.image_set import ImageSet
from relabel.labels.regions import MIRRORED
from relabel.runtime.defaults import RegionTarget
from relabel.runtime.errors import InputError

ENDING = ".tar"
PROBED = 64  # files read to learn the number of crops
TRAINER_TOPK = (5, 10)  # the k that FKD's trainer divides by, whatever the file has


class FKDStore(RegionStore):
    """Reads FKD's files of an image set.

    Args:
        target: "spread", as FKD's default; or "renormalised", its `marginal_renorm`. The files are the same.
    Raises:
        InputError: files are missing or left over, or those that were probed cannot be read.
    """

    kind = "fkd"

    def __init__(self, source: Path, image_set: ImageSet, num_classes: int, target: RegionTarget = "spread") -> None:
        self.image_set, self.num_classes, self.target = image_set, num_classes, target
        self.root = folder_of_classes(source, image_set, ENDING)
        probed = np.linspace(0, len(image_set) - 1, min(PROBED, len(image_set)), dtype=int).tolist()
        shapes = [classes_and_probs(self.path(i), num_classes)[1].shape for i in probed]
        self.regions, self.topk = max(shape[0] for shape in shapes), shapes[0][1]

    def path(self, index: int) -> Path:
        return self.root / f"{stem_of(self.image_set.keys[index])}{ENDING}"

    def read(self, index: int, size: tuple[int, int]) -> ImageRegions:
        path = self.path(index)
        coords, flips, _ = arrays_of(path)
        classes, probs = classes_and_probs(path, self.num_classes)
        n = len(probs)  # the labels count: there can be more crops than labels
        if coords.shape[1:] != (4,) or flips.ndim != 1 or min(len(coords), len(flips)) < n:
            raise InputError(
                f"{path}: coords {list(coords.shape)} and flips {list(flips.shape)} for {n} labels; expected [N, 4] and [N]"
            )
        width, height = size
        top, left, rows, columns = coords[:n].astype(np.float64).T
        edges = (left * width, top * height, left * width + columns * width, top * height + rows * height)
        boxes = np.rint(np.stack(edges, axis=1))  # as Pillow rounds them when FKD cuts
        try:
            return image_regions(
                boxes, flips[:n].astype(bool) * MIRRORED, probs, classes, size, self.num_classes, self.target
            )
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error


def arrays_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """coords, flips and labels of a file, as stored."""
    content = read_plain(path)
    if not (isinstance(content, list | tuple) and len(content) == 3 and all(isinstance(e, StoredArray) for e in content)):
        raise InputError(f"{path} holds {described(content)}; expected FKD's list of three arrays: coords, flips, labels")
    coords, flips, labels = (entry.array for entry in content)
    return coords, flips, labels


def described(content: Any) -> str:
    entries = ", ".join(type(entry).__name__ for entry in content[:3]) if isinstance(content, list | tuple) else ""
    return type(content).__name__ + (f" ({len(content)}: {entries})" if entries else "")


def classes_and_probs(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, k) classes and (N, k) probabilities of a file.

    Raises:
        InputError: the labels have another shape, or a type that cannot tell the classes apart.
    """
    labels = arrays_of(path)[2]
    if labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
        return labels[:, None], np.ones((len(labels), 1), np.float32)
    if not (labels.ndim in (2, 3) and labels.shape[1] == 2 and labels.size and labels.dtype.kind == "f"):
        raise InputError(
            f"{path}: labels {labels.dtype}{list(labels.shape)}; expected classes and probabilities as floating"
            " point [N, 2, k] or [N, 2], or whole numbers [N]"
        )
    largest = EXACT_INTEGERS[torch.float16]
    if labels.dtype == np.float16 and num_classes - 1 > largest:
        raise InputError(
            f"{path}: classes are stored as float16, which is exact only up to {largest}, and --num-classes is"
            f" {num_classes}; make the store again in float32"
        )
    if not np.isfinite(labels).all():
        raise InputError(f"{path}: its labels are not finite numbers")
    labels = labels.reshape(len(labels), 2, -1)
    return np.rint(labels[:, 0]), labels[:, 1]


def fkd_file(boxes: np.ndarray, mirrored: np.ndarray, classes: np.ndarray, probs: np.ndarray) -> bytes:
    """The content of a file, in torch tensors, which FKD's trainer reads like arrays.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 in fractions of the image.
        mirrored: (N,) bool.
        classes, probs: (N, k), the k probabilities of each crop largest first.
    """
    x0, y0, x1, y1 = boxes.T
    coords = torch.from_numpy(np.stack((y0, x0, y1 - y0, x1 - x0), axis=1)).float()
    labels = torch.from_numpy(np.stack((classes, probs), axis=1)).float()
    buffer = io.BytesIO()
    torch.save([coords, torch.from_numpy(mirrored), labels], buffer)
    return buffer.getvalue()
