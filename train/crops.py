"""Random crops of the training images: one box cuts the image and, later, pools the label map.

A crop depends on (seed, epoch, image) alone: not on the number of workers or processes, nor on where a run was resumed.

Shapes: B crops of a batch, n crops of an image, S pixels of a crop's side.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import RandomResizedCrop

from relabel.images.image_set import ImageSet
from relabel.labels.maps import LabelMaps
from train.augment import augmentation_draws
from train.recipe import Recipe
from train.seeds import seed_of


@dataclass(frozen=True)
class Crops:
    """A batch of training examples.

    Attributes:
        images: (B, 3, S, S) uint8, channels last in memory, as Pillow decodes and convolutions like it.
        boxes: (B, 4) float32 x0, y0, x1, y1 of each crop in fractions of its image; x along the columns.
        indices: (B,) int64 place of each image in the set. They stay on the host, as row numbers of label maps that are
            not in a GPU's memory do.
        targets: (B,) int64 class by folder.
        draws: (B, DRAWS) float32 random numbers, for what is done to the crops in batch, on the device: train/augment.py.
        maps: the images' label maps, where decoding workers read them because they are not in the device's memory.
    """

    images: Tensor
    boxes: Tensor
    indices: Tensor
    targets: Tensor
    draws: Tensor
    maps: LabelMaps | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        of_maps = () if self.maps is None else (self.maps.scores, self.maps.classes, self.maps.tail)
        return self.images, self.boxes, self.indices, self.targets, self.draws, *of_maps

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Crops":
        """From what `tensors` gives."""
        images, boxes, indices, targets, draws, *of_maps = tensors
        return cls(images, boxes, indices, targets, draws, LabelMaps(*of_maps) if of_maps else None)

    def pin_memory(self) -> "Crops":
        return Crops.of(t.pin_memory() for t in self.tensors())

    def to(self, device: torch.device) -> "Crops":
        return Crops.of(t if t is self.indices else t.to(device, non_blocking=True) for t in self.tensors())


Window = tuple[int, int, int, int]  # left, top, right, bottom


class RandomCrops(Dataset[Crops]):
    """Crops by torchvision's RandomResizedCrop, and the random numbers for the rest; those of an image by (epoch, image).

    Args:
        maps_of: (n,) places of images -> their label maps on the host, where crops are to bring them along.
    """

    def __init__(self, image_set: ImageSet, recipe: Recipe, maps_of: Callable[[Tensor], LabelMaps] | None = None) -> None:
        self.image_set, self.recipe, self.maps_of = image_set, recipe, maps_of
        self.scale, self.ratio = list(recipe.crop_scale), list(recipe.crop_ratio)

    def __getitem__(self, place: tuple[int, int]) -> Crops:
        epoch, index = place
        side = self.recipe.image_size
        windows: list[Window] = []  # in the file's pixels
        draws: list[Tensor] = []
        columns = rows = reduction = 1

        def draw(image: Image.Image) -> None:
            nonlocal columns, rows, reduction
            columns, rows = image.size
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
                torch.default_generator.manual_seed(seed_of(self.recipe.seed, epoch, index))
                for _ in range(self.recipe.crops_per_image):
                    top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
                    windows.append((left, top, left + width, top + height))
                    draws.append(augmentation_draws())
            if self.recipe.reduced_decode:
                reduction = reduce_decoding(image, windows, side)

        image = self.image_set.read(index, draw)
        crops = [resized_window(image, window, reduction, side) for window in windows]
        boxes = np.array(windows) / (columns, rows, columns, rows)
        indices = torch.full((len(crops),), index)
        return Crops(
            torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2),
            torch.from_numpy(boxes.astype(np.float32)),
            indices,
            torch.full((len(crops),), int(self.image_set.targets[index])),
            torch.stack(draws),
            self.maps_of(indices) if self.maps_of is not None else None,
        )


def reduce_decoding(image: Image.Image, windows: list[Window], side: int) -> int:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 where every window still has side x side pixels of it.

    Returns:
        by how much: s, where pixel i of what is decoded shows pixels s * i to s * (i + 1) of the file; 1 for other formats.
    """
    shortest = min(min(right - left, bottom - top) for left, top, right, bottom in windows)
    by = max((s for s in (2, 4, 8) if shortest >= s * side), default=1)
    drafted = image.draft(None, (image.width // by, image.height // by))  # the smallest that Pillow has from there on
    return 1 if drafted is None else by


def resized_window(image: Image.Image, window: Window, reduction: int, side: int) -> Image.Image:
    """torchvision's resized_crop, for an image whose pixels are `reduction` of the window's."""
    left, top, right, bottom = (edge / reduction for edge in window)
    x, y = math.floor(left), math.floor(top)
    outer = image.crop((x, y, math.ceil(right), math.ceil(bottom)))  # else the filter would reach for pixels outside
    return outer.resize((side, side), Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y))


def collate(examples: list[Crops]) -> Crops:
    """All images' crops; those of one image lie side by side."""
    return Crops.of(torch.cat(of_all) for of_all in zip(*(crops.tensors() for crops in examples), strict=True))


def prefetch(batches: Iterable[Crops], device: torch.device) -> Iterator[Crops]:
    """Batches on the device. To CUDA they are copied beside the step before, which is still running there."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for crops in batches:
        with torch.cuda.stream(copying):
            there = crops.to(device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in there.tensors():
            if tensor.is_cuda:
                tensor.record_stream(computing)  # its memory is not taken for a later copy before the step is done with it
        yield there


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """(epoch, image) of every step from `first_step` to the end of training, as one stream over all epochs.

    An epoch has as many crops as there are images, in whole batches. With n crops an image it takes an n-th of the images,
    and n epochs in a row take each image once: a permutation, new for every n epochs, is cut into batches. Of each batch,
    process r of w takes every w-th image.
    """

    def __init__(self, images: int, recipe: Recipe, first_step: int, rank: int, world: int) -> None:
        self.images, self.recipe = images, recipe
        self.first_step, self.rank, self.world = first_step, rank, world
        self.steps_per_epoch = images // recipe.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        size = self.recipe.batch_size // self.recipe.crops_per_image  # images of a batch
        for step in range(self.first_step, self.first_step + len(self)):
            turn, batch = divmod(step, self.steps_per_epoch * self.recipe.crops_per_image)
            if batch == 0 or step == self.first_step:
                generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, turn))
                order = torch.randperm(self.images, generator=generator).tolist()
            whole = order[batch * size : (batch + 1) * size]
            yield [(step // self.steps_per_epoch, index) for index in whole[self.rank :: self.world]]
