"""The regions that another project's store has of one image, checked, and as the label set stores those of many.

Shapes: N regions of an image, k classes kept per region, C classes, B images.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from relabel.labels.regions import LabelRegions, log_ratio
from relabel.runtime.defaults import RegionTarget

ROUNDING = 2e-3  # by which probabilities that were rounded to float16 may sum to more than 1


@dataclass(frozen=True)
class ImageRegions:
    """Regions of one image.

    Attributes:
        boxes: (N, 4) float64 x0, y0, x1, y1 in pixels of the image, half open, before any mirroring.
        flags: (N,) uint8, as in LabelRegions.
        probs: (N, k) float32, largest first.
        classes: (N, k) int64 class of each probability.
        rest: (N,) float32 probability of every class that is not stored.
    """

    boxes: np.ndarray
    flags: np.ndarray
    probs: np.ndarray
    classes: np.ndarray
    rest: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


class RegionStore(ABC):
    """Another project's store of regions. It is read in several processes.

    Attributes:
        kind: the format's name.
        regions: how many an image has at most.
        topk: k.
        crop_scale, crop_ratio, hflip: what the crops were drawn from, as in the manifest; None if the store does not say.
    """

    kind: str
    regions: int
    topk: int
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    hflip: float | None = None

    @abstractmethod
    def read(self, index: int, size: tuple[int, int]) -> ImageRegions:
        """The regions of image `index` of the image set.

        Args:
            size: width and height of the image in pixels.
        Raises:
            InputError: the image's record is missing or damaged, does not fit the image, or mixes two images.
        """


def image_regions(
    boxes: np.ndarray,
    flags: np.ndarray,
    probs: np.ndarray,
    classes: np.ndarray,
    size: tuple[int, int],
    num_classes: int,
    target: RegionTarget = "spread",
) -> ImageRegions:
    """Check what a store says of an image, sort it, and add what the classes that are not stored get.

    Args:
        boxes, flags: as in ImageRegions.
        probs: (N, k) float32 or float16, in any order.
        classes: (N, k) of any type.
        size: width and height of the image in pixels.
        target: what the store's own trainer makes of it. "spread": the other classes share what the probabilities leave of
            1; "renormalised": they get nothing, and the probabilities are divided by their sum; "softmax": they get
            nothing, and the target is the softmax of the probabilities.
    Raises:
        ValueError: it is not possible for this image or these classes.
    """
    if not len(boxes):
        raise ValueError("it has no regions")
    probs, classes = probs.astype(np.float32), classes.astype(np.int64)
    check_boxes(boxes, size)
    check_classes(classes, num_classes)
    total = check_probs(probs)
    left_out = num_classes - probs.shape[1]
    if target == "spread" and left_out:
        rest = np.maximum(np.float32(0), 1 - total) / np.float32(left_out)
    else:
        rest = np.zeros_like(total)
    if target == "softmax":
        probs = np.exp(probs)
    order = np.argsort(-probs, axis=1, kind="stable")
    probs, classes = np.take_along_axis(probs, order, 1), np.take_along_axis(classes, order, 1)
    return ImageRegions(boxes.astype(np.float64), flags.astype(np.uint8), probs, classes, rest)


def check_boxes(boxes: np.ndarray, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = boxes.T
    width, height = size
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height) & (x0 < x1) & (y0 < y1)  # False for NaN
    if not inside.all():
        first = int((~inside).nonzero()[0][0])
        raise ValueError(
            f"box {first} is {boxes[first].tolist()} (x0, y0, x1, y1), which is not inside the image of {width} x {height}"
            " pixels; the store was made from another image, or the file has changed since"
        )


def check_classes(classes: np.ndarray, num_classes: int) -> None:
    if classes.shape[1] > num_classes:
        raise ValueError(f"it has {classes.shape[1]} classes per region, more than --num-classes {num_classes}")
    if classes.min() < 0 or classes.max() >= num_classes:
        odd = classes.min() if classes.min() < 0 else classes.max()
        raise ValueError(f"it has class {odd}, and --num-classes is {num_classes}; check --num-classes")
    ordered = np.sort(classes, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("a region has a class twice")


def check_probs(probs: np.ndarray) -> np.ndarray:
    """(N,) the sum of each region's probabilities, in float32."""
    total: np.ndarray = probs.sum(1, dtype=np.float32)
    if not (np.isfinite(total).all() and probs.min() >= 0 and total.max() <= 1 + ROUNDING):
        raise ValueError(
            f"its probabilities reach from {probs.min():.4g} to {probs.max():.4g}, and their sums to {total.max():.4g};"
            " expected probabilities that sum to at most 1"
        )
    if (probs.max(1) == 0).any():
        raise ValueError("all probabilities of a region are 0")
    return total


def to_label_regions(found: Sequence[ImageRegions], sizes: Sequence[tuple[int, int]], regions: int) -> LabelRegions:
    """B images' regions as label sets have them, each padded to `regions`.

    Args:
        sizes: width and height of each image in pixels.
    """
    batch, topk = len(found), found[0].probs.shape[1]
    boxes = np.zeros((batch, regions, 4))
    flags = np.zeros((batch, regions), np.uint8)
    probs = np.ones((batch, regions, topk), np.float32)  # whose logits, and those of `rest`, are 0
    classes = np.zeros((batch, regions, topk), np.int64)
    rest = np.ones((batch, regions), np.float32)
    for i, (image, (width, height)) in enumerate(zip(found, sizes, strict=True)):
        n = len(image)
        boxes[i, :n] = image.boxes / (width, height, width, height)
        flags[i, :n], probs[i, :n], classes[i, :n], rest[i, :n] = image.flags, image.probs, image.classes, image.rest
    largest = torch.from_numpy(probs[:, :, :1])
    return LabelRegions(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(flags),
        log_ratio(torch.from_numpy(probs), largest),
        torch.from_numpy(classes),
        log_ratio(torch.from_numpy(rest), largest[:, :, 0]),
        torch.tensor([len(image) for image in found]),
    )
