"""The numbers of every image of a label set, read once from front to back.

Shapes: N images measured, B images of a batch, C classes, P places of an image: the cells of its map, or its regions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import in_batches
from relabel.labels.evidence import evidence
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from relabel.labels.whole_image import whole_image_target

BATCH_NUMBERS = 2**20  # of a batch: B * C at most
SHOWN_SHARE = 0.05  # of the places: an image shows the classes that are top-1 in so many


@dataclass(frozen=True)
class Measures:
    """What the labels say of N images. Targets are those of whole images, shares those of their places.

    Attributes:
        given: (N,) int32 ground-truth label.
        top1: (N,) int32 class of the largest probability.
        label_prob: (N,) the ground-truth label's probability, 0 to 1.
        margin: (N,) that less the largest probability of another class, -1 to 1.
        entropy: (N,) nats, 0 to log C.
        area: (N,) share of the places whose top-1 class is the ground-truth label, 0 to 1.
        shown: (N,) int32 number of classes that are top-1 in SHOWN_SHARE of the places.
        label_score: (N,) largest probability of the ground-truth label in any place (relabel/labels/evidence.py).
        suggestion: (N,) int32 class that the places suggest instead, or the ground-truth label.
        suggestion_score: (N,) its largest probability in any place.
    """

    given: np.ndarray
    top1: np.ndarray
    label_prob: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    area: np.ndarray
    shown: np.ndarray
    label_score: np.ndarray
    suggestion: np.ndarray
    suggestion_score: np.ndarray

    def __len__(self) -> int:
        return len(self.given)


def measure(store: LabelStore[Any], rows: np.ndarray, given: np.ndarray) -> Measures:
    """Measure the images in these rows of a label set.

    Args:
        rows: (N,) rows that have labels.
        given: (N,) their ground-truth labels.
    """
    classes = store.manifest.num_classes

    def of_batch(part: slice) -> list[np.ndarray]:
        labels: LabelMaps | LabelRegions = store.read(torch.from_numpy(rows[part]))
        numbers = measure_batch(labels, torch.from_numpy(given[part]).long(), classes)
        return [t.numpy().astype(np.float32 if t.is_floating_point() else np.int32) for t in numbers]

    batches = in_batches(of_batch, len(rows), batch_size(classes), "measure")
    return Measures(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def measure_batch(labels: LabelMaps | LabelRegions, given: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """The fields of Measures, in order, each (B,)."""
    of_label = given.unsqueeze(1)
    target = whole_image_target(labels, num_classes)
    label_prob = target.gather(1, of_label).squeeze(1)
    other = target.scatter(1, of_label, -1).amax(1) if num_classes > 1 else torch.zeros(len(given))
    share = shares(labels, num_classes)
    found = evidence(labels, given, num_classes)
    return (
        given,
        target.argmax(1),
        label_prob,
        label_prob - other,
        torch.special.entr(target).sum(1).clamp(min=0),
        share.gather(1, of_label).squeeze(1),
        (share >= SHOWN_SHARE).sum(1),
        found.label_score,
        found.suggestion,
        found.suggestion_score,
    )


def shares(labels: LabelMaps | LabelRegions, num_classes: int) -> Tensor:
    """(B, C): the share of an image's places whose top-1 class this is; 0 for all if it has no places."""
    if isinstance(labels, LabelRegions):
        top, present = labels.classes[..., 0], labels.present().float()  # (B, P)
        weight = present / present.sum(1, keepdim=True).clamp(min=1)
    else:
        top = labels.classes[:, 0].flatten(1)
        weight = torch.full(top.shape, 1 / top.shape[1])
    return torch.zeros(len(labels), num_classes).scatter_add_(1, top.long(), weight)


def difference(first: LabelStore[Any], second: LabelStore[Any], rows: np.ndarray, other_rows: np.ndarray) -> np.ndarray:
    """(N,) float32, 0 to 1: the total variation distance between what two label sets say of the same whole images.

    Args:
        rows, other_rows: (N,) rows of the images in the first and in the second set.
    """
    classes = first.manifest.num_classes

    def of_batch(part: slice) -> np.ndarray:
        pairs = ((first, rows[part]), (second, other_rows[part]))
        p, q = (whole_image_target(store.read(torch.from_numpy(of)), classes) for store, of in pairs)
        distance: np.ndarray = ((p - q).abs().sum(1) / 2).clamp(max=1).numpy()
        return distance

    return np.concatenate([np.empty(0, np.float32), *in_batches(of_batch, len(rows), batch_size(classes), "difference")])


def batch_size(num_classes: int) -> int:
    return min(512, max(1, BATCH_NUMBERS // num_classes))
