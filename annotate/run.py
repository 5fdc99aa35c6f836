"""Stage one: every image once through the annotator, its sparse label map into a shard.

A batch never reaches over a shard's end and a shard is written whole or not at all, so that a label set's bytes do not tell
how often its making was interrupted, nor how many processes took part.

Shapes: B images, S and T rows and columns of pixels, k classes kept per cell, H rows and W columns of the label map.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from annotate.convert import REFUSED, FullyConvolutional, fully_convolutional
from annotate.outputs import outputs_by_name
from annotate.sparsify import sparsify
from annotate.squash import Squash
from pipeline.classifier import create_classifier
from pipeline.distributed import Processes, processes
from pipeline.errors import InputError
from pipeline.image_sources import find_images
from pipeline.images import ImageSet, UnreadableImage, digest_of, leave_signals_to_the_main_process
from pipeline.manifest import (
    MANIFEST,
    SHARD_LINES,
    Manifest,
    Tail,
    append_shard_line,
    read_shard_lines,
    write_shard_lines,
)
from pipeline.shards import LabelMaps, sha256_of, shard_name, write_shard

LOCK = ".lock"


@dataclass(frozen=True)
class AnnotateConfig:
    """What a label set is made with; the command line's options, checked."""

    model: str = "tf_efficientnet_l2.ns_jft_in1k_475"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None  # own weights instead of the published ones
    num_classes: int | None = None
    topk: int = 5
    tail: Tail = "mean"
    input_size: tuple[int, int] | None = None  # rows, columns of pixels; the model's own if None
    batch_size: int = 32
    workers: int | None = None  # decoding processes; if None as many as this process has cores; 0 on a CPU, whose cores the
    # forward pass wants for itself
    shard_size: int = 4096
    recentre: bool = False  # make every map's mean the classifier's logits, whatever the kind
    flip: bool = False  # average with the mirrored image's map
    class_token: bool = False  # accept models whose head reads a class token
    classes: str | None = None  # names of the classifier's outputs, to be matched with the images': annotate/outputs.py
    amp: bool = False  # bfloat16 forward pass
    skip_unreadable: bool = False


def annotate(images: Path | str, labels: Path, config: AnnotateConfig, device: str | None = None) -> None:
    """Write the label set of an image folder; a rerun keeps complete shards and makes the rest.

    Args:
        images: whatever pipeline/image_sources.py reads, such as ROOT/CLASS/*.JPEG.
        labels: the label set's folder; made if absent.
    Raises:
        InputError: nothing to annotate, a model that cannot annotate, another set in the folder, unreadable images (after
            the pass over their shard, all named), or a disk that cannot be written. Finished shards stay.
    """
    for name in ("topk", "batch_size", "shard_size"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; expected at least 1")
    folder = find_images(images)
    with processes(device) as group:
        annotator, squash = load_annotator(config, group.device)
        outputs = outputs_by_name(config.classes, annotator.classifier, folder) if config.classes else None
        if outputs is not None:
            annotator.select(list(outputs.values()))
        if annotator.kind == "token" and group.is_first:
            tqdm.write(f"warning: {annotator.name}: {REFUSED['token']}; look at its maps before you train on them")
        manifest = describe(config, annotator, squash, folder, outputs)
        try:
            labels.mkdir(parents=True, exist_ok=True)
            with only_run_on(labels, group):
                pending = prepare(labels, manifest, group, config.skip_unreadable)
                mine = pending[group.rank :: group.world]
                annotate_shards(folder, labels, mine, manifest, annotator, squash, config, group)
                group.barrier()
                if group.is_first:
                    finish(labels, manifest)
        except OSError as error:
            raise InputError(f"cannot write {labels}: {error}. Finished shards are safe; rerun to make the rest") from error


def load_annotator(config: AnnotateConfig, device: torch.device) -> tuple[FullyConvolutional, Squash]:
    """The classifier, converted, and its preprocessing, both from the model's own timm settings."""
    if not config.amp:
        torch.backends.cudnn.allow_tf32 = False  # the manifest says float32, and another device should agree with it
    classifier = create_classifier(
        config.model,
        pretrained=config.checkpoint is None,
        checkpoint=config.checkpoint,
        num_classes=config.num_classes,
        model_kwargs=config.model_kwargs,
        input_size=config.input_size,
    )
    published: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    if config.checkpoint is None and config.num_classes not in (None, published.get("num_classes")):
        raise InputError(
            f"the published {config.model} has {published.get('num_classes')} classes, not {config.num_classes}: a head of"
            " another size would be random; pass your own weights with --checkpoint"
        )
    squash = Squash.of_model(classifier, config.input_size)
    annotator = fully_convolutional(
        classifier.to(device).to(memory_format=torch.channels_last),
        squash.input_size,
        recentre=config.recentre,
        flip=config.flip,
        class_token=config.class_token,
    )
    return annotator, squash


def describe(
    config: AnnotateConfig,
    annotator: FullyConvolutional,
    squash: Squash,
    folder: ImageSet,
    outputs: dict[str, int] | None = None,
) -> Manifest:
    """The manifest of the set that these settings make."""
    device = next(annotator.parameters()).device
    with torch.inference_mode():
        _, num_classes, rows, columns = annotator(torch.zeros(1, 3, *squash.input_size, device=device)).shape
    if config.topk > num_classes:
        raise InputError(f"--topk {config.topk}: {config.model} has {num_classes} classes")
    own_weights = config.checkpoint or weights_in(config.model)
    return Manifest(
        model=config.model if config.checkpoint or ":" in config.model else tagged_name(annotator.classifier),
        model_kwargs=config.model_kwargs,
        weights=own_weights.name if own_weights else "pretrained",
        weights_sha256=sha256_of(own_weights) if own_weights else None,
        num_classes=num_classes,
        kind=annotator.kind,
        input_size=squash.input_size,
        mean=squash.mean,
        std=squash.std,
        interpolation=squash.interpolation,
        precision="bfloat16" if config.amp else "float32",
        topk=config.topk,
        tail=config.tail,
        grid=(rows, columns),
        image_count=len(folder),
        image_digest=digest_of(folder.keys),
        shard_size=config.shard_size,
        outputs=outputs,
        num_outputs=annotator.classifier.num_classes if outputs is not None else None,  # type: ignore[arg-type]
        recentre=config.recentre,
        flip=config.flip,
        timm_version=timm.__version__,
        torch_version=torch.__version__,
    )


def weights_in(model: str) -> Path | None:
    """The file of weights of "local-dir:FOLDER", as timm's save_for_hf names it: these may change under the same name."""
    scheme, _, folder = model.partition(":")
    names = ("model.safetensors", "pytorch_model.bin")  # timm's order
    files = [Path(folder, name) for name in names] if scheme == "local-dir" else []
    return next((file for file in files if file.is_file()), None)


def tagged_name(classifier: nn.Module) -> str:
    """timm's full name of published weights, so that another default tag in another timm is seen."""
    settings: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    return ".".join(filter(None, (settings["architecture"], settings.get("tag"))))


@contextlib.contextmanager
def only_run_on(labels: Path, group: Processes) -> Iterator[None]:
    """Refuse a second run on the same folder while the first lives; a dead run's lock is gone with it."""
    if not group.is_first:
        yield
        return
    with (labels / LOCK).open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its workers do not inherit it
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"another `relabel annotate` is writing {labels}; wait for it, or use another --labels"
            ) from error
        yield


def prepare(labels: Path, manifest: Manifest, group: Processes, skip_unreadable: bool = True) -> list[int]:
    """Make or check the manifest, drop what a killed run left half done, and list the shards still to make.

    A shard that lacks unreadable images is made again where they are not to be skipped: they may have been replaced.
    """
    if group.is_first:
        if (labels / MANIFEST).exists():
            differences = Manifest.load(labels).differences(manifest)
            if differences:
                raise InputError(
                    f"{labels} holds another label set ({'; '.join(differences)} of this run); use another --labels,"
                    " or delete the folder to replace it"
                )
        else:
            strangers = sorted(p.name for p in labels.iterdir() if p.name != LOCK and not p.name.startswith("."))
            if strangers:
                raise InputError(f"{labels} is not empty and no label set (it holds {strangers[0]}); use an empty folder")
            manifest.save(labels)
        for leftover in labels.glob(".*.tmp"):
            leftover.unlink()
        lines = read_shard_lines(labels)
        kept = {i: line for i, line in lines.items() if skip_unreadable or not line.unreadable}
        sound = {i: line for i, line in kept.items() if is_sound(labels / line.file, line.sha256)}
        if lines or (labels / SHARD_LINES).exists():
            write_shard_lines(labels, sound)  # also drops a torn last line
        for i in sorted(kept.keys() - sound.keys()):
            tqdm.write(f"{labels / shard_name(i)} is missing or damaged: made again")
        if sound and len(sound) == manifest.shard_count:
            tqdm.write(f"{labels}: all {manifest.shard_count} shards are there and sound, nothing to do")
        elif sound:
            tqdm.write(f"{labels}: {len(sound)} of {manifest.shard_count} shards are there and sound, making the rest")
    group.barrier()
    finished = read_shard_lines(labels)
    pending = [i for i in range(manifest.shard_count) if i not in finished]
    group.barrier()  # nobody appends before everybody has read
    return pending


def is_sound(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


class SquashedImages(Dataset[tuple[int, Tensor | None, str]]):
    """(index, (3, S, T) uint8, "") of image `index`, or (index, None, why) where it cannot be read."""

    def __init__(self, folder: ImageSet, squash: Squash) -> None:
        self.folder, self.squash = folder, squash

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.squash(self.folder.read(index)), ""
        except UnreadableImage as error:
            return index, None, str(error)


@dataclass
class Batch:
    """Readable images of one batch: indices into the folder, (B, 3, S, T) uint8, and what was unreadable, with reasons."""

    indices: list[int]
    images: Tensor
    unreadable: dict[int, str]

    def pin_memory(self) -> "Batch":
        return Batch(self.indices, self.images.pin_memory(), self.unreadable)


def collate(items: list[tuple[int, Tensor | None, str]]) -> Batch:
    readable = [(index, image) for index, image, _ in items if image is not None]
    images = torch.stack([image for _, image in readable]) if readable else torch.empty(0)
    return Batch([index for index, _ in readable], images, {index: why for index, image, why in items if image is None})


def whole_batches(shards: list[int], manifest: Manifest, batch_size: int) -> list[list[int]]:
    """Image indices batch by batch; each shard begins with a batch of its own."""
    batches = []
    for shard in shards:
        stop = min((shard + 1) * manifest.shard_size, manifest.image_count)
        for first in range(shard * manifest.shard_size, stop, batch_size):
            batches.append(list(range(first, min(first + batch_size, stop))))
    return batches


def annotate_shards(
    folder: ImageSet,
    labels: Path,
    shards: list[int],
    manifest: Manifest,
    annotator: FullyConvolutional,
    squash: Squash,
    config: AnnotateConfig,
    group: Processes,
) -> None:
    """Decode in workers, forward and top-k on the device, and write each shard when its last batch is in."""
    if not shards:
        return
    batches = whole_batches(shards, manifest, config.batch_size)
    cuda = group.device.type == "cuda"
    workers = 0 if config.workers is None and not cuda else group.decoding_workers(config.workers)
    loader = DataLoader(
        SquashedImages(folder, squash),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=collate,
        pin_memory=cuda,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    total = sum(map(len, batches))
    bar = tqdm(total=total, unit="img", desc="annotate", disable=None if group.is_first else True, smoothing=0.05)
    arriving = iter(loader)
    with bar, torch.inference_mode():
        for shard in shards:
            first = shard * manifest.shard_size
            stop = min(first + manifest.shard_size, manifest.image_count)
            made: list[tuple[list[int], LabelMaps]] = []
            unreadable: dict[int, str] = {}
            seen = 0
            while seen < stop - first:
                batch = next(arriving)
                unreadable |= batch.unreadable
                if batch.indices:
                    try:
                        maps = label_maps(annotator, squash, batch.images, config, group.device)
                    except torch.OutOfMemoryError as error:
                        raise InputError(
                            f"a batch of {len(batch.indices)} images does not fit the memory of {group.device}; finished"
                            " shards are kept: rerun with a smaller --batch-size"
                        ) from error
                    made.append((batch.indices, maps))
                count = len(batch.indices) + len(batch.unreadable)
                seen += count
                bar.update(count)
            if unreadable and not config.skip_unreadable:
                reasons = "\n  ".join(unreadable[i] for i in sorted(unreadable))
                raise InputError(
                    f"{len(unreadable)} unreadable images in shard {shard} of {manifest.shard_count}:\n  {reasons}\n"
                    "Replace them and rerun (finished shards are kept), or leave them out with --skip-unreadable"
                )
            keys = [folder.keys[i] for indices, _ in made for i in indices]
            maps = joined([maps for _, maps in made], manifest)
            if not bool(torch.isfinite(maps.scores).all() & torch.isfinite(maps.tail).all()):
                raise InputError(
                    f"{config.model} gives logits that are not finite, or beyond float16 (65504), in shard {shard}: its"
                    " weights are damaged, or --amp is too coarse for it"
                )
            skipped = [folder.keys[i] for i in sorted(unreadable)]
            append_shard_line(labels, write_shard(labels, shard, keys, maps, manifest, skipped))
            if bar.disable and group.is_first:  # no terminal: a log wants a line now and then
                print(f"{shard_name(shard)} written, {shards.index(shard) + 1} of {len(shards)}", flush=True)


def label_maps(
    annotator: FullyConvolutional, squash: Squash, images: Tensor, config: AnnotateConfig, device: torch.device
) -> LabelMaps:
    """(B, 3, S, T) uint8 -> sparse label maps in the stored types, still on the device: the host does not wait here."""
    images = squash.normalise(images.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
        logits = annotator(images)
    maps = sparsify(logits, config.topk, config.tail)
    return LabelMaps(maps.scores.half(), maps.classes.int(), maps.tail.half())


def joined(parts: list[LabelMaps], manifest: Manifest) -> LabelMaps:
    """One LabelMaps on the CPU; of no images if there are no parts."""
    if not parts:
        cells = manifest.grid
        empty = torch.empty(0, manifest.topk, *cells)
        return LabelMaps(empty, empty.int(), torch.empty(0, *cells))
    return LabelMaps(*(torch.cat([getattr(p, name) for p in parts]).cpu() for name in ("scores", "classes", "tail")))


def finish(labels: Path, manifest: Manifest) -> None:
    """Order shards.jsonl and say what there is now."""
    lines = read_shard_lines(labels)
    if len(lines) < manifest.shard_count:
        raise InputError(f"{labels}: {manifest.shard_count - len(lines)} shards are missing; rerun to make them")
    write_shard_lines(labels, lines)
    rows = np.sum([line.rows for line in lines.values()])
    skipped = sum(len(line.unreadable) for line in lines.values())
    left_out = f", {skipped} unreadable images left out" if skipped else ""
    grid = "x".join(map(str, manifest.grid))
    tqdm.write(
        f"{labels}: {rows} label maps of {grid} cells, top {manifest.topk} of {manifest.num_classes} classes{left_out}"
    )
