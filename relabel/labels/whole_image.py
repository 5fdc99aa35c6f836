"""What a label set says about whole images.

Shapes: B images, C classes.
"""

from torch import Tensor

from relabel.labels.boxes import whole_image
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import LabelRegions
from relabel.labels.stored import StoredLabels


def whole_image_top1(stored: StoredLabels, num_classes: int) -> Tensor:
    """(B,) int64: the class of the largest logit pooled over the whole image, or of its regions' largest mean target."""
    if isinstance(stored, LabelRegions):
        return stored.mean_target(num_classes).argmax(1)
    return whole_image_logits(stored, num_classes).argmax(1)


def whole_image_target(stored: StoredLabels, num_classes: int) -> Tensor:
    """(B, C) probabilities: the target of the whole image, or the mean target of its regions (0 if it has none)."""
    if isinstance(stored, LabelRegions):
        return stored.mean_target(num_classes)
    return whole_image_logits(stored, num_classes).softmax(1)


def whole_image_logits(stored: StoredLabels, num_classes: int) -> Tensor:
    assert isinstance(stored, LabelMaps)
    return label_pool(stored, whole_image(len(stored), stored.scores.device), num_classes)
