"""Make a label set of published label maps. They have no tail: a class that is not stored counts as 0, as for their authors.

Files are read in the order of their keys, a few hundred at a time, by several processes. A rerun keeps finished shards.

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

from annotate.convert import REFUSED
from annotate.interchange.axes import SAMPLE, decide_axes
from annotate.interchange.published_maps import Place, index_folder, index_tar, load_maps, read_maps, with_extensions
from annotate.label_folder import finish, prepare, write_lock
from annotate.run import AnnotateConfig, load_annotator
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.sources import find_images
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import write_shard
from relabel.runtime.defaults import SHARD_SIZE, Axes
from relabel.runtime.distributed import Processes, readable_errors
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.workers import decoding_workers, init_worker

logger = logging.getLogger(__name__)

SINGLE_PROCESS = Processes(0, 1, torch.device("cpu"))
READ_BATCH = 256  # maps that are read at a time: 5 MB of 15x15x5


def import_maps(
    source: Path,
    labels: Path,
    num_classes: int,
    axes: Axes | Literal["auto"] = "yx",
    images: Path | str | None = None,
    shard_size: int = SHARD_SIZE,
    judge: AnnotateConfig | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Make a label set of published maps.

    Args:
        source: a folder or a tar of CLASS/NAME.pt files, at any depth.
        num_classes: of the annotator that made them.
        axes: "yx" if a map's first axis is the rows of the image, "xy" if it was stored transposed, "auto" to let the
            annotator `judge`, on `device`, decide on a sample of the images (annotate/interchange/axes.py).
        images: the images they were made from; gives keys their true extensions (else .JPEG), and must hold them all.
        workers: processes that read; as many as there are cores if None, and if 0 the main one reads.
    Raises:
        InputError: no maps there, a compressed tar, maps without an image, files that are no such tensors (all of a
            shard's are named), or another label set in the folder.
    """
    places = index_tar(source) if source.is_file() else index_folder(source)
    image_set = find_images(images) if images is not None else None
    if image_set is not None:
        places = with_extensions(places, image_set)
    keys = sorted(places)
    if axes == "auto":
        if image_set is None or judge is None:
            raise InputError("--axes auto needs images and an annotator to judge by: pass --images and --model")
        axes = detect_axes(places, image_set, judge, num_classes, choose_device(device))
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
            for shard, maps in read_shards(pending, files, manifest, decoding_workers(workers)):
                of_shard = manifest.images_of(shard)
                append_shard_line(labels, write_shard(labels, shard, keys[of_shard.start : of_shard.stop], maps, manifest))
            finish(labels, manifest)
    except OSError as error:
        raise InputError(f"cannot read {source} or write {labels}: {error}. Finished shards are safe; rerun") from error


def detect_axes(
    places: dict[str, Place], image_set: ImageSet, judge: AnnotateConfig, num_classes: int, device: torch.device
) -> Axes:
    """Decide on a random sample of the maps, and say by what margin."""
    annotator, squash = load_annotator(judge, device)
    classes = annotator.classifier.num_classes
    if classes != num_classes:
        raise InputError(f"--axes auto: {judge.model} has {classes} classes, the maps {num_classes}; they must be the same")
    if annotator.kind == "token":
        logger.warning(f"{annotator.name}: {REFUSED['token']}; another --model would judge better")
    keys = sorted(places)
    sample = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values.tolist()
    maps = load_maps([places[keys[i]] for i in sample], "yx", num_classes)
    verdict = decide_axes(list(maps), [image_set.index(keys[i]) for i in sample], image_set, annotator, squash)
    logger.info(str(verdict))
    return verdict.axes


class MapFiles(Dataset[tuple[Tensor, list[str]]]):
    """`read_maps` of the files in a range of all keys' places, for processes that read."""

    def __init__(self, places: list[Place], axes: Axes, manifest: Manifest) -> None:
        self.places, self.axes, self.num_classes = places, axes, manifest.num_classes
        self.shape = (2, manifest.topk, *(manifest.grid[::-1] if axes == "xy" else manifest.grid))

    def __getitem__(self, part: range) -> tuple[Tensor, list[str]]:
        return read_maps(self.places[part.start : part.stop], self.axes, self.num_classes, self.shape)


def read_shards(pending: list[int], files: MapFiles, manifest: Manifest, workers: int) -> Iterator[tuple[int, LabelMaps]]:
    """The maps of each pending shard, in order.

    Raises:
        InputError: files of a shard are unfit; all of them are named together.
    """
    parts = {shard: read_ranges(shard, manifest) for shard in pending}
    wanted = [part for of_shard in parts.values() for part in of_shard]
    done = manifest.image_count - sum(map(len, wanted))
    loader = DataLoader(
        files,
        batch_size=None,
        sampler=wanted,
        num_workers=workers if wanted else 0,
        worker_init_fn=init_worker,
    )
    with tqdm(total=manifest.image_count, initial=done, unit="map", desc="import", disable=None) as bar:
        read = iter(loader)
        for shard, of_shard in parts.items():
            made: list[Tensor] = []
            unfit: list[str] = []
            for part in of_shard:
                maps, messages = next(read)
                made.append(maps)
                unfit += messages
                bar.update(len(part))
            if unfit:
                listed = "\n  ".join(unfit)
                found = f"{len(unfit)} unfit maps in shard {shard} of {manifest.shard_count}"
                raise InputError(f"{found}:\n  {listed}\nMend them and rerun")
            scores, classes = torch.cat(made).unbind(1)
            yield shard, LabelMaps(scores, classes.int(), torch.zeros(len(scores), *manifest.grid))


def read_ranges(shard: int, manifest: Manifest) -> list[range]:
    """The places of a shard's maps among all, in the parts that are read at a time."""
    images = manifest.images_of(shard)
    return [images[at : at + READ_BATCH] for at in range(0, len(images), READ_BATCH)]
