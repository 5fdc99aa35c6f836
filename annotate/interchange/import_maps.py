"""Make a label set from published label maps. They have no tail: as in the paper's code, a class not stored counts as 0.

Several processes read the files in the order of their keys, a few hundred at a time. A rerun keeps finished shards.

Shapes: n maps, k classes kept per cell, H rows and W columns of the label map.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.config import AnnotateConfig
from annotate.convert import REJECTED
from annotate.interchange.axes import SAMPLE, decide_axes
from annotate.interchange.published_maps import Place, index_folder, index_tar, load_maps, read_maps, with_extensions
from annotate.label_folder import finish, prepare, write_lock
from annotate.models import load_annotator
from relabel.images.classes import warn_of_plain_order
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.sources import check_outside, find_images
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import write_shard
from relabel.runtime.defaults import SHARD_SIZE, Axes
from relabel.runtime.distributed import Processes, readable_errors
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.workers import batches_of, decoding_workers, in_shared_memory, init_worker

logger = logging.getLogger(__name__)

SINGLE_PROCESS = Processes(0, 1, torch.device("cpu"))
READ_BATCH = 256  # maps to read at a time; 5 MB for maps of 15x15x5


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
        if len(image_set.classes) == num_classes:
            warn_of_plain_order(
                image_set, str(source), "rename the class folders so that both orders agree (class01 ... class12)"
            )
    keys = sorted(places)
    if axes == "auto":
        if image_set is None or axes_annotator is None:
            raise InputError("--axes auto compares the maps with those of an annotator; pass --images and --model")
        axes = detect_axes(places, image_set, axes_annotator, num_classes, choose_device(device))
    first = load_maps([places[keys[0]]], axes, num_classes)
    _, _, topk, rows, columns = first.shape
    manifest = Manifest(
        model="published maps",
        model_kwargs={},
        weights=f"{source.name}, axes {axes}",
        weights_sha256=None,
        num_classes=num_classes,
        kind="imported",
        input_size=None,
        mean=None,
        std=None,
        interpolation=None,
        precision="float32",
        topk=topk,
        tail="zero",
        grid=(rows, columns),
        image_count=len(keys),
        image_digest=keys_digest(keys),
        shard_size=shard_size,
        timm_version=timm.__version__,
        torch_version=torch.__version__,
    )
    try:
        labels.mkdir(parents=True, exist_ok=True)
        with readable_errors(), write_lock(labels, SINGLE_PROCESS):
            pending = prepare(labels, manifest, SINGLE_PROCESS)
            files = MapFiles([places.pop(key) for key in keys], axes, manifest)
            for shard, maps in read_shards(pending, files, manifest, workers):
                images_of_shard = manifest.images_of(shard)
                shard_keys = keys[images_of_shard.start : images_of_shard.stop]
                append_shard_line(labels, write_shard(labels, shard, shard_keys, maps, manifest))
            finish(labels, manifest)
    except OSError as error:
        raise InputError(f"cannot read {source} or write {labels}: {error}. Finished shards are kept; rerun") from error


def detect_axes(
    places: dict[str, Place], image_set: ImageSet, config: AnnotateConfig, num_classes: int, device: torch.device
) -> Axes:
    """Compare a random sample of the maps with this annotator's, and log the margin."""
    annotator, squash = load_annotator(config, device)
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


class MapFiles(Dataset[tuple[Tensor, list[str]]]):
    """The maps in any range of places, as `read_maps` returns them, for reading processes."""

    def __init__(self, places: list[Place], axes: Axes, manifest: Manifest) -> None:
        self.places, self.axes, self.num_classes = places, axes, manifest.num_classes
        self.shape = (2, manifest.topk, *(manifest.map_grid[::-1] if axes == "xy" else manifest.map_grid))

    def __getitem__(self, part: range) -> tuple[Tensor, list[str]]:
        maps, unfit = read_maps(self.places[part.start : part.stop], self.axes, self.num_classes, self.shape)
        return in_shared_memory(maps), unfit


def read_shards(pending: list[int], files: MapFiles, manifest: Manifest, workers: int) -> Iterator[tuple[int, LabelMaps]]:
    """The maps of each pending shard, in order.

    Raises:
        InputError: a shard has invalid files; all of them are listed.
    """
    ranges = {shard: read_ranges(shard, manifest) for shard in pending}
    all_ranges = [part for parts in ranges.values() for part in parts]
    done = manifest.image_count - sum(map(len, all_ranges))
    loader = DataLoader(
        files,
        batch_size=None,
        sampler=all_ranges,
        num_workers=workers if all_ranges else 0,
        worker_init_fn=init_worker,
    )
    with tqdm(total=manifest.image_count, initial=done, unit="map", desc="import", disable=None) as bar:
        batches = iter(batches_of(loader))
        for shard, parts in ranges.items():
            batch_maps: list[Tensor] = []
            errors: list[str] = []
            for part in parts:
                maps, messages = next(batches)
                batch_maps.append(maps)
                errors += messages
                bar.update(len(part))
            if errors:
                listed = "\n  ".join(errors)
                found = f"{len(errors)} invalid maps in shard {shard} of {manifest.shard_count}"
                raise InputError(f"{found}:\n  {listed}\nFix them and rerun")
            scores, classes = torch.cat(batch_maps).unbind(1)
            yield shard, LabelMaps(scores, classes.int(), torch.zeros(len(scores), *manifest.map_grid))


def read_ranges(shard: int, manifest: Manifest) -> list[range]:
    """The rows of a shard's maps, in ranges of at most READ_BATCH."""
    images = manifest.images_of(shard)
    return [images[at : at + READ_BATCH] for at in range(0, len(images), READ_BATCH)]
