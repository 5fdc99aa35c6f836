"""The samples of other projects' stores, and what those projects' own readers make of them (samples/README.md)."""

import functools
import shutil
from pathlib import Path

import numpy as np

from annotate.interchange.image_regions import ImageRegions, RegionStore, to_label_regions
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.regions import LabelRegions

SAMPLES = Path(__file__).parent / "samples"
IMAGES = SAMPLES / "images" / "train"
CLASSES = 1000


@functools.cache
def sample_images() -> ImageSet:
    return find_images(IMAGES)


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(SAMPLES / f"{name}-expected.npz") as file:
        return dict(file)


def sizes() -> list[tuple[int, int]]:
    return [(int(w), int(h)) for w, h in expected("FKD")["image_sizes"]]


def copy_of(name: str, folder: Path) -> Path:
    """A copy of a sample, to spoil."""
    return Path(shutil.copytree(SAMPLES / name, folder / name))


def read_all(store: RegionStore) -> list[ImageRegions]:
    return [store.read(i, size) for i, size in enumerate(sizes())]


def targets_of(found: list[ImageRegions], regions: int, num_classes: int = CLASSES) -> np.ndarray:
    """(n, N, C) as a label set gives them back after it has rounded them."""
    stored = to_label_regions(found, sizes()[: len(found)], regions).as_stored(num_classes)
    result: np.ndarray = LabelRegions.from_stored(stored.tensors()).dense(num_classes).softmax(2).numpy()
    return result


def assert_as_their_reader(store: RegionStore, name: str, targets: str = "targets") -> None:
    theirs = expected(name)
    assert [str(key) for key in theirs["names"]] == list(sample_images().keys)
    found = read_all(store)
    assert np.abs(np.stack([image.boxes for image in found]) - theirs["boxes"]).max() <= 0.5
    assert np.array_equal(np.stack([image.flags for image in found]), theirs["mirrored"])
    difference = np.abs(targets_of(found, store.regions) - theirs[targets])
    assert difference.max() < 2e-3 and difference.mean() < 1e-4
