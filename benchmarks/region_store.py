"""Importing regions from ml-dr's and FKD's files; and LabelStore of them, resident and mapped, against reading the files.

A training step needs a region of each image of a random batch. ml-dr's and FKD's data sets unpickle an image's file for it,
with all regions of the image, by torch.load. Here one process with one thread reads, as in a DataLoader worker; the import
takes all cores. The data were written just before, so the page cache is warm and the disk is not measured.

Shapes: N regions of an image, B images of a batch, k classes kept per region.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from annotate.interchange.fkd import fkd_file
from annotate.interchange.image_folder import image_folder_order
from annotate.interchange.import_labels import ImportOptions, import_labels
from annotate.interchange.ml_dr import CONFIG, ml_dr_config, ml_dr_file, saved
from benchmarks.generated_maps import NUM_CLASSES, imagenet_keys
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from relabel.images.sources import find_images
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import ForeignFormat

IMAGES = 2048
SIZE = (500, 375)  # width and height of most of ImageNet's images
TOPK = 10
BATCH = 256
ROUNDS = 10
PUBLISHED, FEW = 400, 8  # regions of an image: as many as ml-dr published, and a hundredth of the work of making them


def main() -> None:
    cpu = torch.device("cpu")
    print(hardware(cpu))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder, "images"))
        for regions in (FEW, PUBLISHED):
            measure(Path(folder, str(regions)), images, regions, cpu)


def measure(folder: Path, images: Path, regions: int, cpu: torch.device) -> None:
    ml_dr, fkd = write_stores(folder, images, regions)
    print(f"{IMAGES} images with {regions} regions of k {TOPK}; random batches of {BATCH}: median of {ROUNDS}, interleaved")
    for name, source in (("fkd", fkd), ("ml-dr", ml_dr)):
        kind: ForeignFormat = "fkd" if name == "fkd" else "ml-dr"
        start = time.perf_counter()
        import_labels(source, folder / "labels" / name, images, kind, ImportOptions(num_classes=NUM_CLASSES))
        rate = IMAGES / (time.perf_counter() - start)
        print(f"  import-labels {name:8} {rate:12,.0f} images/s")
    labels = folder / "labels" / "ml-dr"
    resident, mapped = (LabelStore.open(labels, LabelRegions).to(cpu, resident) for resident in (True, False))
    generator = torch.Generator().manual_seed(0)
    keys, order = resident.keys, np.argsort(image_folder_order(find_images(images)))

    def rows() -> torch.Tensor:
        return torch.randint(IMAGES, (BATCH,), generator=generator)

    resident_s, mapped_s, ml_dr_s, fkd_s = median_seconds(
        cpu,
        ROUNDS,
        lambda: resident.gather(rows()),
        lambda: mapped.gather(rows()),
        lambda: [torch.load(ml_dr / f"{order[i]}.pth.tar", weights_only=False) for i in rows().tolist()],
        lambda: [torch.load(fkd_path(fkd, keys[i]), weights_only=False) for i in rows().tolist()],
    )
    for name, seconds in (("LabelStore, resident", resident_s), ("LabelStore, mapped", mapped_s)):
        times = f"{ml_dr_s / seconds:8.1f} times ml-dr {fkd_s / seconds:8.1f} times FKD"
        print(f"  {name:22} {BATCH / seconds:12,.0f} rows/s {times}")
    for name, seconds in (("ml-dr's files", ml_dr_s), ("FKD's files", fkd_s)):
        print(f"  {name:22} {BATCH / seconds:12,.0f} rows/s")


def write_images(folder: Path) -> Path:
    """IMAGES links to one JPEG, of which the import reads the header."""
    folder.mkdir()
    picture = folder.parent / "picture.jpg"
    Image.new("RGB", SIZE).save(picture)
    for key in imagenet_keys(IMAGES):
        (folder / key).parent.mkdir(exist_ok=True)
        os.link(picture, folder / key)
    return folder


def write_stores(folder: Path, images: Path, regions: int) -> tuple[Path, Path]:
    """The same generated regions of all images as ml-dr's and as FKD's files."""
    ml_dr, fkd = folder / "ml-dr", folder / "fkd"
    ml_dr.mkdir(parents=True)
    image_set = find_images(images)
    rng = np.random.default_rng(0)
    for number, index in enumerate(image_folder_order(image_set).tolist()):
        x0, y0 = rng.integers(0, 200, regions), rng.integers(0, 150, regions)
        boxes = np.stack((x0, y0, x0 + rng.integers(50, 300, regions), y0 + rng.integers(50, 225, regions)), axis=1)
        mirrored = rng.random(regions) < 0.5
        classes = rng.random((regions, NUM_CLASSES)).argsort(axis=1)[:, :TOPK]
        probs = np.sort(rng.dirichlet(np.ones(TOPK), regions) * 0.9)[:, ::-1]
        windows = [tuple(box) for box in boxes.tolist()]
        content = ml_dr_file(number, windows, mirrored.tolist(), classes.tolist(), probs.tolist())
        (ml_dr / f"{number}.pth.tar").write_bytes(content)
        path = fkd_path(fkd, image_set.keys[index])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fkd_file(boxes / (*SIZE, *SIZE), mirrored, classes, probs))
    (ml_dr / CONFIG).write_bytes(saved(ml_dr_config(regions, TOPK, NUM_CLASSES, 224)))
    return ml_dr, fkd


def fkd_path(fkd: Path, key: str) -> Path:
    return (fkd / "imagenet" / "train" / key).with_suffix(".tar")


if __name__ == "__main__":
    main()
