"""Which images are labelled wrong, by what the label set shows of them: those that show their label nowhere.

    label_score = largest probability of the label in any place / largest probability of any class in any place

A prediction for the whole image has to choose between the things that it shows. Its places do not: an image that shows its
label small beside other things has a place where it is probable.

Shapes: N images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.batches import in_batches
from relabel.labels.evidence import Evidence, evidence
from relabel.labels.store import LabelStore

BATCH = 512  # images at a time: what is computed from their maps fits the processor's caches


@dataclass(frozen=True)
class Judgement:
    """What the labels say of each image. NaN in scores and boxes, and -1 as class, of images without regions.

    Attributes:
        label_score: (N,) 0 if the label is nowhere, 1 if nothing else is more probable.
        is_label_issue: (N,) bool, whether it is below the threshold.
        predicted: (N,) the class with the largest probability in any place.
        predicted_probability: (N,) that probability.
        predicted_box: (N, 4) that place: x0, y0, x1, y1 in fractions of what the labels cover.
        label_probability: (N,) the largest probability of the label in any place.
    """

    label_score: np.ndarray
    is_label_issue: np.ndarray
    predicted: np.ndarray
    predicted_probability: np.ndarray
    predicted_box: np.ndarray
    label_probability: np.ndarray

    def most_certain_first(self) -> np.ndarray:
        """(N,) numbers of the images by score, and by the label's probability where nothing else is more probable; those
        without regions last."""
        return np.lexsort((self.label_probability, self.label_score))


def judge(store: LabelStore[Any], rows: torch.Tensor, given: np.ndarray, threshold: float) -> Judgement:
    """Look for the label of each image in all places of its label map, or in all of its regions.

    Args:
        rows: (N,) of the images in the store.
        given: (N,) int64 ground-truth labels.
        threshold: label scores below it are issues.
    """
    found = look(store, rows, torch.from_numpy(given))
    score = (found.label_score / found.suggestion_score).clamp(max=1).numpy()
    return Judgement(
        label_score=score,
        is_label_issue=score < threshold,  # not those that are NaN
        predicted=found.suggestion.numpy(),
        predicted_probability=found.suggestion_score.numpy(),
        predicted_box=found.suggestion_box.numpy(),
        label_probability=found.label_score.numpy(),
    )


def look(store: LabelStore[Any], rows: torch.Tensor, given: torch.Tensor) -> Evidence:
    """The evidence of all images, read batch by batch."""
    n = len(rows)
    # Filled in place: small tensors that stay between large ones that are freed would keep gigabytes from the system
    scores, boxes = torch.empty(2, n), torch.empty(2, n, 4)
    found = Evidence(scores[0], boxes[0], torch.empty(n, dtype=torch.int64), scores[1], boxes[1])

    def of_part(part: slice) -> None:
        of_images = evidence(store.read(rows[part]), given[part], store.manifest.num_classes)
        for name, values in vars(of_images).items():
            getattr(found, name)[part] = values

    for _ in in_batches(of_part, n, BATCH, "find-noise"):
        pass
    return found
