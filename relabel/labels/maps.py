"""A batch of sparse label maps.

Shapes: B images, C classes, k classes stored per cell, H rows and W columns of the label map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAPS = ("scores", "classes", "tail")  # the arrays of a label map, in a shard and in LabelMaps


@dataclass(frozen=True)
class LabelMaps:
    """Sparse logit maps of B images: per cell the k largest logits, their classes, and one value for all the others.

    Attributes:
        scores: (B, k, H, W) float, largest first; row 0 is the top of the image, column 0 its left edge.
        classes: (B, k, H, W) integer class of each score.
        tail: (B, H, W) float; a class that is not stored counts as this.
    """

    scores: Tensor
    classes: Tensor
    tail: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> "LabelMaps":
        return LabelMaps(*(t.to(device, non_blocking=True) for t in (self.scores, self.classes, self.tail)))

    def pin_memory(self) -> "LabelMaps":
        return LabelMaps(*(t.pin_memory() for t in (self.scores, self.classes, self.tail)))

    def dense(self, num_classes: int) -> Tensor:
        """(B, C, H, W) float32 logits: the definition that label pooling is tested against. 230 MB at 256x1000x15x15."""
        batch, _, rows, columns = self.scores.shape
        logits = self.tail.float().unsqueeze(1).expand(batch, num_classes, rows, columns).clone()
        return logits.scatter_(1, self.classes.long(), self.scores.float())
