"""What a crop is trained towards: its folder's class, its label map pooled over the crop, or what a teacher says of it.

Shapes: B images of a batch, C classes, N training images; T = rows * columns patch tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from relabel.labels.boxes import whole_image
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import area_weights, label_pool, label_pool_grid, weighted_sum
from relabel.labels.store import LabelStore
from train.augment import mirrored
from train.crops import Crops
from train.cutmix import Paste, mix_by_area, partner, parts_of, token_shares
from train.recipe import Recipe
from train.teacher import Teacher


@dataclass(frozen=True)
class LabelMapTargets:
    """Targets from a label set, computed on the training device.

    Attributes:
        row_of_image: (N,) int64 row of each training image in the store; on the store's device where it is resident there,
            else on the host: fetching row numbers from a GPU would wait for all that it has to do.
    """

    store: LabelStore
    row_of_image: Tensor
    recipe: Recipe

    @property
    def classes(self) -> int:
        return self.store.manifest.num_classes

    def __call__(self, crops: Crops, paste: Paste | None = None) -> Tensor:
        """(B, C) float32 probabilities, or (B,) int64 classes where the recipe's target is a single one."""
        maps = self.maps_of(crops)
        if paste is not None and self.recipe.cutmix_target == "regions":
            return self.of_regions(maps, crops, paste)
        boxes = whole_image(len(crops.boxes), crops.boxes.device) if self.recipe.target.startswith("global") else crops.boxes
        target = self.target_of(label_pool(maps, boxes, self.classes))
        return target if paste is None else mix_by_area(self.dense(target), paste)

    def read(self, indices: Tensor) -> LabelMaps:
        """Maps of (n,) images, on the host: for the loader's workers, where the store is not resident."""
        return self.store.read(self.row_of_image[indices])

    def maps_of(self, crops: Crops) -> LabelMaps:
        if crops.maps is not None:
            return crops.maps
        indices = crops.indices.to(self.row_of_image.device, non_blocking=True)
        return self.store.gather(self.row_of_image[indices])

    def of_regions(self, maps: LabelMaps, crops: Crops, paste: Paste) -> Tensor:
        """(B, C) float32 probabilities of mixed images: those of the two regions that are seen, weighted by their areas.

        A region's logits are the integral of the interpolated map over it, divided by its area: RoIAlign's points do not
        add up over an L-shaped rest, integrals do.
        """
        grid = maps.tail.shape[1:]
        part = area_weights(parts_of(crops.boxes, mirrored(crops.draws, self.recipe), paste), *grid)
        rest = (area_weights(crops.boxes, *grid) - part).clamp(min=0)  # below 0 by rounding alone
        of_part, of_rest = (
            self.dense(self.target_of(weighted_sum(maps, region / region.sum((1, 2), True).clamp(min=1e-9), self.classes)))
            for region in (part, rest)  # an empty one has no weight in what follows, but must be a number
        )
        return torch.lerp(of_rest, partner(of_part), paste.share)

    def of_tokens(self, crops: Crops, grid: tuple[int, int], paste: Paste | None = None) -> Tensor:
        """(B, T, C) float32 probabilities or (B, T) classes, of the map pooled over each patch as the student sees it."""
        maps = self.maps_of(crops)
        logits = label_pool_grid(maps, crops.boxes, grid, self.classes)  # (B, rows, columns, C)
        logits = torch.where(mirrored(crops.draws, self.recipe).view(-1, 1, 1, 1), logits.flip(2), logits)
        target = self.target_of(logits.flatten(1, 2))
        if paste is None:
            return target
        target = self.dense(target)
        return torch.lerp(target, partner(target), token_shares(paste, grid, target.device).view(-1, 1))

    def target_of(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> probabilities, or the largest class."""
        if self.recipe.target.endswith("single"):
            return logits.argmax(-1)
        return (logits / self.recipe.temperature).softmax(-1)

    def dense(self, target: Tensor) -> Tensor:
        return as_probabilities(target, self.classes)


@dataclass(frozen=True)
class Supervision:
    """The targets of a recipe, for a step that may have mixed its images.

    Attributes:
        classes: C.
        maps, teacher: where the recipe's target comes from, if not from the folder.
        token_grid: rows, columns of the student's patch tokens, if they have targets of their own.
    """

    recipe: Recipe
    classes: int
    maps: LabelMapTargets | None = None
    teacher: Teacher | None = None
    token_grid: tuple[int, int] | None = None

    def __call__(self, crops: Crops, images: Tensor, paste: Paste | None) -> tuple[Tensor, Tensor | None]:
        """The target of each image, and of each of its patch tokens if the recipe has such.

        Args:
            images: (B, 3, S, S) the crops as the student sees them, in units of uint8: what a teacher is asked about.
            paste: the rectangle that CutMix has mixed in.
        Returns:
            (B, C) float32 probabilities or (B,) int64 classes; and (B, T, C) or (B, T), or None.
        """
        recipe = self.recipe
        if self.maps is not None:
            crops = replace(crops, maps=self.maps.maps_of(crops))  # gathered once, for whole crops and for tokens
            target = self.maps(crops, paste)
        elif self.teacher is not None:
            target = (self.teacher(images) / recipe.temperature).softmax(1)  # of the mixed image: nothing to mix
        else:
            return self.folders(crops, paste), None
        if recipe.folder_share:
            folders = as_probabilities(self.folders(crops, paste), self.classes)
            target = torch.lerp(as_probabilities(target, self.classes), folders, recipe.folder_share)
        tokens = None
        if self.maps is not None and self.token_grid is not None:
            tokens = self.maps.of_tokens(crops, self.token_grid, paste)
        return target, tokens

    def folders(self, crops: Crops, paste: Paste | None) -> Tensor:
        return crops.targets if paste is None else mix_by_area(as_probabilities(crops.targets, self.classes), paste)


def as_probabilities(target: Tensor, classes: int) -> Tensor:
    """Classes as float32 one-hot rows; probabilities as they are."""
    return target if target.is_floating_point() else F.one_hot(target, classes).float()


def target_loss(logits: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """Mean loss of (B, C) logits against (B, C) probabilities or (B,) classes."""
    if recipe.loss == "ce":
        return F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
    target = as_probabilities(target, logits.shape[1])
    target = torch.lerp(target, torch.full_like(target, 1 / logits.shape[1]), recipe.label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def loss_with_tokens(
    output: Tensor | tuple[Tensor, Tensor], target: Tensor, token_target: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """The loss, and the (B, C) float32 logits of whole crops, of a student's output with or without token logits."""
    if isinstance(output, Tensor):
        logits = output.float()
        return target_loss(logits, target, recipe), logits
    logits, token_logits = (part.float() for part in output)
    assert token_target is not None
    of_tokens = target_loss(token_logits.flatten(0, 1), token_target.flatten(0, 1), recipe)
    return target_loss(logits, target, recipe) + recipe.token_weight * of_tokens, logits
