"""Measures: means over images that keep the value of every image, so that two models can be compared image by image.

Shapes: N images, C classes.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from train.evaluation.multilabels import MultiLabels


@dataclass(frozen=True)
class Measure:
    """A percentage that is a mean over images.

    Attributes:
        values: (N,) float64 value of each image, such as 0 or 100; NaN for images that do not count.
        strata: (N,) the class of each image, if the measure is the mean over classes of the mean over a class's images.
    """

    values: np.ndarray
    strata: np.ndarray | None = None

    @property
    def valid(self) -> np.ndarray:
        """(N,) bool, the images that count."""
        valid: np.ndarray = ~np.isnan(self.values)
        return valid

    def groups(self) -> list[np.ndarray]:
        """Indices of the images that count, in the groups whose means are averaged."""
        indices = np.flatnonzero(self.valid)
        if self.strata is None:
            return [indices]
        strata = self.strata[indices]
        order = np.argsort(strata, kind="stable")
        return np.split(indices[order], np.flatnonzero(np.diff(strata[order])) + 1)

    def mean(self) -> float:
        return float(np.mean([self.values[group].mean() for group in self.groups()]))


def as_percent(right: Tensor) -> np.ndarray:
    return 100 * right.double().numpy()


def top_k(best: Tensor, targets: Tensor, k: int) -> Measure:
    """Whether the ground-truth label is among the k best classes.

    Args:
        best: (N, at least k) classes, best first.
        targets: (N,)
    """
    return Measure(as_percent((best[:, :k] == targets.unsqueeze(1)).any(1)))


def multilabel_accuracy(best: Tensor, multilabels: MultiLabels, targets: Tensor) -> Measure:
    """Whether the best class is among those that an image shows, as in ReaL (Beyer et al. 2020)."""
    right = as_percent(multilabels.classes.gather(1, best[:, :1]).squeeze(1))
    right[~multilabels.valid.numpy()] = np.nan
    return Measure(right, targets.numpy() if multilabels.mean_over_classes else None)


def mean_average_precision(scores: Tensor, multilabels: MultiLabels) -> float:
    """The average precision of a class's ranking of the images, averaged over all classes that an image shows, in percent.

    Average precision is the sum over distinct scores of precision times the gain in recall, without interpolation.

    Args:
        scores: (N, C), by which each class ranks the images. Only images that count are ranked.
    """
    valid = multilabels.valid
    ranked, positive = scores[valid].numpy(), multilabels.classes[valid].numpy()
    classes = np.flatnonzero(positive.any(0))
    return 100 * float(np.mean([average_precision(ranked[:, c], positive[:, c]) for c in classes]))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(
        np.flatnonzero(np.diff(scores[order])), len(order) - 1
    )  # images with equal scores are one step
    found = np.cumsum(positive[order])[last_of_score]
    precision = found / (last_of_score + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def class_accuracies(measure: Measure, targets: np.ndarray, classes: int) -> np.ndarray:
    """(C,) mean over the images of each class that count; NaN if there are none."""
    valid = measure.valid
    total = np.bincount(targets[valid], weights=measure.values[valid], minlength=classes)
    count = np.bincount(targets[valid], minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
