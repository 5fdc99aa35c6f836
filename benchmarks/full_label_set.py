"""A label set of ImageNet's size, 1,281,167 images: seconds and memory of each operation on all of it, of a report on it,
and of importing as many maps from files in the format in which ReLabel's maps were published.

Argument: a folder with 20 GB of free space (by default the system's temporary one); everything is deleted at the end. The
data were written just before they are read, so the page cache is warm as far as memory allows. Memory is the process's own
at its peak; pages of memory-mapped files belong to the page cache and are not counted.
"""

import io
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from annotate.interchange.import_maps import import_maps
from benchmarks.generated_maps import (
    GRID,
    NUM_CLASSES,
    SHARD_SIZE,
    TOPK,
    generated_maps,
    imagenet_keys,
    link_images,
    write_label_set,
)
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds, wait_for
from pipeline.noise.run import NoiseOptions, find_noise
from pipeline.report.run import ReportOptions, report
from pipeline.verify import verify
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import NOISE_THRESHOLD
from relabel.runtime.machine import cores

IMAGES = 1_281_167
DISTINCT = 2 * SHARD_SIZE - 1  # distinct maps; odd, so that no two shards are the same
FILES = 2048  # distinct files in the published format
BATCH = 256
ROUNDS = 50


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        free = shutil.disk_usage(folder).free
        if free < 20e9:
            sys.exit(
                f"{folder} has {free / 1e9:.1f} GB free, 20 are needed; choose another folder: make bench-full SCRATCH=DIR"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(1)
        print(hardware(device))
        maps = generated_maps(DISTINCT, torch.Generator().manual_seed(0))
        measure(Path(folder, "labels"), imagenet_keys(IMAGES), maps, device)
        measure_report(Path(folder), imagenet_keys(IMAGES))
        shutil.rmtree(Path(folder, "labels"))
        measure_import(Path(folder), maps)


def measure(labels: Path, keys: list[str], maps: LabelMaps, device: torch.device) -> None:
    store = load(labels, keys, maps, device).store
    store.to("cpu")  # frees the memory
    with timed("verify"):
        assert verify(labels).findings == []
    images = labels.with_name("images.txt")
    write_image_list(images, keys)
    options = NoiseOptions(labels.with_name("noise.csv"), NOISE_THRESHOLD)
    with timed("find-noise"):
        find_noise(labels, images, options)


def write_image_list(images: Path, keys: list[str]) -> None:
    """A list of the keys' images, which nothing opens, with random labels of all the classes."""
    random = torch.randint(NUM_CLASSES, (len(keys),), generator=torch.Generator().manual_seed(0)).tolist()
    images.write_text("".join(f"{key}\tn{label:08}\n" for key, label in zip(keys, random, strict=True)))


def measure_report(folder: Path, keys: list[str]) -> None:
    """`relabel report` with an image file of 500x375 for every key."""
    link_images(folder, keys, Image.effect_noise((500, 375), 60).convert("RGB"))
    page = folder / "report.html"
    torch.set_num_threads(cores())
    with timed("report"):
        report(folder / "labels", str(folder / "images"), page, ReportOptions())
    torch.set_num_threads(1)
    print(f"    {page.stat().st_size / 1e6:.1f} MB")
    page.unlink()
    shutil.rmtree(folder / "images")


@dataclass
class Taken:
    """Seconds of an operation, and the peak of the process's own memory meanwhile, in bytes."""

    seconds: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Loaded:
    """A label set in the device's memory: what loading it took, and rows per second of random batches."""

    store: LabelStore
    loading: Taken
    rows_per_s: float


def load(labels: Path, keys: list[str], maps: LabelMaps, device: torch.device) -> Loaded:
    """Write a label set of these images, open it, and read random batches, first from its files, then from memory."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = GRID
    print(f"label set of {len(keys):,} maps of k {TOPK}, {rows}x{columns}; random batches of {BATCH}: median of {ROUNDS}")
    with timed("write it"):
        write_label_set(labels, keys, maps)
    with timed("open"):
        store = LabelStore.open(labels)
    with timed("check, as train does"):
        store.check()
    with timed("rows of all keys"):
        found = store.rows(keys)
    assert torch.equal(found, torch.arange(len(keys)))

    def random_batch() -> None:
        store.gather(torch.randint(len(keys), (BATCH,), generator=generator))

    for resident in (False, True):
        with timed(f"to({device.type}), {'resident' if resident else 'mapped'}") as loading:
            store.to(device, resident)
            wait_for(device)
        [seconds] = median_seconds(device, ROUNDS, random_batch)
        print(f"    random batches      {BATCH / seconds:12,.0f} rows/s", flush=True)
    return Loaded(store, loading, BATCH / seconds)


def measure_import(folder: Path, maps: LabelMaps) -> None:
    """Import from one tar of CLASS/NAME.pt files, each (2, k, H, W) float32."""
    print(f"as many maps in the published format, in a tar; {FILES} distinct ones")
    files = []
    for row in range(FILES):
        buffer = io.BytesIO()
        torch.save(torch.stack([maps.scores[row].float(), maps.classes[row].float()]), buffer)
        files.append(buffer.getvalue())
    published = folder / "published.tar"
    with timed("write the tar"), tarfile.open(published, "w") as tar:
        for i, key in enumerate(imagenet_keys(IMAGES)):
            member = tarfile.TarInfo(f"{Path(key).with_suffix('.pt')}")
            member.size = len(files[i % FILES])
            tar.addfile(member, io.BytesIO(files[i % FILES]))
            tar.members = []  # type: ignore[attr-defined]  # otherwise a million headers stay in memory
    print(f"    {published.stat().st_size / 1e9:.1f} GB")
    with timed("import-labels"):
        import_maps(published, folder / "imported", NUM_CLASSES)
    store = LabelStore.open(folder / "imported")
    assert len(store) == IMAGES
    sample = torch.randint(IMAGES, (BATCH,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(store.gather(sample).scores, maps.scores[sample % FILES])


@contextmanager
def timed(operation: str) -> Iterator[Taken]:
    """Print what the block takes."""
    taken, ended = Taken(memory=own_memory()), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            taken.memory = max(taken.memory, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield taken
    finally:
        taken.seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
        taken.memory = max(taken.memory, own_memory())
    print(f"  {operation:<22}{taken.seconds:10.1f} s   {taken.memory / 1e9:6.2f} GB", flush=True)


def own_memory() -> int:
    """Bytes of this process's memory that are not backed by a file."""
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
