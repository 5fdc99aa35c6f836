"""LabelStore, resident and memory-mapped, against one `.pt` file per image, as ReLabel's maps were published.

A training step needs the maps of a random batch. Opening and unpickling a file per image needs more data-loading processes;
an index_select costs next to nothing. One process with one thread reads, as in a DataLoader worker. The data were written
just before, so the page cache is warm and the disk is not measured.

Shapes: N images of the set, B of a batch, k classes kept per cell, H rows and W columns of the label map.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.generated_maps import GRID, TOPK, generated_maps, imagenet_keys, write_label_set
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore

IMAGES = 8192
FILES = 2048  # of these images, as .pt files
BATCH = 256
ROUNDS = 50


def main() -> None:
    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    print(hardware(cpu))
    generator = torch.Generator().manual_seed(0)
    maps = generated_maps(IMAGES, generator)
    with tempfile.TemporaryDirectory() as folder:
        labels, files = Path(folder, "labels"), Path(folder, "files")
        write_label_set(labels, imagenet_keys(IMAGES), maps)
        write_files(files, maps)
        resident, mapped = LabelStore.open(labels).to(cpu, resident=True), LabelStore.open(labels)
        check_same_maps(resident, mapped, files)
        resident_s, mapped_s, files_s = median_seconds(
            cpu,
            ROUNDS,
            lambda: resident.gather(torch.randint(IMAGES, (BATCH,), generator=generator)),
            lambda: mapped.gather(torch.randint(IMAGES, (BATCH,), generator=generator)),
            lambda: load_files(files, torch.randint(FILES, (BATCH,), generator=generator)),
        )
    rows, columns = GRID
    print(
        f"label store: random batches of {BATCH} from {IMAGES} maps of k {TOPK}, {rows}x{columns}, and from {FILES} files;"
        f" warm page cache, one thread; median of {ROUNDS}, interleaved"
    )
    print(f"  LabelStore, resident   {BATCH / resident_s:12,.0f} rows/s   {files_s / resident_s:8.1f} times .pt")
    print(f"  LabelStore, mapped     {BATCH / mapped_s:12,.0f} rows/s   {files_s / mapped_s:8.1f} times .pt")
    print(f"  one .pt per image      {BATCH / files_s:12,.0f} rows/s")


def write_files(files: Path, maps: LabelMaps) -> None:
    """Write each of the first FILES maps as (2, k, H, W) float32: scores, then class numbers."""
    files.mkdir()
    for row in range(FILES):
        torch.save(torch.stack([maps.scores[row].float(), maps.classes[row].float()]), files / f"{row}.pt")


def load_files(files: Path, rows: Tensor) -> Tensor:
    """(B, 2, k, H, W) float32."""
    return torch.stack([torch.load(files / f"{row}.pt", weights_only=True) for row in rows.tolist()])


def check_same_maps(resident: LabelStore, mapped: LabelStore, files: Path) -> None:
    """All three must return the same maps; otherwise their speeds cannot be compared."""
    rows = torch.arange(BATCH)
    scores, classes = load_files(files, rows).unbind(1)
    for maps in (resident.gather(rows), mapped.gather(rows)):
        assert torch.equal(maps.scores.float(), scores) and torch.equal(maps.classes.float(), classes)


if __name__ == "__main__":
    main()
