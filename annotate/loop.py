"""From image files to shards: workers decode, the device annotates and a thread writes, all at the same time.

A batch never crosses the end of a shard, and a shard is written completely or not at all. So the bytes of a label set do not
depend on how often the run was interrupted, or on how many processes took part.

Shapes: B images.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.forward import Forward, Samples
from relabel.images.decoding import UnreadableImage
from relabel.images.image_set import ImageSet
from relabel.labels.layout import no_labels
from relabel.labels.manifest import Manifest
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import Fingerprints, shard_name, write_shard
from relabel.labels.stored import StoredLabels
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.workers import batches_of, decoding_workers, in_shared_memory, init_worker

logger = logging.getLogger(__name__)


@dataclass
class Decoded:
    """An image of the image set: what the forward pass needs of it, and its file's size and sha256."""

    index: int
    samples: Samples
    fingerprint: tuple[int, bytes]


class DecodedImages(Dataset[Decoded | tuple[int, str]]):
    """Item `index` is the decoded image, or (index, reason) if the image is unreadable."""

    def __init__(self, image_set: ImageSet, sample: Callable[[Image.Image, str], Samples]) -> None:
        self.image_set, self.sample = image_set, sample

    def __getitem__(self, index: int) -> Decoded | tuple[int, str]:
        try:
            with self.image_set.open_image(index) as encoded:
                fingerprint = encoded.fingerprint()
                image, _ = encoded.decode()
        except UnreadableImage as error:
            return index, str(error)
        return Decoded(index, self.sample(image, self.image_set.keys[index]), fingerprint)


@dataclass
class Batch:
    """A batch with its unreadable images set aside."""

    indices: list[int]  # of the readable images, in the image set
    samples: Samples  # of the readable images
    fingerprints: list[tuple[int, bytes]]  # of the readable images
    unreadable: dict[int, str]  # index -> reason

    def __len__(self) -> int:
        return len(self.indices) + len(self.unreadable)

    def pin_memory(self) -> "Batch":
        pinned = {name: tensor.pin_memory() for name, tensor in self.samples.items()}
        return Batch(self.indices, pinned, self.fingerprints, self.unreadable)


def collate(items: list[Decoded | tuple[int, str]]) -> Batch:
    readable = [item for item in items if isinstance(item, Decoded)]
    names = readable[0].samples if readable else ()
    samples = {name: in_shared_memory(torch.stack([item.samples[name] for item in readable])) for name in names}
    unreadable = dict(item for item in items if not isinstance(item, Decoded))
    return Batch([item.index for item in readable], samples, [item.fingerprint for item in readable], unreadable)


def shard_batches(shards: list[int], manifest: Manifest, batch_size: int) -> list[list[int]]:
    """The image indices of each batch; every shard starts a fresh batch."""
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
    forward: Forward[StoredLabels],
    group: Processes,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> None:
    """Make these shards, one after the other.

    Args:
        workers: decoding processes; None for one per core of this process. On a CPU too: they use cores that the forward
            pass leaves idle.
    Raises:
        InputError: unreadable images (all of a shard's are listed, after the pass over it), logits that cannot be stored,
            or a decoding process that died.
        OSError: a shard cannot be written.
        In every case the shards before are finished.
    """
    if not shards:
        return
    batches = shard_batches(shards, manifest, forward.images_at_once)
    cuda = group.device.type == "cuda"
    loader = DataLoader(
        DecodedImages(image_set, forward.sample),
        batch_sampler=batches,
        num_workers=min(decoding_workers(workers), len(batches)),
        collate_fn=collate,
        pin_memory=cuda,
        worker_init_fn=init_worker,
    )
    total = sum(map(len, batches))
    bar = tqdm(total=total, unit="img", desc="annotate", disable=None if group.is_first else True, smoothing=0.05)
    arriving = iter(batches_of(loader))
    with bar, torch.inference_mode(), ThreadPoolExecutor(1, "writer") as writer:  # its thread starts with the first shard
        written: Future[None] | None = None
        for number, shard in enumerate(shards, start=1):
            parts: list[StoredLabels] = []
            indices: list[int] = []
            fingerprints: list[tuple[int, bytes]] = []
            unreadable: dict[int, str] = {}
            while len(indices) + len(unreadable) < len(manifest.images_of(shard)):
                batch = next(arriving)
                unreadable |= batch.unreadable
                indices += batch.indices
                fingerprints += batch.fingerprints
                if batch.indices:
                    parts += forward(batch.samples)  # returns while the device is still computing
                bar.update(len(batch))
                if written is not None and written.done():
                    written.result()  # raises the writer's error, if any
            if unreadable and not skip_unreadable:
                reasons = "\n  ".join(unreadable[i] for i in sorted(unreadable))
                raise InputError(
                    f"{len(unreadable)} unreadable images in shard {shard} of {manifest.shard_count}:\n  {reasons}\n"
                    "Replace them and rerun (finished shards are kept), or skip them with --skip-unreadable"
                )
            if written is not None:
                written.result()  # so that at most two shards are in memory
            keys, skipped = ([image_set.keys[i] for i in rows] for rows in (indices, sorted(unreadable)))
            log_line = None
            if bar.disable and group.is_first:  # without a terminal, log a line per shard instead of the progress bar
                whose = f" of the first of {group.world} processes" if group.world > 1 else ""
                log_line = f"{shard_name(shard)} annotated, {number} of {len(shards)}{whose}"
            recorded = Fingerprints.of(fingerprints)
            written = writer.submit(write_finished, labels, shard, keys, parts, manifest, skipped, recorded, log_line)
        assert written is not None
        written.result()


@torch.inference_mode()
def write_finished(
    labels: Path,
    shard: int,
    keys: list[str],
    parts: list[StoredLabels],
    manifest: Manifest,
    skipped: list[str],
    fingerprints: Fingerprints,
    log_line: str | None,
) -> None:
    """Fetch a shard's labels from the device, write them, record the shard as finished, and log the line if there is one.

    Runs in the writer thread, the only place that waits for the device.
    """
    stored = concatenate(parts, manifest)
    tensors = stored.tensors()
    if not bool(torch.isfinite(tensors["scores"]).all() & torch.isfinite(tensors["tail"]).all()):
        raise InputError(
            f"{manifest.model} gives logits that are not finite, or too large for float16 (65504), in shard {shard}; its"
            " weights are damaged, or it needs float32: run it without --amp"
        )
    append_shard_line(labels, write_shard(labels, shard, keys, stored, manifest, skipped, fingerprints))
    if log_line is not None:
        logger.info(log_line)


def concatenate(parts: list[StoredLabels], manifest: Manifest) -> StoredLabels:
    """Join the parts on the CPU; without parts, the result holds no images."""
    if not parts:
        return no_labels(manifest)
    joined = (torch.cat([part.tensors()[name].cpu() for part in parts]) for name in parts[0].names())
    return type(parts[0])(*joined)
