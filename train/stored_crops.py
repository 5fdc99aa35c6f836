"""Crops that are taken from the stored regions of an image instead of being drawn.

Each visit to an image takes the next regions of a random order of them, so that all are seen equally often. What is taken
depends only on (seed, epoch, image).

Shapes: n crops of a visit, N regions of an image, k classes stored per region.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relabel.images.windows import Window
from relabel.labels.regions import MIRRORED, LabelRegions, SparseLogits, window_of
from relabel.labels.store import LabelStore
from train.recipe import Recipe
from train.seeds import REGION_STREAM, seed_of

RANDOM = -1  # the number of a crop that is not a stored region


@dataclass(frozen=True)
class Taken:
    """The regions of one visit to an image.

    Attributes:
        numbers: (n,) int64 number of each region; RANDOM for a crop that is to be drawn.
        regions: LabelRegions of n images with one region each; meaningless for crops that are to be drawn.
    """

    numbers: Tensor
    regions: LabelRegions

    def windows(self, width: int, height: int, drawn: list[Window]) -> list[Window]:
        """The window of each crop: its region's, or the drawn one."""
        taken = zip(self.numbers.tolist(), self.regions.boxes[:, 0], drawn, strict=True)
        return [window if number == RANDOM else window_of(box, width, height) for number, box, window in taken]

    def mirrored(self, drawn: Tensor) -> Tensor:
        """(n,) bool: whether each crop is mirrored, as its region was or as drawn."""
        return torch.where(self.numbers == RANDOM, drawn, (self.regions.flags[:, 0] & MIRRORED).bool())

    def logits(self) -> SparseLogits:
        return self.regions.logits()


@dataclass(frozen=True)
class StoredCrops:
    """Takes the regions of training images from their store, in decoding processes.

    Attributes:
        row_of_image: (N,) int64 row of each training image in the store, on the host.
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
        regions = self.store.read(self.row_of_image[index : index + 1])
        regions = LabelRegions(*(t.expand(n, *t.shape[1:]) for t in regions.tensors().values()))
        visit = epoch // n  # with n crops an image, every image is read once in n epochs
        numbers = torch.tensor(region_numbers(recipe.seed, index, int(regions.count[0]), range(visit * n, visit * n + n)))
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
