"""What a crop is trained towards: its folder's class, or its label map pooled over the crop.

Shapes: B images of a batch, C classes, N training images.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pipeline.boxes import whole_image
from pipeline.errors import InputError
from pipeline.images import ImageSet
from pipeline.shards import LabelStore
from train.crops import Crops
from train.label_pooling import label_pool
from train.recipe import Recipe


@dataclass(frozen=True)
class LabelMapTargets:
    """Targets from a label set that is resident on the training device.

    Attributes:
        row_of_image: (N,) int64 row of each training image in the store, on its device.
    """

    store: LabelStore
    row_of_image: Tensor
    recipe: Recipe

    def __call__(self, crops: Crops) -> Tensor:
        """(B, C) float32 probabilities, or (B,) int64 classes where the recipe's target is a single one."""
        scope, count = self.recipe.target.split("-")
        boxes = crops.boxes
        if scope == "global":
            boxes = whole_image(len(boxes), boxes.device)
        maps = self.store.gather(self.row_of_image[crops.indices])
        logits = label_pool(maps, boxes, self.store.manifest.num_classes)
        return logits.argmax(1) if count == "single" else logits.softmax(1)


def match_labels(store: LabelStore, folder: ImageSet) -> Tensor:
    """(N,) int64 row of each image of the folder.

    Raises:
        InputError: images without a label map, or other classes than the label set's.
    """
    misfit = store.manifest.misfit(folder.classes)
    if misfit is not None:
        raise InputError(
            f"{store.labels} does not go with {folder.source}: {misfit}; use labels of an annotator with the images'"
            " classes, or tell annotate its classes by --classes"
        )
    known = set(store.keys)
    missing = [key for key in folder.keys if key not in known]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(folder)} images of {folder.source} have no label map in {store.labels} (first:"
            f" {', '.join(missing[:3])}); annotate this folder, or train on the one the labels were made from"
        )
    return store.rows(folder.keys)


def loss_of(logits: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """Mean loss of (B, C) logits against (B, C) probabilities or (B,) classes."""
    if recipe.loss == "ce":
        return F.cross_entropy(logits, target)
    if target.ndim == 1:
        target = F.one_hot(target, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
