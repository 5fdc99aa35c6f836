"""`relabel export-labels`: write a label set as the store of another project, complete or not at all.

Shapes: N regions of an image, k classes stored per region, C classes.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from annotate.interchange.export_maps import TOKENS_ADVICE, check_grid, map_file
from annotate.interchange.fkd import ENDING, TRAINER_TOPK, fkd_file
from annotate.interchange.image_folder import image_folder_order, report, stem_of
from annotate.interchange.ml_dr import CONFIG, ml_dr_config, ml_dr_file, saved
from annotate.interchange.ml_dr import ENDING as ML_DR_ENDING
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC, LabelRegions, window_of
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import ForeignFormat
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_folder

logger = logging.getLogger(__name__)

Written = tuple[Path, bytes]  # a file of a store, below its folder, and its content


def export_labels(
    labels: Path, output: Path, kind: ForeignFormat, images: Path | str | None = None, crop_size: int | None = None
) -> int:
    """Write the store; returns of how many images.

    Args:
        images: of the label set; only ml-dr's store needs them.
        crop_size: pixels of the side of ml-dr's crops; None for what the annotator saw.
    Raises:
        InputError: no label set, labels that the format cannot hold or that its trainer would misread, an output folder that
            is not empty, a key that points outside of it, or a full disk.
    """
    if kind != "ml-dr" and (images is not None or crop_size is not None):
        raise InputError(f"--images and --crop-size are for ml-dr, not for {kind}; leave them out")
    if kind == "tiny-vit":
        raise InputError(
            "TinyViT's store has a seed for each crop instead of a box, and a label set has boxes: which seeds draw them is"
            " not known. Use fkd or ml-dr"
        )
    if kind in ("relabel", "token-labeling"):
        maps = LabelStore.open(labels, LabelMaps).check()
        check_grid(maps, kind)
        if kind == "token-labeling":
            logger.warning(TOKENS_ADVICE)
        return write_store(maps, output, of_images(maps, ".pt", lambda row: map_file(maps.gather(row), kind)))
    regions = LabelStore.open(labels, LabelRegions).check()
    check_regions(regions, kind)
    if kind == "fkd":
        folder = Path("imagenet", "train")
        return write_store(regions, output, of_images(regions, ENDING, lambda row: fkd_content(regions, row), folder))
    if images is None:
        raise InputError("ml-dr's store has numbers of images and boxes in pixels; pass --images")
    return write_store(regions, output, ml_dr_files(regions, find_images(images), crop_size))


def write_store(store: LabelStore[Any], output: Path, files: Iterator[Written]) -> int:
    """Write the files below a folder that is complete or absent; returns the number of images."""
    with atomic_folder(output) as unfinished:
        for path, content in tqdm(files, desc="export", unit="img", disable=None):
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_bytes(content)
    return len(store)


def of_images(
    store: LabelStore[Any], ending: str, content: Callable[[Tensor], bytes], folder: Path = Path()
) -> Iterator[Written]:
    """FOLDER/CLASS/NAME + ending of every image; the name is cut at its first dot, as the readers of these formats do.

    Args:
        content: of the image in a row (1,).
    """
    paths = [folder / f"{stem_of(key)}{ending}" for key in store.keys]  # checked: none points outside
    key_of: dict[Path, str] = {}
    for path, key in zip(paths, store.keys, strict=True):
        if key_of.setdefault(path, key) != key:
            raise InputError(f"{key_of[path]} and {key} would both be written to {path}; this format cannot hold both")
    return ((path, content(torch.tensor([row]))) for row, path in enumerate(paths))


def check_regions(store: LabelStore[LabelRegions], kind: ForeignFormat) -> None:
    """Raises InputError for regions that the format cannot hold, or that its trainer would misread."""
    counts = store.region_counts()
    without = int((counts == 0).sum())
    if without:
        raise InputError(f"{without} images of {store.labels} have no regions; {kind} needs them of every image")
    if store.region_flags() & (PHOTOMETRIC | ERASED):
        raise InputError(
            f"{store.labels} has crops whose colours were changed, or that were blanked in part, before they were answered."
            f" {kind} would need to know how, and a label set does not store that"
        )
    topk = store.manifest.topk
    if kind == "fkd" and topk not in TRAINER_TOPK:
        raise InputError(
            f"{store.labels} has {topk} classes per region. FKD's trainer divides the rest by C - 5 or C - 10, whatever the"
            " file has; annotate with --topk 5 or 10"
        )
    if kind == "ml-dr" and int(counts.min()) != int(counts.max()):
        raise InputError(
            f"{store.labels} has from {int(counts.min())} to {int(counts.max())} regions per image; ml-dr has one number of"
            " crops for all"
        )


def probabilities(regions: LabelRegions, num_classes: int) -> np.ndarray:
    """(N, k) float64 probabilities of the stored classes, of the regions of one image (B = 1)."""
    scores, tail = regions.scores[0].double().numpy(), regions.tail[0].double().numpy()
    stored = np.exp(scores)
    total = stored.sum(1) + (num_classes - scores.shape[1]) * np.exp(tail)
    probs: np.ndarray = stored / total[:, None]
    return probs


def present_regions(store: LabelStore[LabelRegions], row: Tensor) -> LabelRegions:
    """Those that the image in a row (1,) has, without padding."""
    regions = store.read(row)
    n = int(regions.count[0])
    return LabelRegions(*(t if name == "count" else t[:, :n] for name, t in regions.tensors().items()))


def fkd_content(store: LabelStore[LabelRegions], row: Tensor) -> bytes:
    regions = present_regions(store, row)
    mirrored = (regions.flags[0] & MIRRORED).bool().numpy()
    classes = regions.classes[0].numpy().astype(np.int64)
    probs = probabilities(regions, store.manifest.num_classes)
    return fkd_file(regions.boxes[0].double().numpy(), mirrored, classes, probs)


def ml_dr_files(store: LabelStore[LabelRegions], image_set: ImageSet, crop_size: int | None) -> Iterator[Written]:
    """The settings, and INDEX.pth.tar of every image.

    Raises:
        InputError: the images are not those of the label set, or the crops' size is not known.
    """
    manifest = store.manifest
    known, given = set(store.keys), set(image_set.keys)
    report(str(store.labels), image_set, sorted(given - known), sorted(known - given))
    side = crop_size or (manifest.input_size[0] if manifest.input_size else None)
    if side is None:
        raise InputError(f"{store.labels} does not say what size its crops had; pass --crop-size, such as 224")
    assert manifest.regions is not None
    normalisation = (manifest.mean, manifest.std) if manifest.mean and manifest.std else ()
    config = ml_dr_config(manifest.regions, manifest.topk, manifest.num_classes, side, *normalisation)
    return itertools.chain([(Path(CONFIG), saved(config))], ml_dr_images(store, image_set))


def ml_dr_images(store: LabelStore[LabelRegions], image_set: ImageSet) -> Iterator[Written]:
    rows = store.rows(image_set.keys)
    for number, index in enumerate(image_folder_order(image_set).tolist()):
        regions = present_regions(store, rows[index : index + 1])
        with image_set.open_image(index) as encoded:
            windows = [window_of(box, encoded.width, encoded.height) for box in regions.boxes[0]]
        mirrored = (regions.flags[0] & MIRRORED).bool().tolist()
        probs = probabilities(regions, store.manifest.num_classes).tolist()
        content = ml_dr_file(number, windows, mirrored, regions.classes[0].tolist(), probs)
        yield Path(f"{number}{ML_DR_ENDING}"), content
