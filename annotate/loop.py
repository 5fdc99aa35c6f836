"""From image files to shards: workers decode, the device annotates, a thread writes, and none waits for another.

A batch never reaches over a shard's end and a shard is written whole or not at all, so that a label set's bytes do not tell
how often its making was interrupted, nor how many processes took part.

Shapes: B images, S and T rows and columns of pixels.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.forward import Forward
from annotate.squash import Squash
from relabel.images.decoding import UnreadableImage
from relabel.images.image_set import ImageSet
from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import shard_name, write_shard
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.workers import batches_of, decoding_workers, init_worker

logger = logging.getLogger(__name__)


class SquashedImages(Dataset[tuple[int, Tensor | None, str]]):
    """(index, (3, S, T) uint8, "") of image `index`, or (index, None, why) where it cannot be read."""

    def __init__(self, image_set: ImageSet, squash: Squash) -> None:
        self.image_set, self.squash = image_set, squash

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.squash(self.image_set.read(index)), ""
        except UnreadableImage as error:
            return index, None, str(error)


@dataclass
class Batch:
    """Readable images of one batch: indices into the set, (B, 3, S, T) uint8, and what was unreadable, with reasons."""

    indices: list[int]
    images: Tensor
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.indices) + len(self.unreadable)

    def pin_memory(self) -> "Batch":
        return Batch(self.indices, self.images.pin_memory(), self.unreadable)


def collate(items: list[tuple[int, Tensor | None, str]]) -> Batch:
    readable = [(index, image) for index, image, _ in items if image is not None]
    images = torch.stack([image for _, image in readable]) if readable else torch.empty(0)
    return Batch([index for index, _ in readable], images, {index: why for index, image, why in items if image is None})


def shard_batches(shards: list[int], manifest: Manifest, batch_size: int) -> list[list[int]]:
    """Image indices batch by batch; each shard begins with a batch of its own."""
    return [
        list(manifest.images_of(shard)[first : first + batch_size])
        for shard in shards
        for first in range(0, len(manifest.images_of(shard)), batch_size)
    ]


def annotate_shards(
    image_set: ImageSet,
    labels: Path,
    shards: list[int],
    manifest: Manifest,
    forward: Forward,
    group: Processes,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> None:
    """Make these shards, one after the other.

    Args:
        workers: decoding processes; if None as many as this process has cores, on a CPU too: they decode where a forward
            pass leaves a core idle.
    Raises:
        InputError: unreadable images (after the pass over their shard, all named), logits that cannot be stored, or a
            decoding process that died. OSError: a shard cannot be written. Shards before it are finished.
    """
    if not shards:
        return
    batches = shard_batches(shards, manifest, forward.batch_size)
    cuda = group.device.type == "cuda"
    loader = DataLoader(
        SquashedImages(image_set, forward.squash),
        batch_sampler=batches,
        num_workers=min(decoding_workers(workers), len(batches)),
        collate_fn=collate,
        pin_memory=cuda,
        worker_init_fn=init_worker,
    )
    total = sum(map(len, batches))
    bar = tqdm(total=total, unit="img", desc="annotate", disable=None if group.is_first else True, smoothing=0.05)
    arriving = iter(batches_of(loader))
    with bar, torch.inference_mode(), ThreadPoolExecutor(1, "writer") as writer:  # a thread from its first shard on
        written: Future[None] | None = None
        for number, shard in enumerate(shards, start=1):
            made: list[LabelMaps] = []
            indices: list[int] = []
            unreadable: dict[int, str] = {}
            while len(indices) + len(unreadable) < len(manifest.images_of(shard)):
                batch = next(arriving)
                unreadable |= batch.unreadable
                indices += batch.indices
                if batch.indices:
                    made += forward(batch.images)  # still at work when this returns
                bar.update(len(batch))
                if written is not None and written.done():
                    written.result()  # raises what stopped the writer
            if unreadable and not skip_unreadable:
                reasons = "\n  ".join(unreadable[i] for i in sorted(unreadable))
                raise InputError(
                    f"{len(unreadable)} unreadable images in shard {shard} of {manifest.shard_count}:\n  {reasons}\n"
                    "Replace them and rerun (finished shards are kept), or leave them out with --skip-unreadable"
                )
            if written is not None:
                written.result()  # so that two shards at most are in memory
            keys, skipped = ([image_set.keys[i] for i in some] for some in (indices, sorted(unreadable)))
            said = None
            if bar.disable and group.is_first:  # no terminal: a log wants a line now and then
                of_process = f" of the first of {group.world} processes" if group.world > 1 else ""
                said = f"{shard_name(shard)} annotated, {number} of {len(shards)}{of_process}"
            written = writer.submit(write_finished, labels, shard, keys, made, manifest, skipped, said)
        assert written is not None
        written.result()


@torch.inference_mode()
def write_finished(
    labels: Path,
    shard: int,
    keys: list[str],
    made: list[LabelMaps],
    manifest: Manifest,
    skipped: list[str],
    said: str | None,
) -> None:
    """Fetch a shard's maps from the device, write them, list the shard as finished, and say so if there is something to say.

    In a thread of its own: only here does anybody wait for the device.
    """
    maps = concatenate(made, manifest)
    if not bool(torch.isfinite(maps.scores).all() & torch.isfinite(maps.tail).all()):
        raise InputError(
            f"{manifest.model} gives logits that are not finite, or beyond float16 (65504), in shard {shard}: its weights"
            " are damaged, or --amp is too coarse for it"
        )
    append_shard_line(labels, write_shard(labels, shard, keys, maps, manifest, skipped))
    if said is not None:
        logger.info(said)


def concatenate(parts: list[LabelMaps], manifest: Manifest) -> LabelMaps:
    """One LabelMaps on the CPU; of no images if there are no parts."""
    if not parts:
        cells = manifest.grid
        empty = torch.empty(0, manifest.topk, *cells)
        return LabelMaps(empty, empty.int(), torch.empty(0, *cells))
    return LabelMaps(*(torch.cat([getattr(p, name).cpu() for p in parts]) for name in MAPS))
