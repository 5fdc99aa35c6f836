"""The target of a crop: its ground-truth label, its label map pooled over the crop, the stored answer to it, or a teacher's
prediction.

Shapes: B images of a batch, C classes, N training images; T = rows * columns patch tokens.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relabel.labels.boxes import whole_image
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool, label_pool_grid, weighted_sum
from relabel.labels.regions import LabelRegions, SparseLogits
from relabel.labels.store import LabelStore
from train.crops import Crops
from train.cutmix import Paste
from train.recipe import Recipe
from train.stored_crops import RANDOM
from train.teacher import Teacher
from train.training_set import TrainingSet

logger = logging.getLogger(__name__)


def load(store: LabelStore[Any], what: str, row_of_image: Tensor, device: torch.device) -> Tensor:
    """Have the store on the device, in its memory if there is room; returns the row numbers where they are needed."""
    size = f"{store.nbytes / 1e9:.1f} GB" if store.nbytes >= 1e8 else f"{store.nbytes / 1e6:.1f} MB"
    if store.to(device).resident:
        logger.info(f"{what}: {size} in the memory of {device}")
        return row_of_image.to(device)
    logger.info(f"{what}: {size}, read from their files through the page cache")
    return row_of_image


@dataclass(frozen=True)
class LabelMapTargets:
    """Targets from a label set, computed on the training device.

    Attributes:
        row_of_image: (N,) int64 row of each training image in the store. It is on the store's device if the store is
            resident there, and otherwise on the host: fetching row numbers from a GPU would wait for all its work.
    """

    store: LabelStore
    row_of_image: Tensor
    recipe: Recipe

    @classmethod
    def on_device(cls, store: LabelStore, row_of_image: Tensor, recipe: Recipe, device: torch.device) -> "LabelMapTargets":
        """Move the label maps into the device's memory, or have them read from their files if it has no room for them."""
        return cls(store, load(store, "label maps", row_of_image, device), recipe)

    @property
    def classes(self) -> int:
        return self.store.manifest.num_classes

    def read(self, indices: Tensor) -> LabelMaps:
        """The maps of (n,) images, on the host: for the loader's workers, if the store is not resident."""
        return self.store.read(self.row_of_image[indices])

    def maps(self, crops: Crops) -> LabelMaps:
        """The maps of the crops' images, on the device."""
        if crops.maps is not None:
            return crops.maps
        indices = crops.indices.to(self.row_of_image.device, non_blocking=True)
        return self.store.gather(self.row_of_image[indices])

    def of_crops(self, crops: Crops, maps: LabelMaps, paste: Paste | None) -> Tensor:
        """(B, C) float32 probabilities, or (B,) int64 classes if the recipe's target is a single class."""
        if paste is not None and self.recipe.cutmix_target == "regions":
            weights = paste.region_weights(crops.boxes, crops.mirrored, (maps.tail.shape[1], maps.tail.shape[2]))
            kept, pasted = (self.probabilities(weighted_sum(maps, region, self.classes)) for region in weights)
            return paste.mix_regions(kept, pasted)
        boxes = whole_image(len(crops.boxes), crops.boxes.device) if self.recipe.target.startswith("global") else crops.boxes
        logits = label_pool(maps, boxes, self.classes)
        return self.from_logits(logits) if paste is None else paste.mix(self.probabilities(logits))

    def of_tokens(self, crops: Crops, maps: LabelMaps, grid: tuple[int, int], paste: Paste | None) -> Tensor:
        """(B, T, C) float32 probabilities or (B, T) classes: the map pooled over each patch as the student sees it."""
        logits = label_pool_grid(maps, crops.boxes, grid, self.classes)  # (B, rows, columns, C)
        logits = torch.where(crops.mirrored.view(-1, 1, 1, 1), logits.flip(2), logits).flatten(1, 2)
        return self.from_logits(logits) if paste is None else paste.mix_tokens(self.probabilities(logits), grid)

    def from_logits(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> probabilities, or the class with the largest logit."""
        if self.recipe.target.endswith("single"):
            return logits.argmax(-1)
        return (logits / self.recipe.temperature).softmax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> (..., C) probabilities, one-hot if the recipe's target is a single class."""
        return as_probabilities(self.from_logits(logits), self.classes)


@dataclass(frozen=True)
class RegionTargets:
    """Targets that were stored for crops, computed on the training device.

    Attributes:
        row_of_image: as in LabelMapTargets.
        maps: label maps, for the crops that are not stored.
    """

    store: LabelStore[LabelRegions]
    row_of_image: Tensor
    recipe: Recipe
    maps: LabelMapTargets | None = None

    @classmethod
    def on_device(
        cls,
        store: LabelStore[LabelRegions],
        row_of_image: Tensor,
        recipe: Recipe,
        device: torch.device,
        maps: LabelMapTargets | None = None,
    ) -> "RegionTargets":
        """Move the regions into the device's memory, or have them read from their files if it has no room for them."""
        return cls(store, load(store, "regions", row_of_image, device), recipe, maps)

    def of_crops(self, crops: Crops, paste: Paste | None) -> Tensor:
        """(B, C) float32 probabilities."""
        num_classes = self.store.manifest.num_classes
        logits = self.answers(crops).dense(num_classes)
        if self.maps is not None:
            pooled = label_pool(self.maps.maps(crops), crops.boxes, num_classes)
            logits = torch.where((self.numbers(crops) == RANDOM).unsqueeze(1), pooled, logits)
        target = (logits / self.recipe.temperature).softmax(1)
        return target if paste is None else paste.mix(target)

    def answers(self, crops: Crops) -> SparseLogits:
        """The stored answers to the crops, on the device; meaningless for crops that are not stored."""
        if crops.answers is not None:
            return crops.answers
        indices = crops.indices.to(self.row_of_image.device, non_blocking=True)
        return self.store.gather(self.row_of_image[indices].clamp(min=0)).select(self.numbers(crops).clamp(min=0)).logits()

    def numbers(self, crops: Crops) -> Tensor:
        assert crops.numbers is not None
        return crops.numbers.long()


def labels_on_device(
    data: TrainingSet, recipe: Recipe, device: torch.device
) -> tuple[LabelMapTargets | None, RegionTargets | None]:
    """What the recipe's target reads of the label sets: maps, regions, or both."""
    maps = None
    if data.maps is not None and data.row_of_map is not None:
        maps = LabelMapTargets.on_device(data.maps, data.row_of_map, recipe, device)
    if data.store is None or data.row_of_image is None:
        return maps, None
    if recipe.reads_regions:
        return maps, RegionTargets.on_device(data.store, data.row_of_image, recipe, device, maps)
    return LabelMapTargets.on_device(data.store, data.row_of_image, recipe, device), None


@dataclass(frozen=True)
class Supervision:
    """The targets of a recipe, for a step that may have mixed its images.

    Attributes:
        classes: C.
        maps, regions, teacher: what the recipe's target comes from, if not from the ground-truth label.
        token_grid: rows, columns of the student's patch tokens, if they have targets of their own.
    """

    recipe: Recipe
    classes: int
    maps: LabelMapTargets | None = None
    teacher: Teacher | None = None
    token_grid: tuple[int, int] | None = None
    regions: RegionTargets | None = None

    def __call__(self, crops: Crops, images: Tensor, paste: Paste | None) -> tuple[Tensor, Tensor | None]:
        """The target of each image, and of each of its patch tokens if the recipe trains them.

        Args:
            images: (B, 3, S, S) the crops as the student sees them, in units of uint8: the teacher's input.
            paste: the rectangle of CutMix, if this step mixes.
        Returns:
            (B, C) float32 probabilities or (B,) int64 classes; and (B, T, C) or (B, T), or None.
        """
        tokens = None
        if self.regions is not None:
            target = self.regions.of_crops(crops, paste)
        elif self.maps is not None:
            maps = self.maps.maps(crops)
            target = self.maps.of_crops(crops, maps, paste)
            if self.token_grid is not None:
                tokens = self.maps.of_tokens(crops, maps, self.token_grid, paste)
        elif self.teacher is not None:
            target = (self.teacher(images) / self.recipe.temperature).softmax(1)  # of the mixed images
        else:
            return self.ground_truth(crops, paste), None
        if self.recipe.folder_share:
            labels = as_probabilities(self.ground_truth(crops, paste), self.classes)
            target = torch.lerp(as_probabilities(target, self.classes), labels, self.recipe.folder_share)
        return target, tokens

    def ground_truth(self, crops: Crops, paste: Paste | None) -> Tensor:
        """(B,) int64 ground-truth labels, or (B, C) float32 probabilities if they are mixed."""
        return crops.targets if paste is None else paste.mix(as_probabilities(crops.targets, self.classes))


def as_probabilities(target: Tensor, classes: int) -> Tensor:
    """Classes as float32 one-hot rows; probabilities unchanged."""
    return target if target.is_floating_point() else F.one_hot(target, classes).float()
