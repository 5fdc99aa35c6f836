"""The numbers that a report gives of every image: what each is, its range, and how it is written."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.report.measures import SHOWN_SHARE, Measures


@dataclass(frozen=True)
class Number:
    """A number of every image.

    Attributes:
        name: its field in Measures, or "difference".
        values: (N,), NaN for images that have none.
        range: its smallest and largest possible value, in words.
        digits: after the point.
        ascending: whether the smallest is the most interesting.
    """

    name: str
    title: str
    about: str
    range: str
    digits: int
    ascending: bool
    values: np.ndarray

    def deciles(self) -> list[str]:
        """The value below which 10% of the images lie, the median, and the value above which 10% lie."""
        return [self.text(value) for value in np.nanpercentile(self.values, (10, 50, 90)).tolist()]

    def of(self, number: int) -> float | None:
        """The number of an image; None if it has none."""
        value = float(self.values[number])
        return round(value, 5) if math.isfinite(value) else None

    def text(self, value: float | None) -> str:
        return "none" if value is None else f"{value:z.{self.digits}f}"


def numbers_of(measures: Measures, difference: np.ndarray | None, num_classes: int, places: str) -> list[Number]:
    """All numbers.

    Args:
        difference: (N,) as for `lists_of`.
        places: "cells" or "regions".
    """
    place, share = places.removesuffix("s"), f"{100 * SHOWN_SHARE:.0f}%"
    rows = [
        (
            "label_score",
            "label's probability",
            f"The ground-truth label's largest probability in any {place}.",
            "0 to 1",
            2,
            True,
        ),
        ("label_prob", "label, whole image", "Its probability in the target of the whole image.", "0 to 1", 2, True),
        ("margin", "margin", "That, less the largest probability of another class.", "-1 to 1", 2, True),
        (
            "entropy",
            "entropy",
            "Of the target of the whole image: 0 if it is sure of one class.",
            f"0 to {math.log(num_classes):.2f} nats",
            2,
            False,
        ),
        (
            "shown",
            "number of classes",
            f"Classes that are top-1 in at least {share} of the {places}.",
            f"0 to {min(num_classes, round(1 / SHOWN_SHARE))}",
            0,
            False,
        ),
        ("area", "area", f"Share of the {places} whose top-1 class is the ground-truth label.", "0 to 1", 2, True),
        (
            "suggestion_score",
            "suggestion's probability",
            f"Largest probability of the suggested class in any {place}.",
            "0 to 1",
            2,
            False,
        ),
    ]
    found = [Number(*row, values=getattr(measures, row[0])) for row in rows]
    if difference is not None:
        about = "Total variation distance of A's and B's targets of the whole image: 0 if they are equal."
        found.append(Number("difference", "difference of A and B", about, "0 to 1", 2, False, difference))
    return found
