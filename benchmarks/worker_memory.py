"""Memory of training's decoding workers over an epoch of a data set of ImageNet's size, 1,281,167 images.

Workers are forked, and share the memory of the main process until one of them writes to it. Python writes when it reads too,
because it counts references, so lists of strings end up as a copy in each worker. Therefore the sum over all processes of
their proportional share (PSS) is taken, again and again over an epoch that reads every image once.

The images are real files in class folders, hard links to copies of a small JPEG, with a label set of as many maps. The
loader is that of training. Argument: a folder with 12 GB of free space and room for 1.3 million names (by default the
temporary one of the system); everything is deleted at the end.

anonymous: the processes' own memory, whether shared or copied. The target holds for how much of it the workers add.
pixels in flight: batches on their way to the main process, in shared memory.
files: mapped label maps and libraries, in the page cache.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.annotate import picture
from benchmarks.generated_maps import generated_maps, imagenet_keys, link_images, write_label_set
from benchmarks.hardware import hardware
from relabel.runtime.workers import init_worker
from train.crops import RandomCrops, TrainingBatches
from train.options import TrainOptions
from train.recipe import load_recipe
from train.supervision import labels_on_device
from train.training_set import open_training_set

IMAGES = 1_281_167
WORKERS = 8
DISTINCT_MAPS = 4096
TARGET_GB = 1.5


@dataclass(frozen=True)
class Memory:
    """PSS of some processes, in bytes."""

    anonymous: int
    pixels_in_flight: int
    files: int

    def __str__(self) -> str:
        return "".join(f"{value / 1e9:12.2f}" for value in (self.anonymous, self.pixels_in_flight, self.files))


def main() -> None:
    images = int(sys.argv[2]) if len(sys.argv) > 2 else IMAGES
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as scratch:
        torch.set_num_threads(1)
        print(hardware(torch.device("cpu")))
        keys = imagenet_keys(images)
        link_images(Path(scratch), keys, picture(np.random.default_rng(0)).resize((32, 24)))
        write_label_set(Path(scratch, "labels"), keys, generated_maps(DISTINCT_MAPS, torch.Generator().manual_seed(0)))
        del keys
        measure(Path(scratch))


def measure(scratch: Path) -> None:
    recipe = load_recipe("relabel", ["image_size=32", "epochs=1", "warmup_epochs=0"])
    device = torch.device("cpu")
    data = open_training_set(scratch / "images", recipe, TrainOptions(labels=scratch / "labels"), 1)
    maps, _ = labels_on_device(data, recipe, device)
    assert maps is not None
    before = memory_of([Path("/proc/self")])
    batches = TrainingBatches(len(data.images), recipe, 0, 0, 1)
    loader = DataLoader(
        RandomCrops(data.images, recipe, maps.read),
        batch_size=None,
        sampler=batches,
        num_workers=WORKERS,
        worker_init_fn=init_worker,
    )
    print(
        f"PSS in GB of the main process and {WORKERS} workers, {len(data.images):,} images, batches of {recipe.batch_size}"
    )
    print(f"  {'images read':<16}   anonymous   in flight       files       workers add")
    print(f"  {'no workers yet':<16}{before}", flush=True)
    start, read, peak = time.perf_counter(), 0, 0
    for step, crops in enumerate(loader, start=1):
        read += len(crops.indices)
        if step & (step - 1) == 0 or step == len(batches):  # after 1, 2, 4, ... batches, and the last
            now = memory_of(processes())
            peak = max(peak, now.anonymous - before.anonymous)
            print(f"  {read:<16,}{now}{(now.anonymous - before.anonymous) / 1e9:18.2f}", flush=True)
    print(f"  {read / (time.perf_counter() - start):,.0f} images/s; {peak / 1e9:.2f} GB at most, the target is {TARGET_GB}")


def processes() -> Iterator[Path]:
    """This process and its children."""
    yield Path("/proc/self")
    for thread in Path("/proc/self/task").iterdir():
        yield from (Path("/proc", child) for child in (thread / "children").read_text().split())


def memory_of(processes: Iterator[Path] | list[Path]) -> Memory:
    totals = {"Pss_Anon": 0, "Pss_Shmem": 0, "Pss_File": 0}
    for process in processes:
        for line in (process / "smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += 1024 * int(value.split()[0])
    return Memory(totals["Pss_Anon"], totals["Pss_Shmem"], totals["Pss_File"])


if __name__ == "__main__":
    main()
