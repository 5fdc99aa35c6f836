"""A label set as large as ImageNet's, 1,281,167 images: seconds and memory of what is done with all of it.

It is written into the folder named (a temporary one by default), which needs 7 GB, and deleted at the end. What is read was
written just before: where memory allows, the page cache is warm. Memory is what the process holds for itself at its peak;
pages of mapped files are the page cache's, and are not counted.
"""

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.generated_maps import GRID, SHARD_SIZE, TOPK, generated_maps, write_label_set
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from pipeline.shards import LabelStore
from pipeline.verify import verify

IMAGES = 1_281_167
DISTINCT = 2 * SHARD_SIZE - 1  # maps; odd, so that no two shards are alike
BATCH = 256
ROUNDS = 50


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        free = shutil.disk_usage(folder).free
        if free < 7e9:
            sys.exit(f"{folder} has {free / 1e9:.1f} GB free, 7 are needed; name another: make bench-full SCRATCH=DIR")
        measure(Path(folder, "labels"), torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def measure(labels: Path, device: torch.device) -> None:
    torch.set_num_threads(1)
    print(hardware(device))
    generator = torch.Generator().manual_seed(0)
    maps = generated_maps(DISTINCT, generator)
    rows, columns = GRID
    print(f"label set of {IMAGES:,} maps of k {TOPK}, {rows}x{columns}; random batches of {BATCH}: median of {ROUNDS}")
    with timed("write it"):
        keys = write_label_set(labels, IMAGES, maps)
    with timed("open"):
        store = LabelStore.open(labels)
    with timed("rows of all keys"):
        found = store.rows(keys)
    assert torch.equal(found, torch.arange(IMAGES))

    def random_batch() -> None:
        store.gather(torch.randint(IMAGES, (BATCH,), generator=generator))

    for resident in (False, True):
        with timed(f"to({device.type}), {'resident' if resident else 'mapped'}"):
            store.to(device, resident)
        [seconds] = median_seconds(device, ROUNDS, random_batch)
        print(f"    random batches      {BATCH / seconds:12,.0f} rows/s")
    store.to("cpu", resident=False)  # gives the memory back
    with timed("verify"):
        assert verify(labels).findings == []


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds that this takes, and the most memory that the process holds meanwhile."""
    peak, ended = own_memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
    print(f"  {what:<22}{seconds:10.1f} s   {max(peak, own_memory()) / 1e9:6.2f} GB", flush=True)


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
