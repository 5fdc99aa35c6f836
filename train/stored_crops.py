"""Crops that are taken from the stored regions of an image instead of being drawn.

Each visit to an image takes the next regions of a random order of them, so that all are seen equally often. What is taken
depends only on (seed, epoch, image).

Shapes: n crops of a visit, N regions of an image, k classes stored per region.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.images.image_set import ImageSet
from relabel.images.windows import Window
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC, LabelRegions, SparseLogits, window_of
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from train.recipe import Recipe
from train.seeds import REGION_STREAM, seed_of

logger = logging.getLogger(__name__)

RANDOM = -1  # the number of a crop that is not a stored region


@dataclass(frozen=True)
class Taken:
    """The regions of one visit to an image, or of the visits of a batch.

    Attributes:
        numbers: (n,) int64 number of each region; RANDOM for a crop that is to be drawn.
        regions: LabelRegions of n images with one region each; meaningless for crops that are to be drawn.
    """

    numbers: Tensor
    regions: LabelRegions

    @classmethod
    def of_batch(cls, visits: Sequence["Taken"]) -> "Taken | None":
        """Those of all visits, in their order; None of none."""
        if not visits:
            return None
        named = [visit.regions.tensors() for visit in visits]
        regions = LabelRegions(**{name: torch.cat([of[name] for of in named]) for name in named[0]})
        return cls(torch.cat([visit.numbers for visit in visits]), regions)

    def windows(self, width: int, height: int) -> list[Window | None]:
        """The window of each region; None for a crop that is to be drawn."""
        taken = zip(self.numbers.tolist(), self.regions.boxes[:, 0], strict=True)
        return [None if number == RANDOM else window_of(box, width, height) for number, box in taken]

    def mirrored(self, drawn: Tensor) -> Tensor:
        """(n,) bool: whether each crop is mirrored, as its region was or as drawn."""
        return torch.where(self.numbers == RANDOM, drawn, (self.regions.flags[:, 0] & MIRRORED).bool())

    def logits(self) -> SparseLogits:
        return self.regions.logits()


@dataclass(frozen=True)
class StoredCrops:
    """Takes the regions of training images from their store, in decoding processes.

    Attributes:
        row_of_image: (N,) int64 row of each training image in the store, on the host; -1 for images that are not in it.
        random_too: whether crops may also be drawn, as there are label maps for them.
    """

    store: LabelStore[LabelRegions]
    row_of_image: Tensor
    recipe: Recipe
    random_too: bool

    def take(self, epoch: int, index: int) -> Taken:
        """The regions of the crops of image `index` in this epoch."""
        recipe = self.recipe
        n = recipe.crops_per_image
        row = self.row_of_image[index : index + 1]
        regions = self.store.read(row.clamp(min=0))
        count = int(regions.count) if int(row) >= 0 else 0
        regions = LabelRegions(*(t.expand(n, *t.shape[1:]) for t in regions.tensors().values()))
        visit = epoch // n  # with n crops an image, every image is read once in n epochs
        numbers = torch.tensor(region_numbers(recipe.seed, index, count, range(visit * n, visit * n + n)))
        if self.random_too:
            draws = np.random.default_rng([recipe.seed, index, epoch, REGION_STREAM]).random(n)
            numbers[torch.from_numpy(draws >= recipe.region_share)] = RANDOM
        return Taken(numbers, regions.select(numbers.clamp(min=0)))


def region_numbers(seed: int, index: int, count: int, places: range) -> list[int]:
    """What is at these places of an endless sequence of random orders of an image's regions; RANDOM if it has none."""
    if count == 0:
        return [RANDOM] * len(places)
    orders = {place // count: np.empty(0, int) for place in places}
    for turn in orders:
        orders[turn] = np.random.default_rng(seed_of(seed, turn, index, REGION_STREAM)).permutation(count)
    return [int(orders[place // count][place % count]) for place in places]


def check_regions(
    store: LabelStore[LabelRegions], row_of_image: Tensor, image_set: ImageSet, recipe: Recipe, with_maps: bool
) -> None:
    """Say what the regions do not tell, and which settings do not reach them.

    Raises:
        InputError: images without regions, for which no label maps stand in.
    """
    counts, flags = store.region_counts()[row_of_image.clamp(min=0)], store.region_flags()
    counts[row_of_image < 0] = 0
    without = [image_set.keys[i] for i in (counts == 0).nonzero().flatten().tolist()]
    if without and not with_maps:
        raise InputError(
            f"{len(without)} of {len(image_set)} images have no regions in {store.labels} (first: {without[0]}); give label"
            " maps for them with --maps, or leave them out of the images"
        )
    if without:
        logger.info(f"{len(without)} images have no regions; their crops are random ones")
    if flags & (PHOTOMETRIC | ERASED):
        logger.warning(
            f"{store.labels}: the colours of some crops were changed, or parts of them blanked, before their answers were"
            " stored; the student sees the plain crops"
        )
    default = Recipe.__dataclass_fields__
    settings = [] if with_maps else ["crop_scale", "crop_ratio", "region_share"]  # maps are pooled over random crops
    settings += ["hflip"] if flags & MIRRORED else []
    unused = [name for name in settings if getattr(recipe, name) != default[name].default]
    if unused:
        logger.warning(
            f"{', '.join(unused)}: regions are cut and mirrored as they were stored in {store.labels}; to change that,"
            " annotate again with other options"
        )
    fewest = int(counts[counts > 0].min()) if len(without) < len(counts) else recipe.crops_per_image
    if fewest < recipe.crops_per_image:
        logger.warning(
            f"crops_per_image = {recipe.crops_per_image}, but some images have only {fewest} regions, so a batch has a crop"
            " of theirs several times"
        )
