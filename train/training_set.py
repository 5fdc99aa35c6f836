"""The data of a run: training images, their label maps and validation images, checked against each other."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relabel.images.classes import among_classes, classes_with_images
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.labels.whole_image import whole_image_top1
from relabel.runtime.errors import InputError
from relabel.runtime.machine import int_variable
from train.evaluation.multilabels import MultiLabels, read_multilabels
from train.options import TrainOptions
from train.recipe import Recipe
from train.stored_crops import StoredCrops, check_regions

logger = logging.getLogger(__name__)

SAMPLED_FILES = 1000  # whose sizes are looked at, in well under a second


@dataclass(frozen=True)
class TrainingSet:
    """Training images with their label maps, and validation images with all the classes that they show, if there are any.

    Attributes:
        store: the label set of --labels, of either kind.
        row_of_image: (N,) int64 row of each image's labels in `store`; None if the recipe's target reads no labels.
        maps, row_of_map: as those two, of --maps.
    """

    images: ImageSet
    store: LabelStore[Any] | None
    row_of_image: Tensor | None
    maps: LabelStore | None
    row_of_map: Tensor | None
    val: ImageSet | None
    multilabels: MultiLabels | None


def open_training_set(images: Path | str, recipe: Recipe, options: TrainOptions, world: int) -> TrainingSet:
    """Find the images and their label maps; leave out images that annotate could not read or that the recipe excludes.

    Raises:
        InputError: images without labels or of different classes, fewer images than a batch, or a batch that the processes
            cannot share.
    """
    image_set = find_images(images)
    # Opened if given, even if the target does not need it: runs with and without label maps then leave out the same images
    store = open_labels(options.labels, recipe)
    maps = open_maps(options.maps, recipe)
    unreadable = (maps or store).unreadable if store is not None else ()  # maps label what has no regions
    if unreadable:
        image_set = image_set.without(set(unreadable))
        logger.info(f"{len(unreadable)} images are left out: annotate could not read them")
    if store is not None and recipe.confirmed_only:
        left_out = unconfirmed_images(store, image_set)
        image_set = image_set.without(left_out)
        logger.info(f"{len(left_out)} images are left out: {store.labels} does not confirm their ground-truth label")
    row_of_image = None
    if store is not None and recipe.reads_labels:
        row_of_image = label_rows(store, image_set, some_missing=maps is not None)
    for labels in (store, maps):
        if labels is not None:
            warn_of_changed_files(labels, image_set)
    row_of_map = label_rows(maps, image_set) if maps is not None else None
    if recipe.reads_regions and store is not None and row_of_image is not None:
        check_regions(store, row_of_image, image_set, recipe, maps is not None)
    val_set = find_images(options.val) if options.val is not None else None
    if val_set is not None:
        val_set = among_classes(val_set, image_set.classes, f"the training images in {images}")
        present = classes_with_images(val_set.targets, len(val_set.classes))
        if present is not None:
            logger.info(f"{len(val_set.classes) - len(present)} of {len(val_set.classes)} classes have no validation images")
    multilabels = None
    if options.multilabels is not None and val_set is not None:
        multilabels = read_multilabels(options.multilabels, val_set)
    check_batch_size(image_set, recipe, world)
    return TrainingSet(image_set, store, row_of_image, maps, row_of_map, val_set, multilabels)


def open_labels(labels: Path | None, recipe: Recipe) -> LabelStore[Any] | None:
    kind = "regions" if recipe.reads_regions else "label maps"
    if labels is None:
        if not recipe.needs_labels:
            return None
        reader = f"target {recipe.target!r} reads {kind}" if recipe.reads_labels else "confirmed_only reads label maps"
        raise InputError(f"{reader}; give a label set with --labels")
    store = LabelStore.open(labels)
    if recipe.reads_labels and (store.manifest.regions is not None) != recipe.reads_regions:
        found = "regions" if store.manifest.regions else "label maps"
        advice = "the recipe regions" if store.manifest.regions else "another recipe, such as relabel"
        reason = "; a ViT's patch tokens can only be labelled by maps" if recipe.token_weight else ""
        raise InputError(f"{labels} holds {found}, but target {recipe.target!r} reads {kind}{reason}; use {advice}")
    return store.check(local_share())


def open_maps(labels: Path | None, recipe: Recipe) -> LabelStore | None:
    """The label maps that join a label set of regions."""
    if labels is None:
        return None
    if not recipe.reads_regions:
        raise InputError(f"--maps joins label maps to regions; target {recipe.target!r} reads no regions, leave it out")
    store = LabelStore.open(labels, LabelMaps)
    if store.manifest.window is not None:
        raise InputError(
            f"--maps {labels} covers only the central square of each image, and regions lie anywhere in it; train on the"
            " maps alone, or on the regions"
        )
    return store.check(local_share())


def local_share() -> slice:
    """Which shards this process checks, of those that the processes of its machine share."""
    return slice(int_variable("LOCAL_RANK", 0), None, int_variable("LOCAL_WORLD_SIZE", 1, at_least=1))


def stored_crops(data: TrainingSet, recipe: Recipe) -> StoredCrops | None:
    """Where crops come from that are not drawn; None if all are drawn."""
    if not recipe.reads_regions or data.store is None or data.row_of_image is None:
        return None
    return StoredCrops(data.store, data.row_of_image, recipe, random_too=data.maps is not None)


def check_batch_size(image_set: ImageSet, recipe: Recipe, world: int) -> None:
    """Raises InputError if a batch has more crops than there are images, or if `world` processes cannot share it evenly."""
    if len(image_set) < recipe.batch_size:
        raise InputError(
            f"{image_set.source} has {len(image_set)} images, fewer than one batch of {recipe.batch_size}; set batch_size"
        )
    crops = f" with {recipe.crops_per_image} crops per image" if recipe.crops_per_image > 1 else ""
    images_per_batch = recipe.batch_size // recipe.crops_per_image
    if images_per_batch % world:
        raise InputError(f"batch_size {recipe.batch_size}{crops} cannot be shared evenly by {world} processes")
    if recipe.cutmix and world > 1 and images_per_batch // world % 2:
        raise InputError(
            f"CutMix pairs the images of a process, but batch_size {recipe.batch_size}{crops} gives each of the {world}"
            " processes an odd number of images; choose a batch_size that gives an even number"
        )


def label_rows(store: LabelStore[Any], image_set: ImageSet, *, some_missing: bool = False) -> Tensor:
    """(N,) int64 row of each image; -1 for images that the store does not have, if some may be missing.

    Raises:
        InputError: images without labels, or classes that differ from the label set's.
    """
    mismatch = store.manifest.class_mismatch(image_set.classes)
    if mismatch is not None:
        raise InputError(
            f"{store.labels} does not match {image_set.source}: {mismatch}; use labels from an annotator with the images'"
            " classes, or tell annotate its classes with --classes"
        )
    rows = store.find(image_set.keys)
    missing = [image_set.keys[i] for i in (rows < 0).nonzero().flatten().tolist()]
    if missing and not some_missing:
        what = "label map" if store.manifest.regions is None else "regions"
        raise InputError(
            f"{len(missing)} of {len(image_set)} images of {image_set.source} have no {what} in {store.labels} (first:"
            f" {', '.join(missing[:3])}); annotate these images, or give those that the labels were made from"
        )
    return rows


def warn_of_changed_files(store: LabelStore[Any], image_set: ImageSet) -> None:
    """Warn if files of a sample of images have another size than when they were annotated. Copies in another size or format
    are fine to train on, since boxes are fractions of the image; other pictures under the same names are not.
    """
    sample = np.linspace(0, len(image_set) - 1, min(len(image_set), SAMPLED_FILES), dtype=int).tolist()
    sizes, rows = store.file_sizes, store.find([image_set.keys[i] for i in sample]).tolist()
    checked = [(i, sizes[row]) for i, row in zip(sample, rows, strict=True) if row >= 0 and sizes[row]]
    changed = [i for i, size in checked if image_set.file_size(i) != size]
    if changed:
        logger.warning(
            f"{len(changed)} of {len(checked)} image files have another size than when {store.labels} was made (first:"
            f" {image_set.keys[changed[0]]}); unless they still show the same pictures, annotate again into an empty"
            " folder"
        )


def unconfirmed_images(store: LabelStore[Any], image_set: ImageSet, batch_size: int = 1024) -> set[str]:
    """Keys of the images whose ground-truth label is not the top-1 class of their label map's mean logits.

    Source: Beyer et al. 2020, arXiv 2006.07159, who leave out images whose label a strong model does not confirm.
    """
    rows, targets = label_rows(store, image_set), torch.from_numpy(image_set.targets)
    left_out = set()
    for first in range(0, len(image_set), batch_size):
        part = slice(first, first + batch_size)
        maps = store.gather(rows[part])
        top1 = whole_image_top1(maps, store.manifest.num_classes)
        left_out |= {
            key for key, differs in zip(image_set.keys[part], (top1 != targets[part]).tolist(), strict=True) if differs
        }
    return left_out
