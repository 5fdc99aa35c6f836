"""Write a label set from what reading processes make of another project's files, shard by shard.

They read in the order of the keys, a few hundred images at a time. A rerun keeps finished shards.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.label_folder import finish, prepare, write_lock
from annotate.loop import concatenate
from relabel.images.classes import warn_of_plain_order
from relabel.images.image_set import ImageSet, keys_digest
from relabel.labels.manifest import Manifest
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import Fingerprints, write_shard
from relabel.labels.stored import StoredLabels
from relabel.runtime.distributed import Processes, readable_errors
from relabel.runtime.errors import InputError
from relabel.runtime.workers import batches_of, in_shared_memory, init_worker

logger = logging.getLogger(__name__)

SINGLE_PROCESS = Processes(0, 1, torch.device("cpu"))
MAX_LISTED = 100  # invalid files in a message
READ_BATCH = 256  # images to read at a time; 5 MB of maps of 15x15x5, or of 400 regions of 10 classes


@dataclass(frozen=True)
class Part:
    """The labels of some images.

    Attributes:
        stored: in the types of a shard; of no use if there are messages.
        invalid: a message for each invalid file.
        file_sizes: (n,) int64 bytes of the image files; None if the images were not given.
        overfull: how many regions have probabilities that sum to more than 1, by rounding.
    """

    stored: StoredLabels
    invalid: list[str]
    file_sizes: Tensor | None = None
    overfull: int = 0

    def shared(self) -> "Part":
        """The same for another process."""
        for tensor in self.stored.tensors().values():
            in_shared_memory(tensor)
        return self


class Parts(Dataset[Part]):
    """The labels of any range of images, for reading processes."""

    def __init__(self, read: Callable[[range], Part]) -> None:
        self.read = read

    def __getitem__(self, images: range) -> Part:
        return self.read(images).shared()


def warn_of_class_order(source: Path, image_set: ImageSet, num_classes: int) -> None:
    """Say so where the store's classes may be in another order than the folders."""
    if len(image_set.classes) == num_classes:
        warn_of_plain_order(
            image_set, str(source), "rename the class folders so that both orders agree (class01 ... class12)"
        )


def imported_manifest(keys: Sequence[str], **known: Any) -> Manifest:
    """The manifest of imported labels, of which neither the annotator nor its preprocessing is known.

    Args:
        keys: of all images, in order.
        known: the manifest's other fields.
    """
    return Manifest(
        model_kwargs={},
        weights_sha256=None,
        kind="imported",
        input_size=None,
        mean=None,
        std=None,
        interpolation=None,
        precision="float32",
        image_count=len(keys),
        image_digest=keys_digest(keys),
        timm_version=timm.__version__,
        torch_version=torch.__version__,
        **known,
    )


def import_shards(
    source: Path,
    labels: Path,
    keys: Sequence[str],
    manifest: Manifest,
    read: Callable[[range], Part],
    workers: int,
) -> None:
    """Make the label set of this manifest, or what is missing of it.

    Args:
        keys: of all images, in order.
        read: makes the labels of a range of the images. Called in reading processes; must not raise for invalid files.
        workers: reading processes; 0 to read in this one.
    Raises:
        InputError: invalid files (all of a shard's are listed), a different label set in the folder, or a disk error.
    """
    try:
        labels.mkdir(parents=True, exist_ok=True)
        with readable_errors(), write_lock(labels, SINGLE_PROCESS):
            pending = prepare(labels, manifest, SINGLE_PROCESS)
            overfull = 0
            for shard, part in read_shards(pending, read, manifest, workers):
                images = manifest.images_of(shard)
                sizes = None if part.file_sizes is None else Fingerprints(part.file_sizes.numpy().astype(np.uint64))
                of_shard = keys[images.start : images.stop]
                append_shard_line(labels, write_shard(labels, shard, of_shard, part.stored, manifest, fingerprints=sizes))
                overfull += part.overfull
            if overfull:
                logger.info(
                    f"{overfull} regions have probabilities that sum to more than 1, by rounding; nothing is left of"
                    " those for the classes that are not stored"
                )
            finish(labels, manifest)
    except OSError as error:
        raise InputError(f"cannot read {source} or write {labels}: {error}. Finished shards are kept; rerun") from error


def read_shards(
    pending: list[int], read: Callable[[range], Part], manifest: Manifest, workers: int
) -> Iterator[tuple[int, Part]]:
    """The labels of each pending shard, in order.

    Raises:
        InputError: a shard has invalid files; all of them are listed.
    """
    ranges = {shard: read_ranges(shard, manifest) for shard in pending}
    all_ranges = [part for parts in ranges.values() for part in parts]
    done = manifest.image_count - sum(map(len, all_ranges))
    loader = DataLoader(
        Parts(read),
        batch_size=None,
        sampler=all_ranges,
        num_workers=workers if all_ranges else 0,
        worker_init_fn=init_worker,
        collate_fn=lambda part: part,
    )
    with tqdm(total=manifest.image_count, initial=done, unit="img", desc="import", disable=None) as bar:
        batches = iter(batches_of(loader))
        for shard, of_shard in ranges.items():
            parts: list[Part] = []
            for images in of_shard:
                parts.append(next(batches))
                bar.update(len(images))
            if invalid := [message for part in parts for message in part.invalid]:
                more = [f"and {len(invalid) - MAX_LISTED} more"] if len(invalid) > MAX_LISTED else []
                listed = "\n  ".join(invalid[:MAX_LISTED] + more)
                what = "maps" if manifest.regions is None else "images"
                found = f"{len(invalid)} invalid {what} in shard {shard} of {manifest.shard_count}"
                raise InputError(f"{found}:\n  {listed}\nFix them and rerun")
            yield shard, joined(parts, manifest)


def joined(parts: list[Part], manifest: Manifest) -> Part:
    sizes = [part.file_sizes for part in parts if part.file_sizes is not None]
    return Part(
        concatenate([part.stored for part in parts], manifest),
        [],
        torch.cat(sizes) if sizes else None,
        sum(part.overfull for part in parts),
    )


def read_ranges(shard: int, manifest: Manifest) -> list[range]:
    """The rows of a shard's images, in ranges of at most READ_BATCH."""
    images = manifest.images_of(shard)
    return [images[at : at + READ_BATCH] for at in range(0, len(images), READ_BATCH)]
