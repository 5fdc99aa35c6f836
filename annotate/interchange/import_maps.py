"""Make a label set from published label maps. They have no tail: as in the paper's code, a class not stored counts as 0.

Shapes: n maps, k classes kept per cell, H rows and W columns of the label map.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from annotate.config import AnnotateConfig
from annotate.convert import REJECTED
from annotate.interchange.axes import SAMPLE, decide_axes
from annotate.interchange.import_shards import Part, import_shards, imported_manifest, warn_of_class_order
from annotate.interchange.published_maps import Place, index_folder, index_tar, load_maps, read_maps, with_extensions
from annotate.models import load_annotator, with_card
from relabel.images.image_set import ImageSet
from relabel.images.sources import check_outside, find_images
from relabel.labels.layout import no_labels
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.runtime.defaults import SHARD_SIZE, Axes
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.workers import decoding_workers

logger = logging.getLogger(__name__)


def import_maps(
    source: Path,
    labels: Path,
    num_classes: int,
    axes: Axes | Literal["auto"] = "yx",
    images: Path | str | None = None,
    shard_size: int = SHARD_SIZE,
    axes_annotator: AnnotateConfig | None = None,
    workers: int | None = None,
    device: str | None = None,
    window: float | None = None,
) -> None:
    """Make a label set from published maps.

    Args:
        source: a folder or a tar of CLASS/NAME.pt files, at any depth.
        num_classes: number of classes of the annotator that made the maps.
        axes: "yx" if a map's first axis is the rows of the image, "xy" if it was stored transposed, "auto" to find out
            on a sample of the images with `axes_annotator`, on `device` (annotate/interchange/axes.py).
        images: the images that the maps were made from. They must include the image of every map, and give the keys
            their true extensions; without them every extension is .JPEG.
        workers: reading processes; None for one per core, 0 to read in the main process.
        window: if the maps cover only the central square of the image, its side as a share of the image's shorter side.
    Raises:
        InputError: no maps, a compressed tar, maps without an image, invalid files (all of a shard's are listed), or a
            different label set in the folder.
    """
    workers = decoding_workers(workers)
    if images is not None:
        check_outside(labels, images, "--labels")
    places = index_tar(source) if source.is_file() else index_folder(source)
    image_set = find_images(images) if images is not None else None
    if image_set is not None:
        places = with_extensions(places, image_set)
        warn_of_class_order(source, image_set, num_classes)
    keys = sorted(places)
    if axes == "auto":
        if image_set is None or axes_annotator is None:
            raise InputError("--axes auto compares the maps with those of an annotator; pass --images and --model")
        axes = detect_axes(places, image_set, axes_annotator, num_classes, choose_device(device))
    first = load_maps([places[keys[0]]], axes, num_classes)
    _, _, topk, rows, columns = first.shape
    manifest = imported_manifest(
        keys,
        model="published maps",
        weights=f"{source.name}, axes {axes}",
        num_classes=num_classes,
        topk=topk,
        tail="zero",
        grid=(rows, columns),
        shard_size=shard_size,
        window=window,
    )
    in_order = [places.pop(key) for key in keys]
    import_shards(source, labels, keys, manifest, MapReader(in_order, axes, manifest), workers)


def detect_axes(
    places: dict[str, Place], image_set: ImageSet, config: AnnotateConfig, num_classes: int, device: torch.device
) -> Axes:
    """Compare a random sample of the maps with this annotator's, and log the margin."""
    config, card = with_card(config)
    annotator, squash = load_annotator(config, device, card)
    classes = annotator.classifier.num_classes
    if classes != num_classes:
        raise InputError(
            f"--axes auto: {config.model} has {classes} classes, but the maps have {num_classes}; use a matching --model"
        )
    if annotator.kind == "token":
        logger.warning(f"{annotator.name}: {REJECTED['token']}; another --model would be more reliable")
    keys = sorted(places)
    sample = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values.tolist()
    maps = load_maps([places[keys[i]] for i in sample], "yx", num_classes)
    comparison = decide_axes(list(maps), [image_set.index(keys[i]) for i in sample], image_set, annotator, squash)
    logger.info(str(comparison))
    return comparison.axes


@dataclass(frozen=True)
class MapReader:
    """Reads the maps of any range of places."""

    places: list[Place]
    axes: Axes
    manifest: Manifest

    def __call__(self, images: range) -> Part:
        manifest = self.manifest
        grid = manifest.map_grid[::-1] if self.axes == "xy" else manifest.map_grid
        shape = (2, manifest.topk, *grid)
        maps, invalid = read_maps(self.places[images.start : images.stop], self.axes, manifest.num_classes, shape)
        if invalid:
            return Part(no_labels(manifest), invalid)
        scores, classes = maps.unbind(1)
        tail = torch.zeros(len(scores), *manifest.map_grid)
        return Part(LabelMaps(scores, classes.int(), tail).as_stored(manifest.num_classes), [])
