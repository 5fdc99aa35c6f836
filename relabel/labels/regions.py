"""A batch of regions: crops of each image with a teacher's answer to each, as FKD, TinyViT and ml-dr store them.

A region's logits are log p - log p_max, so the largest is 0 and float16 is finest where the target has its weight.

Shapes: B images, C classes, N regions stored per image at most, k classes stored per region.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from relabel.labels.stored import SCORE_DTYPE, StoredLabels, class_dtype

BOX_STEPS = 65_535  # edges are stored in this many steps: exact to the pixel in every image that can be read
MIRRORED, PHOTOMETRIC, ERASED = 1, 2, 4  # bits of flags: what the teacher saw besides the cut
LOWEST = -60.0  # stands for the logarithm of 0, which float16 cannot store; exp(-60) of a million classes is still nothing


@dataclass(frozen=True)
class SparseLogits(StoredLabels):
    """Logits of B crops: the k largest, their classes, and the tail.

    Attributes:
        scores: (B, k) float, largest first.
        classes: (B, k) integer class of each score.
        tail: (B,) float, the logit of every class that is not stored.
    """

    scores: Tensor
    classes: Tensor
    tail: Tensor

    def dense(self, num_classes: int) -> Tensor:
        """(B, C) float32 logits."""
        logits = self.tail.float().unsqueeze(1).repeat(1, num_classes)
        return logits.scatter_(1, self.classes.long(), self.scores.float())


@dataclass(frozen=True)
class LabelRegions(StoredLabels):
    """N crops of each of B images, with the k largest logits of each crop, their classes, and the tail.

    Attributes:
        boxes: (B, N, 4) float32 x0, y0, x1, y1 in fractions of the image, x along the columns, before any mirroring.
        flags: (B, N) uint8, the sum of MIRRORED, PHOTOMETRIC (its colours were changed) and ERASED (a part was blanked):
            what was done to the crop before the teacher saw it.
        scores: (B, N, k) float, largest first.
        classes: (B, N, k) integer class of each score.
        tail: (B, N) float, the logit of every class that is not stored.
        count: (B,) integer, how many regions the image has; the rows after them are 0.
    """

    boxes: Tensor
    flags: Tensor
    scores: Tensor
    classes: Tensor
    tail: Tensor
    count: Tensor

    def as_stored(self, num_classes: int) -> "LabelRegions":
        """The same regions in the types of a shard; if they already are, unchanged."""
        boxes = self.boxes
        score_type, class_type = (getattr(torch, dtype.name) for dtype in (SCORE_DTYPE, class_dtype(num_classes)))
        return LabelRegions(
            boxes if boxes.dtype == torch.uint16 else (boxes.double() * BOX_STEPS).round().int().to(torch.uint16),
            self.flags.to(torch.uint8),
            self.scores.to(score_type),
            self.classes.to(class_type),
            self.tail.to(score_type),
            self.count.to(torch.uint16),
        )

    @classmethod
    def from_stored(cls, tensors: dict[str, Tensor]) -> "LabelRegions":
        """Boxes as fractions, and types that `select` can index on any device: CUDA has few operations for uint16."""
        boxes = tensors["boxes"].float() / BOX_STEPS
        return cls(**tensors | {"boxes": boxes, "classes": tensors["classes"].int(), "count": tensors["count"].int()})

    def logits(self) -> SparseLogits:
        """The logits of all B * N regions, image after image."""
        return SparseLogits(*(t.flatten(0, 1) for t in (self.scores, self.classes, self.tail)))

    def dense(self, num_classes: int) -> Tensor:
        """(B, N, C) float32 logits; `.softmax(2)` is each region's target."""
        return self.logits().dense(num_classes).view(*self.tail.shape, num_classes)

    def present(self) -> Tensor:
        """(B, N) bool: which of the rows are regions."""
        return torch.arange(self.flags.shape[1], device=self.count.device) < self.count.unsqueeze(1)

    def mean_target(self, num_classes: int) -> Tensor:
        """(B, C) float32: the mean target of an image's regions; 0 if it has none. Without the dense logits."""
        scores, tail = self.scores.float().exp(), self.tail.float().exp()  # of logits of at most 0
        total = scores.sum(2) + (num_classes - scores.shape[2]) * tail
        weight = self.present() / (total * self.count.clamp(min=1).unsqueeze(1))  # (B, N)
        rest = (weight * tail).sum(1, keepdim=True).repeat(1, num_classes)
        above = (weight.unsqueeze(2) * (scores - tail.unsqueeze(2))).flatten(1)
        return rest.scatter_add_(1, self.classes.long().flatten(1), above)

    def select(self, numbers: Tensor) -> "LabelRegions":
        """One region of each image: (B,) numbers -> regions with N = 1."""
        rows = torch.arange(len(numbers), device=numbers.device)
        chosen = {name: t[rows, numbers].unsqueeze(1) for name, t in self.tensors().items() if name != "count"}
        return LabelRegions(**chosen, count=torch.ones_like(self.count))


def window_of(box: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a stored box (4,): the very pixels that the box was made from.

    Of a smaller copy of the image, at least one pixel.
    """
    x0, y0, x1, y1 = (box.double() * torch.tensor([width, height, width, height])).round().int().tolist()
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def log_ratio(probabilities: Tensor, largest: Tensor) -> Tensor:
    """log p - log p_max, float32; LOWEST where p is 0 or less."""
    return (probabilities.clamp(min=0).float().log() - largest.float().log()).clamp(min=LOWEST)
