"""Evaluate a classifier on an image folder: top-1, top-5, and accuracy against all the classes that an image shows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relabel.images.image_set import ImageSet
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.defaults import EVAL_BATCH_SIZE, Loss
from relabel.runtime.distributed import Processes
from train.evaluation.measures import Measure, mean_average_precision, multilabel_accuracy, top_k
from train.evaluation.multilabels import MultiLabels
from train.evaluation.predictions import BEST, predict


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one data set.

    Attributes:
        images: their number.
        measures: by name, each with the values of all images.
        figures: percentages that are not means over images.
        notes: other entries for the JSON.
    """

    images: int
    measures: dict[str, Measure]
    figures: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For JSON: images, then percentages by name; NAME_images if fewer images count for a measure."""
        summary: dict[str, Any] = {"images": self.images}
        for name, measure in self.measures.items():
            summary[name] = round(measure.mean(), 4)
            valid = int(measure.valid.sum())
            if valid != self.images:
                summary[f"{name}_images"] = valid
        return summary | {name: round(value, 4) for name, value in self.figures.items()} | self.notes


def evaluate(
    classifier: nn.Module,
    image_set: ImageSet,
    preprocessing: Preprocessing,
    group: Processes,
    *,
    multilabels: MultiLabels | None = None,
    real: MultiLabels | None = None,
    attack_epsilon: float | None = None,
    average_precision_of: Loss | None = None,
    among_folders: np.ndarray | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    title: str = "eval",
) -> Evaluation:
    """Evaluate on all images of a folder whose classes are the classifier's, in order; some may have no images.

    Args:
        multilabels: from `read_multilabels`; real: from `real_labels`.
        attack_epsilon: first attack every image by FGSM with this step.
        average_precision_of: with multilabels, also measure mean average precision, of a classifier trained with this loss.
        among_folders: also let the classifier choose only among these classes.
    Returns:
        top1; top5 if there are more than 5 classes; with `among_folders`: top1_among_folders and top5_among_folders; with
        `real`: real; with `multilabels`: multilabel_accuracy, or multilabel_accuracy_by_class if it is a mean over classes,
        and the figure multilabel_map.
    """
    targets = torch.from_numpy(image_set.targets)
    predictions = predict(
        classifier,
        image_set,
        preprocessing,
        group,
        len(image_set.classes),
        among=[] if among_folders is None else [torch.from_numpy(among_folders)],
        attack=(attack_epsilon, targets) if attack_epsilon is not None else None,
        scores_of=average_precision_of if multilabels is not None else None,
        batch_size=batch_size,
        workers=workers,
        autocast_dtype=autocast_dtype,
        title=title,
    )
    measures = accuracies(predictions.best, image_set.targets, len(image_set.classes), multilabels, real)
    if among_folders is not None:
        measures |= accuracies_among_folders(predictions.best_among[0], image_set.targets, len(among_folders))
    figures = {}
    if predictions.scores is not None and multilabels is not None:
        figures["multilabel_map"] = mean_average_precision(predictions.scores, multilabels)
    return Evaluation(len(image_set), measures, figures)


def accuracies(
    best: Tensor,
    targets: np.ndarray,
    classes: int,
    multilabels: MultiLabels | None = None,
    real: MultiLabels | None = None,
) -> dict[str, Measure]:
    """The accuracies that apply, by name, from (N, k) the best classes."""
    labels = torch.from_numpy(targets)
    measures = {"top1": top_k(best, labels, 1)}
    if classes > BEST:
        measures["top5"] = top_k(best, labels, BEST)
    if real is not None:
        measures["real"] = multilabel_accuracy(best, real, labels)
    if multilabels is not None:
        name = "multilabel_accuracy_by_class" if multilabels.mean_over_classes else "multilabel_accuracy"
        measures[name] = multilabel_accuracy(best, multilabels, labels)
    return measures


def accuracies_among_folders(best: Tensor, targets: np.ndarray, classes: int) -> dict[str, Measure]:
    """The accuracies of a classifier that chooses only among the classes which have images."""
    return {f"{name}_among_folders": measure for name, measure in accuracies(best, targets, classes).items()}
