"""`relabel annotate --regions` against only the forward passes of the same crops, on batches that are already on the device.

As benchmarks/annotate.py does for label maps. Goal: 0.9. All crops of an image are cut from one decoded image.
"""

import contextlib
import tempfile
from pathlib import Path

import timm
import torch

from annotate.config import AnnotateConfig
from annotate.label_folder import prepare
from annotate.loop import annotate_shards
from annotate.manifests import build_region_manifest, member
from annotate.regions import CropClassifier, RegionForward
from annotate.squash import Squash
from benchmarks.annotate import write_pictures
from benchmarks.hardware import hardware
from benchmarks.interleaved import all_seconds
from relabel.runtime.distributed import Processes, processes
from relabel.runtime.precision import autocast, dtype_from_name

MODEL, REGIONS, ROUNDS = "resnet50.a1_in1k", 16, 5


def main() -> None:
    with processes(None) as group, tempfile.TemporaryDirectory() as scratch:
        print(hardware(group.device))
        cuda = group.device.type == "cuda"
        config = AnnotateConfig(
            MODEL, batch_size=64 if cuda else 32, regions=REGIONS, precision="bfloat16" if cuda else "float32"
        )
        compare(config, 2048 if cuda else 16, group, Path(scratch))


def compare(config: AnnotateConfig, images: int, group: Processes, scratch: Path) -> float:
    """Print both rates; returns their ratio."""
    device = group.device
    image_set = write_pictures(Path(tempfile.mkdtemp(dir=scratch)), images)
    torch.manual_seed(0)
    classifier = timm.create_model(config.model).eval().to(device).to(memory_format=torch.channels_last)  # random weights
    squash = Squash.of_model(classifier)
    manifest = build_region_manifest(config, [member(config, classifier, squash, None)], 1000, image_set)
    forward = RegionForward([CropClassifier(config.model, classifier, squash)], manifest, config.batch_size)
    pixels = torch.randint(256, (config.batch_size, 3, *squash.input_size), dtype=torch.uint8, device=device)
    batch = squash.normalise(pixels).contiguous(memory_format=torch.channels_last)
    crops = images * REGIONS

    def stage() -> None:
        labels = Path(tempfile.mkdtemp(dir=scratch))
        with contextlib.redirect_stdout(None):  # its log of finished shards
            annotate_shards(image_set, labels, prepare(labels, manifest, group), manifest, forward, group, config.workers)

    @torch.inference_mode()
    def forward_only() -> None:
        for _ in range(crops // config.batch_size):
            with autocast(device, dtype_from_name(config.precision)):
                classifier(batch)

    forward_only()  # not timed: the first pass at a batch size also chooses kernels
    stage_s, forward_s = all_seconds(device, ROUNDS, stage, forward_only)
    ratio = min(forward_s) / min(stage_s)
    rows, columns = squash.input_size
    print(
        f"annotate --regions {REGIONS}: {config.model}, {rows}x{columns}, {config.precision}, batch {config.batch_size},"
        f" {images} images; crops/s, fastest of {ROUNDS}, interleaved"
    )
    print(f"  annotate                 {crops / min(stage_s):9.1f}")
    print(f"  forward pass only        {crops / min(forward_s):9.1f}")
    print(f"  ratio                    {ratio:9.3f}", flush=True)
    return ratio


if __name__ == "__main__":
    main()
