"""Random crops of the training images: one box cuts the image and, later, pools the label map.

A crop depends on (seed, epoch, image) alone: not on the number of workers or processes, nor on where a run was resumed.

Shapes: B images of a batch, S pixels of a crop's side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from pipeline.images import ImageSet
from train.augment import augmentation_draws
from train.recipe import Recipe


@dataclass(frozen=True)
class Crops:
    """A batch of training examples.

    Attributes:
        images: (B, 3, S, S) uint8.
        boxes: (B, 4) float32 x0, y0, x1, y1 of each crop in fractions of its image; x along the columns.
        indices: (B,) int64 place of each image in the folder.
        targets: (B,) int64 class by folder.
        draws: (B, DRAWS) float32 random numbers, for what is done to the crops in batch, on the device: train/augment.py.
    """

    images: Tensor
    boxes: Tensor
    indices: Tensor
    targets: Tensor
    draws: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.images, self.boxes, self.indices, self.targets, self.draws

    def pin_memory(self) -> "Crops":
        return Crops(*(t.pin_memory() for t in self.tensors()))

    def to(self, device: torch.device) -> "Crops":
        return Crops(*(t.to(device, non_blocking=True) for t in self.tensors()))


Example = tuple[
    Tensor, tuple[float, float, float, float], int, int, Tensor
]  # image, box, index, target, draws: a row of Crops


class RandomCrops(Dataset[Example]):
    """Crops by torchvision's RandomResizedCrop, and the random numbers for the rest; addressed by (epoch, image)."""

    def __init__(self, folder: ImageSet, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.size = [recipe.image_size, recipe.image_size]
        self.scale, self.ratio = list(recipe.crop_scale), list(recipe.crop_ratio)

    def __getitem__(self, place: tuple[int, int]) -> Example:
        epoch, index = place
        image = self.folder.read(index)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
            torch.default_generator.manual_seed(seed_of(self.recipe.seed, epoch, index))
            top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
            draws = augmentation_draws()
        crop = F.resized_crop(image, top, left, height, width, self.size)
        columns, rows = image.size
        box = (left / columns, top / rows, (left + width) / columns, (top + height) / rows)
        return F.pil_to_tensor(crop), box, index, int(self.folder.targets[index]), draws


def collate(examples: list[Example]) -> Crops:
    images, boxes, indices, targets, draws = zip(*examples, strict=True)
    numbers = torch.tensor(boxes), torch.tensor(indices), torch.tensor(targets)
    return Crops(torch.stack(images), *numbers, torch.stack(draws))


def seed_of(*numbers: int) -> int:
    """A well-mixed 32-bit seed, which is all that torch's CPU generator uses."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """(epoch, image) of every step from `first_step` to the end of training, as one stream over all epochs.

    Each epoch is a new permutation, cut into whole batches; of each batch, process r of w takes every w-th image.
    """

    def __init__(self, images: int, recipe: Recipe, first_step: int, rank: int, world: int) -> None:
        self.images, self.recipe = images, recipe
        self.first_step, self.rank, self.world = first_step, rank, world
        self.steps_per_epoch = images // recipe.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        size = self.recipe.batch_size
        for step in range(self.first_step, self.first_step + len(self)):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == self.first_step:
                generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, epoch))
                order = torch.randperm(self.images, generator=generator).tolist()
            whole = order[batch * size : (batch + 1) * size]
            yield [(epoch, index) for index in whole[self.rank :: self.world]]
