"""Random crops of the training images: one box cuts the image and, later, pools the label map. Or crops that are stored.

A crop depends only on (seed, epoch, image): not on the number of workers or processes, nor on where a run was resumed.

Shapes: B crops of a batch, n crops of an image, S pixels of a crop's side.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, Sampler

from relabel.images.decoding import EncodedImage
from relabel.images.image_set import ImageSet
from relabel.images.windows import Window, draw_window
from relabel.labels.boxes import covered
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import SparseLogits
from relabel.labels.stored import StoredLabels
from relabel.runtime.workers import in_shared_memory
from train.augment import MIRROR, augmentation_draws
from train.recipe import Recipe
from train.seeds import seed_of
from train.stored_crops import StoredCrops, Taken


@dataclass(frozen=True)
class Crops:
    """A batch of training examples.

    Attributes:
        images: (B, 3, S, S) uint8, channels last in memory, as they are decoded and convolutions prefer them.
        boxes: (B, 4) float32 x0, y0, x1, y1 of each crop in fractions of its image, or of what its label map covers; x along
            the columns.
        mirrored: (B,) bool, whether the step is to mirror the crop, on the device. Its box is that of the unmirrored crop.
        indices: (B,) int64 index of each image in the image set. They stay on the host, as do the row numbers of label maps
            that are not in a GPU's memory.
        targets: (B,) int64 ground-truth labels.
        draws: (B, DRAWS) float32 random numbers for the colour augmentation, which the step does on the device.
        maps: the images' label maps, where decoding workers read them because they are not in the device's memory.
        numbers: (B,) int64 which of its image's stored regions each crop is, or RANDOM (train/stored_crops.py); None if no
            regions are used.
        answers: the answers to those regions, where decoding workers read them.
    """

    images: Tensor
    boxes: Tensor
    mirrored: Tensor
    indices: Tensor
    targets: Tensor
    draws: Tensor
    maps: LabelMaps | None = None
    numbers: Tensor | None = None
    answers: SparseLogits | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.named_tensors().values())

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor under the name of its field; those of labels as FIELD.NAME."""
        named: dict[str, Tensor] = {}
        for field, value in vars(self).items():
            if isinstance(value, StoredLabels):
                named |= {f"{field}.{name}": tensor for name, tensor in value.tensors().items()}
            elif value is not None:
                named[field] = value
        return named

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "Crops":
        """The inverse of `named_tensors`."""
        fields: dict[str, Any] = {name: tensor for name, tensor in named.items() if "." not in name}
        for field, kind in (("maps", LabelMaps), ("answers", SparseLogits)):
            of_labels = {name.partition(".")[2]: t for name, t in named.items() if name.startswith(f"{field}.")}
            if of_labels:
                fields[field] = kind(**of_labels)
        return cls(**fields)

    def pin_memory(self) -> "Crops":
        return Crops.from_tensors({name: t.pin_memory() for name, t in self.named_tensors().items()})

    def to(self, device: torch.device) -> "Crops":
        stays = ("indices",)
        named = self.named_tensors().items()
        return Crops.from_tensors({name: t if name in stays else t.to(device, non_blocking=True) for name, t in named})


OPENED_TOGETHER = 16  # images


class Cut(NamedTuple):
    """What is known of an image's crops besides their pixels.

    Attributes:
        windows: of its n crops.
        reduction: by which the image is to be decoded; windows begin and end at multiples of it.
        extent: x0, y0, x1, y1 in pixels of what boxes are fractions of.
        draws: (n, DRAWS) random numbers for the other augmentations.
        taken: the regions that the crops are, if regions are used.
    """

    windows: list[Window]
    reduction: int
    extent: tuple[float, float, float, float]
    draws: Tensor
    taken: Taken | None


class RandomCrops(Dataset[Crops]):
    """Batches of random resized crops, with random numbers for the other augmentations.

    dataset[[(epoch, index), ...]] has the crops of these images, those of one image next to each other. For a DataLoader
    with `batch_size=None` and TrainingBatches as its sampler.

    Args:
        read_maps: (n,) indices of images -> their label maps on the host; None if the crops come without maps.
        stored: where crops are taken from stored regions; None if all are drawn.
        with_answers: whether the answers to the regions come with the crops.
        window: of label maps that cover only the central square of each image, as in their manifest. Crops are drawn inside
            it, and boxes are fractions of it.
    """

    def __init__(
        self,
        image_set: ImageSet,
        recipe: Recipe,
        read_maps: Callable[[Tensor], LabelMaps] | None = None,
        stored: StoredCrops | None = None,
        with_answers: bool = False,
        window: float | None = None,
    ) -> None:
        self.image_set, self.recipe, self.read_maps = image_set, recipe, read_maps
        self.stored, self.with_answers, self.window = stored, with_answers, window

    def __getitem__(self, places: Sequence[tuple[int, int]]) -> Crops:
        n, side = self.recipe.crops_per_image, self.recipe.image_size
        pixels = torch.empty(len(places), n, side, side, 3, dtype=torch.uint8)
        cuts: list[Cut] = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
            for first in range(0, len(places), OPENED_TOGETHER):
                some = slice(first, first + OPENED_TOGETHER)
                cuts += self.cut_together(places[some], pixels[some])
        extents = np.array([cut.extent for cut in cuts])[:, np.newaxis]
        origins = extents[..., [0, 1, 0, 1]]
        boxes = (np.array([cut.windows for cut in cuts]) - origins) / (extents[..., [2, 3, 2, 3]] - origins)
        indices = np.array([index for _, index in places]).repeat(n)
        draws = torch.cat([cut.draws for cut in cuts])
        mirrored = draws[:, MIRROR] < self.recipe.hflip
        taken = Taken.of_batch([cut.taken for cut in cuts if cut.taken is not None])
        crops = Crops(
            pixels.flatten(0, 1).permute(0, 3, 1, 2),
            torch.from_numpy(boxes.reshape(-1, 4).astype(np.float32)),
            mirrored if taken is None else taken.mirrored(mirrored),
            torch.from_numpy(indices),
            torch.from_numpy(self.image_set.targets[indices]),
            draws,
            self.read_maps(torch.from_numpy(indices)) if self.read_maps is not None else None,
            taken.numbers if taken is not None else None,
            taken.logits() if taken is not None and self.with_answers else None,
        )
        return Crops.from_tensors({name: in_shared_memory(tensor) for name, tensor in crops.named_tensors().items()})

    def cut_together(self, places: Sequence[tuple[int, int]], pixels: Tensor) -> list[Cut]:
        """Open all of these images before the first is decoded, which takes less time than one after the other: decoding
        leaves little of the processor's caches to the many small steps before it.

        Args:
            pixels: (images, n, S, S, 3) uint8, receives the crops.
        """
        with ExitStack() as files:
            images = [files.enter_context(self.image_set.open_image(index)) for _, index in places]
            cuts = [self.draw(image, *place) for image, place in zip(images, places, strict=True)]
            for image, cut, crops in zip(images, cuts, pixels, strict=True):
                cut_out(image, cut, crops)
        return cuts

    def draw(self, image: EncodedImage, epoch: int, index: int) -> Cut:
        """Draw the crops of an image, or take them from its stored regions."""
        recipe = self.recipe
        taken = self.stored.take(epoch, index) if self.stored is not None else None
        size = image.width, image.height
        extent = covered(*size, self.window)
        left, top = math.ceil(extent[0]), math.ceil(extent[1])
        inner = math.floor(extent[2]) - left, math.floor(extent[3]) - top
        stored = taken.windows(*size) if taken is not None else [None] * recipe.crops_per_image
        drawn, draws = draw_crops(image.name, inner, recipe, seed_of(recipe.seed, epoch, index), stored)
        windows = [s or (left + d[0], top + d[1], left + d[2], top + d[3]) for s, d in zip(stored, drawn, strict=True)]
        # an answer is to the very pixels of its region
        reduction = reduction_for(windows, recipe.image_size) if recipe.reduced_decode and not any(stored) else 1
        return Cut([aligned(window, reduction) for window in windows], reduction, extent, draws, taken)


def cut_out(image: EncodedImage, cut: Cut, crops: Tensor) -> None:
    """Decode an image and write its crops to (n, S, S, 3) uint8."""
    pixels, reduction = image.pixels(cut.reduction)
    for crop, window in zip(crops, cut.windows, strict=True):
        left, top, right, bottom = (edge // reduction for edge in window)
        crop.copy_(resized(pixels[top:bottom, left:right], crop.shape[0]))


def draw_crops(
    name: str, size: tuple[int, int], recipe: Recipe, seed: int, stored: Sequence[Window | None]
) -> tuple[list[Window], Tensor]:
    """Draw the windows of an image's crops, and (crops, DRAWS) random numbers for the other augmentations.

    Seeds torch's global generator, and draws from it.

    Args:
        name, size: of the image, or of the part that crops are drawn from, as `draw_window` takes them.
        stored: the window of each crop if it need not be drawn.
    """
    torch.default_generator.manual_seed(seed)
    windows, draws = [], []
    for given in stored:
        windows.append(given or draw_window(name, size, recipe.crop_scale, recipe.crop_ratio))
        draws.append(augmentation_draws())
    return windows, torch.stack(draws)


def reduction_for(windows: list[Window], side: int) -> int:
    """The largest of 1, 2, 4 and 8 by which an image can be reduced so that every window keeps side x side pixels."""
    for reduction in (8, 4, 2):
        within = [aligned(window, reduction) for window in windows]
        if min(min(right - left, bottom - top) for left, top, right, bottom in within) >= reduction * side:
            return reduction
    return 1


def aligned(window: Window, reduction: int) -> Window:
    """The largest window inside this one whose edges are multiples of `reduction`: whole pixels of the reduced image."""
    left, top, right, bottom = window
    return (
        -(-left // reduction) * reduction,
        -(-top // reduction) * reduction,
        right // reduction * reduction,
        bottom // reduction * reduction,
    )


def resized(pixels: np.ndarray, side: int) -> Tensor:
    """Resize by torch's bilinear filter, as torchvision does with tensors.

    Values differ by at most 1 from those of Pillow's, which rounds its weights to 22 bits where torch rounds them to 15.

    Args:
        pixels: (H, W, 3) uint8.
    Returns:
        (side, side, 3) uint8.
    """
    # of a copy: torch is only fast at a contiguous batch of images
    batch = torch.from_numpy(pixels[np.newaxis].copy()).permute(0, 3, 1, 2)
    return functional.interpolate(batch, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def prefetch(batches: Iterable[Crops], device: torch.device) -> Iterator[Crops]:
    """Yield the batches on the device. On CUDA each is copied while the step before it still runs."""
    if device.type != "cuda":
        yield from batches
        return
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for crops in batches:
        with torch.cuda.stream(copy_stream):
            crops_on_device = crops.to(device)
        compute_stream = torch.cuda.current_stream(device)
        compute_stream.wait_stream(copy_stream)
        for tensor in crops_on_device.tensors():
            if tensor.is_cuda:
                tensor.record_stream(compute_stream)  # keep its memory from a later copy until the step is done with it
        yield crops_on_device


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """(epoch, index) of the images of every step, from `first_step` to the end of training.

    An epoch has as many crops as there are images, rounded down to whole batches. With n crops per image, an epoch reads an
    n-th of the images, and a cycle of n epochs reads each image once, in the order of one random permutation. Of each batch,
    process r of w takes every w-th image, starting with the r-th.
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
            cycle, batch = divmod(step, self.steps_per_epoch * self.recipe.crops_per_image)
            if batch == 0 or step == self.first_step:
                generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, cycle))
                order = torch.randperm(self.images, generator=generator).tolist()
            indices = order[batch * size : (batch + 1) * size]
            yield [(step // self.steps_per_epoch, index) for index in indices[self.rank :: self.world]]
