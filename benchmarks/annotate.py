"""`relabel annotate` against only the forward pass of the same annotator, on a batch that is already on the device.

Reading, decoding, normalising, top-k and writing should be hidden behind the forward pass; the ratio falls short of 1 by
what is not hidden. Goal: 0.9 on a CPU, where decoding uses the same cores, and 0.97 on a GPU. Creating the model and the
manifest is not timed: a real run does it once in a million images. Starting the workers and waiting for their first batch
is timed, although it weighs more here than in a real run. The fastest round of each arm is used: other load on the machine
can only slow a round down, and over several seconds it does so by more than the gap. The third arm, all of annotate except
the forward pass, shows which of the two halves is the limit.

The weights are random, which takes the same time, so nothing is downloaded. The images are generated, 500x375 pixels.

Shapes: B images, S and T rows and columns of pixels.
"""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from annotate.config import AnnotateConfig
from annotate.convert import FullyConvolutional, fully_convolutional
from annotate.forward import MapForward
from annotate.label_folder import prepare
from annotate.loop import annotate_shards
from annotate.manifests import build_manifest
from annotate.squash import Squash
from benchmarks.hardware import hardware
from benchmarks.interleaved import all_seconds
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.runtime.distributed import Processes, processes
from relabel.runtime.precision import autocast, dtype_from_name

PICTURES = 128  # distinct ones; if a round needs more images, they are hard links to these
CLASSES = 8


@dataclass(frozen=True)
class Workload:
    """An annotator, and enough images for a round to last much longer than the second its workers take to start."""

    config: AnnotateConfig
    images: int  # per round; a multiple of the batch size
    rounds: int = 5


@dataclass(frozen=True)
class Rates:
    """Images per second in the fastest round: of annotate, of only its forward pass, and of all but the forward pass."""

    annotate: float
    forward: float
    rest: float


class NoForward(MapForward):
    """All of MapForward except the annotator: images go to the device, and empty maps come from it."""

    def label_maps(self, images: Tensor) -> LabelMaps:
        images.to(self.device, non_blocking=True)
        zeros = torch.zeros(len(images), self.manifest.topk, *self.manifest.map_grid, device=self.device)
        return LabelMaps(zeros, zeros, zeros[:, 0]).as_stored(self.manifest.num_classes)


def main() -> None:
    with processes(None) as group, tempfile.TemporaryDirectory() as scratch:
        print(hardware(group.device))
        workload = workload_for(group.device)
        compare(workload, *random_annotator(workload.config, group.device), group, Path(scratch))


def workload_for(device: torch.device) -> Workload:
    """The paper's annotator on a GPU; on a CPU one with a hundredth of the work, which is still far more than decoding."""
    if device.type == "cuda":
        workers = min(8, os.cpu_count() or 1)
        return Workload(AnnotateConfig(batch_size=64, workers=workers, precision="bfloat16"), images=4096)
    return Workload(AnnotateConfig("resnet50.a1_in1k", batch_size=32), images=128)


def random_annotator(config: AnnotateConfig, device: torch.device) -> tuple[FullyConvolutional, Squash]:
    """With random weights, drawn on the device: on a CPU this takes longer than many a measurement."""
    torch.backends.cudnn.allow_tf32 = False  # as annotate does
    torch.manual_seed(0)
    with device:
        classifier = timm.create_model(config.model, **config.model_kwargs)
    squash = Squash.of_model(classifier, config.input_size)
    return fully_convolutional(classifier.to(memory_format=torch.channels_last), squash.input_size), squash


def forward_pass(annotator: FullyConvolutional, squash: Squash, config: AnnotateConfig) -> Callable[[], Tensor]:
    """The annotator's forward pass on one batch that is already on the device."""
    device = next(annotator.parameters()).device
    pixels = torch.randint(256, (config.batch_size, 3, *squash.input_size), dtype=torch.uint8, device=device)
    batch = squash.normalise(pixels).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def once() -> Tensor:
        with autocast(device, dtype_from_name(config.precision)):
            logits: Tensor = annotator(batch)
        return logits

    return once


def compare(workload: Workload, annotator: FullyConvolutional, squash: Squash, group: Processes, scratch: Path) -> Rates:
    config = workload.config
    image_set = write_pictures(Path(tempfile.mkdtemp(dir=scratch)), workload.images)
    manifest = build_manifest(config, annotator, squash, image_set)
    forward, no_forward = (kind(annotator, squash, manifest, config.batch_size) for kind in (MapForward, NoForward))
    if config.compile:
        forward.compile()
    once = forward_pass(annotator, squash, config)

    def stage(forward: MapForward) -> None:
        labels = Path(tempfile.mkdtemp(dir=scratch))
        with contextlib.redirect_stdout(None):  # its log of finished shards
            annotate_shards(image_set, labels, prepare(labels, manifest, group), manifest, forward, group, config.workers)

    def forward_only() -> None:
        for _ in range(workload.images // config.batch_size):
            once()

    once()  # not timed: the first pass at a batch size also chooses kernels
    arms = {
        "annotate": lambda: stage(forward),
        "forward pass only": forward_only,
        "all but the forward pass": lambda: stage(no_forward),
    }
    seconds = dict(zip(arms, all_seconds(group.device, workload.rounds, *arms.values()), strict=True))
    rates = Rates(*(workload.images / min(arm_s) for arm_s in seconds.values()))
    rows, columns = squash.input_size
    print(
        f"annotate: {config.model}{', compiled' if config.compile else ''}, {rows}x{columns},"
        f" {config.precision}, batch {config.batch_size},"
        f" {workload.images} images; images/s, fastest and median of {workload.rounds}, interleaved"
    )
    for name, arm_s in seconds.items():
        print(f"  {name:<25}{workload.images / min(arm_s):9.1f}{workload.images / statistics.median(arm_s):9.1f}")
    print(f"  {'ratio':<25}{rates.annotate / rates.forward:9.3f}", flush=True)
    return rates


def write_pictures(root: Path, count: int, quality: int = 90) -> ImageSet:
    """JPEGs in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES):
        (root / f"n{number:08}").mkdir(parents=True)
    paths = [root / f"n{i % CLASSES:08}" / f"n{i % CLASSES:08}_{i}.JPEG" for i in range(count)]
    for i, path in enumerate(paths):
        if i < PICTURES:
            picture(rng).save(path, quality=quality)
        else:
            path.hardlink_to(paths[i % PICTURES])
    return find_images(root)


def picture(rng: np.random.Generator) -> Image.Image:
    """Blobs of several sizes and some grain, which cost a JPEG decoder as much as a photograph does."""
    size = (500, 375)  # columns, rows
    pixels = np.full((*size[::-1], 3), 128.0)
    for cells, strength in ((4, 45), (16, 25), (64, 12)):
        coarse = rng.normal(128, strength, (cells * 3 // 4, cells, 3)).clip(0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)) - 128.0
    pixels += 10 * rng.normal(size=(*size[::-1], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
