"""The measures: means over images, each kept with what every image adds to it, so that two models can be compared by image.

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
        values: (N,) float64 what each image adds, such as 0 or 100; NaN where an image is not judged.
        strata: (N,) the class of each image, where the measure is the mean over classes of the mean over a class's images.
    """

    values: np.ndarray
    strata: np.ndarray | None = None

    @property
    def judged(self) -> np.ndarray:
        """(N,) bool."""
        judged: np.ndarray = ~np.isnan(self.values)
        return judged

    def groups(self) -> list[np.ndarray]:
        """Indices of the judged images, in the groups whose means are averaged."""
        judged = np.flatnonzero(self.judged)
        if self.strata is None:
            return [judged]
        strata = self.strata[judged]
        order = np.argsort(strata, kind="stable")
        return np.split(judged[order], np.flatnonzero(np.diff(strata[order])) + 1)

    def mean(self) -> float:
        return float(np.mean([self.values[group].mean() for group in self.groups()]))


def as_percent(right: Tensor) -> np.ndarray:
    return 100 * right.double().numpy()


def top_k(best: Tensor, targets: Tensor, k: int) -> Measure:
    """Whether the folder's class is among the k best.

    Args:
        best: (N, at least k) classes, best first.
        targets: (N,)
    """
    return Measure(as_percent((best[:, :k] == targets.unsqueeze(1)).any(1)))


def multilabel_accuracy(best: Tensor, shown: MultiLabels, targets: Tensor) -> Measure:
    """Whether the best class is among those that an image shows, as in ReaL (Beyer et al. 2020)."""
    right = as_percent(shown.classes.gather(1, best[:, :1]).squeeze(1))
    right[~shown.judged.numpy()] = np.nan
    return Measure(right, targets.numpy() if shown.mean_over_classes else None)


def mean_average_precision(scores: Tensor, shown: MultiLabels) -> float:
    """Percent: the mean, over the classes that any judged image shows, of the average precision of the images' ranking.

    Average precision is the sum over distinct scores of precision times the gain in recall, without interpolation.

    Args:
        scores: (N, C) by which each class ranks the images.
    """
    judged = shown.judged
    ranked, positive = scores[judged].numpy(), shown.classes[judged].numpy()
    classes = np.flatnonzero(positive.any(0))
    return 100 * float(np.mean([average_precision(ranked[:, c], positive[:, c]) for c in classes]))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_its_score = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # images of one score together
    found = np.cumsum(positive[order])[last_of_its_score]
    precision = found / (last_of_its_score + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def class_accuracies(measure: Measure, targets: np.ndarray, classes: int) -> np.ndarray:
    """(C,) mean over the judged images of each class; NaN where there are none."""
    judged = measure.judged
    total = np.bincount(targets[judged], weights=measure.values[judged], minlength=classes)
    count = np.bincount(targets[judged], minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
