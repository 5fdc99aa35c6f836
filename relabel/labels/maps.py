"""A batch of sparse label maps.

Shapes: B images, C classes, k classes stored per cell, H rows and W columns of the label map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from relabel.labels.stored import SCORE_DTYPE, StoredLabels, class_dtype


@dataclass(frozen=True)
class LabelMaps(StoredLabels):
    """Sparse logit maps of B images: per cell, the k largest logits, their classes, and the tail.

    Attributes:
        scores: (B, k, H, W) float, largest first; row 0 is the top of the image, column 0 its left edge.
        classes: (B, k, H, W) integer class of each score.
        tail: (B, H, W) float, the logit of every class that is not stored in the cell.
    """

    scores: Tensor
    classes: Tensor
    tail: Tensor

    def as_stored(self, num_classes: int) -> "LabelMaps":
        """The same maps in the types of a shard: SCORE_DTYPE and class_dtype."""
        score_type, class_type = (getattr(torch, dtype.name) for dtype in (SCORE_DTYPE, class_dtype(num_classes)))
        return LabelMaps(self.scores.to(score_type), self.classes.to(class_type), self.tail.to(score_type))

    def dense(self, num_classes: int) -> Tensor:
        """(B, C, H, W) float32 logits: the definition that label pooling is tested against. 230 MB at 256x1000x15x15."""
        batch, _, rows, columns = self.scores.shape
        logits = self.tail.float().unsqueeze(1).expand(batch, num_classes, rows, columns).clone()
        return logits.scatter_(1, self.classes.long(), self.scores.float())


MAPS = LabelMaps.names()
