"""What a report says of the whole set: counts, agreement with the folders, a table of classes, confused pairs of classes.

Shapes: N images measured, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.choice import ConfusedPair
from pipeline.report.measures import SHOWN_SHARE, Measures

MAX_CLASSES = 1000  # rows of the table of classes
MAX_PAIRS = 100  # rows of the table of confused pairs


@dataclass(frozen=True)
class Count:
    """How many images something holds for."""

    name: str
    about: str
    count: int


@dataclass(frozen=True)
class ClassRow:
    """A ground-truth label: how many images it has, and in how many of them its labels agree.

    Attributes:
        top1, nowhere: images whose whole-image top-1 it is, and in no place of which it is top-1.
        area: mean share of the places of an image, 0 to 1.
        confused: the class that is most often suggested where it is nowhere, and for how many images; None if there is none.
    """

    number: int
    images: int
    top1: int
    nowhere: int
    area: float
    confused: tuple[int, int] | None


@dataclass(frozen=True)
class Pair:
    """Images of class `given` that show it nowhere, and suggest `suggestion`; `share` is of the class's images."""

    given: int
    suggestion: int
    images: int
    share: float


def agreement(measures: Measures, places: str) -> list[Count]:
    """How often the labels agree with the folders.

    Args:
        places: "cells" or "regions".
    """
    shown = f"{100 * SHOWN_SHARE:.0f}% of the {places}"
    return [
        Count(
            "whole-image top-1 is the ground-truth label",
            "The class with the largest probability in the whole image's target is the class of the image's folder.",
            int((measures.top1 == measures.given).sum()),
        ),
        Count(
            "the ground-truth label is somewhere",
            f"It is the top-1 class of at least one of the image's {places}.",
            int((measures.area > 0).sum()),
        ),
        Count(
            "the ground-truth label is nowhere",
            f"It is the top-1 class of none of the image's {places}.",
            int((measures.area == 0).sum()),
        ),
        Count(
            "several classes are shown",
            f"More than one class is top-1 in at least {shown}.",
            int((measures.shown > 1).sum()),
        ),
    ]


def table_of_classes(measures: Measures, pairs: Sequence[ConfusedPair], num_classes: int) -> tuple[list[ClassRow], int]:
    """The classes that have images, those with the lowest agreement first, MAX_CLASSES at most; and how many there are."""
    given = measures.given

    def counted(which: np.ndarray) -> np.ndarray:
        return np.bincount(given[which], minlength=num_classes)

    images = np.bincount(given, minlength=num_classes)
    top1, nowhere = counted(measures.top1 == given), counted(measures.area == 0)
    area = np.bincount(given, weights=measures.area, minlength=num_classes) / np.maximum(images, 1)
    confused: dict[int, tuple[int, int]] = {}
    for label, suggestion, of_pair in pairs:
        confused.setdefault(label, (suggestion, len(of_pair)))
    present = np.flatnonzero(images)
    order = present[np.argsort(top1[present] / images[present], kind="stable")]
    rows = [
        ClassRow(c, int(images[c]), int(top1[c]), int(nowhere[c]), float(area[c]), confused.get(c))
        for c in order[:MAX_CLASSES].tolist()
    ]
    return rows, len(present)


def table_of_pairs(measures: Measures, pairs: Sequence[ConfusedPair]) -> list[Pair]:
    """The most frequent pairs, MAX_PAIRS at most."""
    images = np.bincount(measures.given)
    return [Pair(given, other, len(part), len(part) / int(images[given])) for given, other, part in pairs[:MAX_PAIRS]]
