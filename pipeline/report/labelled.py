"""A label set together with the images it was made from: which row belongs to which image, and its ground-truth label.

Shapes: N images of the set that have labels.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.show.seen import default_classes
from relabel.images.classes import among_classes
from relabel.images.image_set import ImageSet
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """A label set and its images.

    Attributes:
        images: with the classes of the label set.
        rows: (N,) rows that have labels, in order.
        indices: (N,) index of each one's image.
        notes: what is missing, in words.
    """

    labels: Path
    store: LabelStore[Any]
    images: ImageSet
    rows: np.ndarray
    indices: np.ndarray
    notes: list[str]

    @property
    def given(self) -> np.ndarray:
        """(N,) int64 ground-truth labels."""
        given: np.ndarray = self.images.targets[self.indices]
        return given

    def rows_by_index(self) -> np.ndarray:
        """(number of images,) the row of every image of the image set; -1 for those without labels."""
        rows = np.full(len(self.images), -1)
        rows[self.indices] = self.rows
        return rows


def open_labelled(labels: Path, images: ImageSet) -> Labelled:
    """Open a label set, check every byte of it, and find its images.

    Raises:
        InputError: it is not a complete label set, or was made from other images or classes.
    """
    store: LabelStore[Any] = LabelStore.open(labels).check()
    manifest = store.manifest
    images = with_classes_of(manifest, images, labels)
    found = store.find(images.keys).numpy()
    index_of = np.full(len(store), -1)
    index_of[found[found >= 0]] = np.flatnonzero(found >= 0)
    without = np.flatnonzero(index_of < 0)
    if len(without):
        raise InputError(
            f"{labels} was made from other images: {len(without)} of its {len(store)} keys are not in {images.source}"
            f" (first: {store.keys[without[0]]}, found: {images.keys[0]}); give the images that it was made from"
        )
    answered = index_of >= 0
    notes = []
    if manifest.regions is not None:
        answered = store.region_counts().numpy() > 0
        if not answered.all():
            notes.append(f"{labels}: {int((~answered).sum()):,} images have no regions")
    unlabelled = np.flatnonzero(found < 0)
    if len(unlabelled):
        first = images.keys[unlabelled[0]]
        unreadable = f"; {len(store.unreadable):,} could not be read when it was made" if store.unreadable else ""
        notes.append(
            f"{labels} has no labels of {len(unlabelled):,} of the {len(images):,} images (first: {first}){unreadable}"
        )
    for note in notes:
        logger.warning(note)
    rows = np.flatnonzero(answered)
    if not len(rows):
        raise InputError(f"{labels} has no labels of any image in {images.source}; annotate again")
    return Labelled(labels, store, images, rows, index_of[rows], notes)


def with_classes_of(manifest: Manifest, images: ImageSet, labels: Path) -> ImageSet:
    """The images with the classes of a label set; if it names none, those of the folders, or ImageNet's if it has as many.

    Raises:
        InputError: a folder is none of these classes.
    """
    mismatch = manifest.class_mismatch(images.classes) if manifest.classes is None else None
    known = default_classes(manifest.num_classes) if mismatch is not None else manifest.classes
    if known is not None:
        return among_classes(images, tuple(known), str(labels))
    if mismatch is not None:
        raise InputError(
            f"{labels / MANIFEST} names no classes, so they are those of the folders in {images.source}, and {mismatch};"
            " give the images that it was made from"
        )
    return images


def check_same_classes(first: Labelled, second: Labelled) -> None:
    """Raises InputError unless two label sets answer for the same classes and the same part of each image."""
    a, b = first.store.manifest, second.store.manifest
    mismatch = a.class_mismatch(b.classes) if a.classes is not None and b.classes is not None else None
    if a.num_classes != b.num_classes or mismatch is not None:
        reason = mismatch or f"{a.num_classes} and {b.num_classes} classes"
        raise InputError(f"{first.labels} and {second.labels} cannot stand side by side: {reason}")
    if a.window != b.window:
        raise InputError(
            f"{first.labels} and {second.labels} do not cover the same part of each image (window {a.window} and {b.window}"
            f" in {MANIFEST}); they cannot stand side by side"
        )
