"""What stored labels say for and against the ground-truth label of an image: is its class anywhere, and what is?

A place is a cell of a label map, or a region; its probabilities are the softmax of its logits. The largest probability of a
class in any place tells whether the image shows that class, however small. The prediction for the whole image does not.
Averages over 2 x 2 and more cells were tried, and told wrong labels from right ones no better than single cells.

Shapes: B images, C classes, k classes stored per place, P places of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions


@dataclass(frozen=True)
class Evidence:
    """The places of each image that say most for its ground-truth label, and for any class.

    Boxes are x0, y0, x1, y1 in fractions of what the labels cover: the image, or the manifest's window.
    An image without regions has NaN for scores and boxes, and -1 as suggestion.

    Attributes:
        label_score: (B,) float32, the largest probability of the ground-truth label in any place.
        label_box: (B, 4) float32, that place.
        suggestion: (B,) int64, the class with the largest probability in any place. It may be the ground-truth label.
        suggestion_score: (B,) float32, that probability.
        suggestion_box: (B, 4) float32, that place.
    """

    label_score: Tensor
    label_box: Tensor
    suggestion: Tensor
    suggestion_score: Tensor
    suggestion_box: Tensor


def evidence(labels: LabelMaps | LabelRegions, given: Tensor, num_classes: int) -> Evidence:
    """Look for the ground-truth label, and for the strongest class, in every place of each image.

    A class that a place does not store has the probability of the tail there. The suggestion is always a stored class.

    Args:
        labels: of B images.
        given: (B,) ground-truth label of each image, in [0, C), on the labels' device.
        num_classes: C.
    """
    if isinstance(labels, LabelRegions):
        scores, classes, tail = labels.scores.transpose(1, 2), labels.classes.transpose(1, 2), labels.tail
    else:
        scores, classes, tail = labels.scores.flatten(2), labels.classes.flatten(2), labels.tail.flatten(1)
    log_prob, log_prob_tail = log_probabilities(scores.float(), tail.float(), num_classes)
    is_given = classes.int() == given.int().view(-1, 1, 1)
    of_given = torch.where(is_given, log_prob, -torch.inf).amax(1)  # (B, P)
    of_given = torch.where(is_given.any(1), of_given, log_prob_tail)
    strongest = log_prob[:, 0]
    if isinstance(labels, LabelRegions):
        absent = ~labels.present()
        of_given, strongest = of_given.masked_fill(absent, -torch.inf), strongest.masked_fill(absent, -torch.inf)
    label_score, label_place = of_given.max(1)
    suggestion_score, suggestion_place = strongest.max(1)
    suggestion = classes[:, 0].long().gather(1, suggestion_place.unsqueeze(1)).squeeze(1)
    found = [
        label_score.exp(),
        box_of(labels, label_place),
        suggestion,
        suggestion_score.exp(),
        box_of(labels, suggestion_place),
    ]
    if isinstance(labels, LabelRegions):
        found = without_regions(found, labels.count == 0)
    return Evidence(*found)


def log_probabilities(scores: Tensor, tail: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The log-softmax of each place's C logits: (B, k, P) of the stored classes, and (B, P) of each of the others.

    Args:
        scores: (B, k, P) float32, largest first.
        tail: (B, P) float32.
    """
    left_out = num_classes - scores.shape[1]
    largest = torch.maximum(scores[:, 0], tail) if left_out else scores[:, 0]
    scores, tail = scores - largest.unsqueeze(1), tail - largest
    total = scores.exp().sum(1)
    if left_out:
        total += left_out * tail.exp()
    log_total = total.log()
    return scores - log_total.unsqueeze(1), tail - log_total


def box_of(labels: LabelMaps | LabelRegions, place: Tensor) -> Tensor:
    """(B, 4) float32 box of one place of each image, given its (B,) number."""
    if isinstance(labels, LabelRegions):
        return labels.boxes[torch.arange(len(place), device=place.device), place].float()
    height, width = labels.tail.shape[1:]
    row, column = place // width, place % width
    return torch.stack([column / width, row / height, (column + 1) / width, (row + 1) / height], 1)


def without_regions(found: list[Tensor], empty: Tensor) -> list[Tensor]:
    """The same fields of Evidence, with NaN and -1 where (B,) `empty`."""
    blank = [-1 if field.dtype == torch.int64 else torch.nan for field in found]
    return [
        torch.where(empty if field.ndim == 1 else empty.unsqueeze(1), value, field)
        for field, value in zip(found, blank, strict=True)
    ]
