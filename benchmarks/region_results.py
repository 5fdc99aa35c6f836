"""`make results TABLES="regions fidelity"`: what regions bring, on the embedded scenes, and how faithful stored labels are.

    regions      students of as many steps, with targets from label maps, from N regions of each image, from both, or from
                 the classifier itself in every step
    fidelity     mean KL of a stored target from the classifier's own answer to the same crop: maps by k, regions by N

The classifier saw crops of 8% to 100% of its images in training, as ImageNet's classifiers do; that of the other tables saw
30% to 70%. Crops are not mirrored, since a mirrored digit is not the same digit.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from annotate.config import AnnotateConfig
from annotate.models import load_classifier, with_card
from annotate.regions import cut, draw_regions, sparse_answers
from annotate.run import annotate
from annotate.squash import Squash
from benchmarks import results
from benchmarks.results import RESULTS, Arm, as_table, relabel, train_all
from pipeline.demo.networks import ANNOTATOR_MODEL_ARGS, ARCH, THIN
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore

EPOCHS, SEEDS = (12,), (0, 1, 2, 3, 4)
COUNTS = (4, 16, 64)  # regions of an image
TOPK = 3
ANNOTATOR = RESULTS / "annotators" / "crops"
FIDELITY_IMAGES, FIDELITY_CROPS = 200, 20  # and crops of each
SCALE, RATIO = (0.08, 1.0), (0.75, 1.3333)


@dataclass(frozen=True)
class Stored:
    """A label set of the training scenes, what it took to make, and what it takes to keep."""

    path: Path
    seconds: float
    bytes_per_image: float


def regions() -> str:
    """Train every arm with every seed, and measure the cost of its labels; a row per arm."""
    train_annotator()
    stored = {name: make(name, count) for name, count in (("maps", None), *((f"regions {n}", n) for n in COUNTS))}
    arms = {arm: cost for arm, cost in arms_of(stored)}
    accuracies = train_all([(arm, epochs, seed) for seed in SEEDS for epochs in EPOCHS for arm in arms])
    rows = {arm.name: [[accuracies[arm, epochs, seed] for seed in SEEDS] for epochs in EPOCHS] for arm in arms}
    lines = as_table([f"{epochs} epochs" for epochs in EPOCHS], rows, CAPTION).split("\n")
    lines[0] += " annotating, s | bytes an image |"
    lines[1] += "---|---|"
    for number, (arm, (seconds, size)) in enumerate(arms.items(), start=2):
        assert lines[number].startswith(f"| {arm.name} |")
        lines[number] += f" {seconds:.1f} | {size:,.0f} |"
    return "\n".join(lines)


CAPTION = (
    f"Multi-label accuracy in percent on 1,000 {results.SCENES}; seconds of annotating 3,000 scenes by one thread, or of the"
    " live teacher's answers to the crops of one student; bytes of the labels of an image"
)


def arms_of(stored: dict[str, Stored]) -> list[tuple[Arm, tuple[float, float]]]:
    """Every row, with seconds of annotating and bytes per image."""
    free = (0.0, 0.0)
    arms = [(Arm("single label", "scenes-single"), free)]
    costs = {name: (of.seconds, of.bytes_per_image) for name, of in stored.items()}
    maps, some = stored["maps"], stored["regions 16"]
    arms.append((Arm("label maps", "scenes-relabel", options=("--labels", str(maps.path))), costs["maps"]))
    for count in COUNTS:
        name, labels = f"regions {count}", ("--labels", str(stored[f"regions {count}"].path))
        arms.append((Arm(f"{count} regions", "scenes-relabel", ("target=regions",), options=labels), costs[name]))
    both = ("--labels", str(some.path), "--maps", str(maps.path))
    together = (maps.seconds + some.seconds, maps.bytes_per_image + some.bytes_per_image)
    arms.append((Arm("label maps and 16 regions", "scenes-relabel", ("target=regions",), options=both), together))
    live = ("--teacher-checkpoint", str(ANNOTATOR / "weights.pth"), "--teacher-input-size", "64")
    arms.append((Arm("live teacher", "scenes-relabel", ("target=teacher",), options=live), (live_seconds(), 0.0)))
    return arms


def train_annotator() -> None:
    if not (ANNOTATOR / "weights.pth").exists():
        options = ["--recipe", "scenes-annotator", "--set", "crop_scale=[0.08, 1]", "--workers", "0", "--resume"]
        images = RESULTS / "data" / "annotator" / "train"
        relabel("train", str(images), "--run-dir", str(ANNOTATOR), "--arch", ARCH, *ANNOTATOR_MODEL_ARGS, *options)


def settings(regions: int | None = None) -> AnnotateConfig:
    options: dict[str, Any] = {"model_kwargs": THIN | {"output_stride": 8}, "num_classes": 10, "input_size": (64, 64)}
    if regions is not None:
        options |= {"regions": regions, "hflip": 0.0, "crop_scale": SCALE, "crop_ratio": RATIO}
    return AnnotateConfig(ARCH, checkpoint=ANNOTATOR / "weights.pth", topk=TOPK, workers=0, **options)


def make(name: str, regions: int | None) -> Stored:
    """Annotate the training scenes, unless that is done; the seconds are those of the run that made the set."""
    path = RESULTS / "labels" / f"crops-{name.replace(' ', '-')}"
    took = path.with_suffix(".seconds")
    if not took.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        annotate(RESULTS / "data" / "train", path, settings(regions), "cpu")
        took.write_text(f"{time.perf_counter() - start:.3f}")
        torch.set_num_threads(threads)
    store = LabelStore.open(path)
    return Stored(path, float(took.read_text()), store.nbytes / len(store))


def live_seconds() -> float:
    """Seconds that the teacher takes for the crops of one student, by one thread: measured on a batch of its size."""
    config, card = with_card(settings())
    classifier, squash = load_classifier(config, torch.device("cpu"), card)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = squash.normalise(torch.randint(256, (32, 3, 64, 64), dtype=torch.uint8))
    with torch.inference_mode():
        classifier(batch)
        start = time.perf_counter()
        for _ in range(20):
            classifier(batch)
        seconds = (time.perf_counter() - start) / 20
    torch.set_num_threads(threads)
    return seconds * (len(find_images(RESULTS / "data" / "train")) // 32) * EPOCHS[-1]


@torch.inference_mode()
def fidelity() -> str:
    """Mean KL, in nats, of the target of a fresh crop from the classifier's own answer to it; a row per stored form.

    Regions hold no answer to a fresh crop: the nearest stored region's answer is taken, by intersection over union.
    """
    train_annotator()
    config, card = with_card(settings())
    classifier, squash = load_classifier(config, torch.device("cpu"), card)
    images = find_images(RESULTS / "data" / "val")
    step = len(images) // FIDELITY_IMAGES
    crops = [
        answers(images, index, "fresh", FIDELITY_CROPS, classifier, squash)
        for index in range(0, step * FIDELITY_IMAGES, step)
    ]
    keys = [images.keys[index] for index in range(0, step * FIDELITY_IMAGES, step)]
    boxes, exact = torch.stack([b for b, _ in crops]), torch.stack([a for _, a in crops])  # (…, 4) and (…, C)
    rows = []
    for k in (1, 2, 3, 5, 10):
        path = RESULTS / "labels" / f"fidelity-maps-{k}"
        annotate(RESULTS / "data" / "val", path, replace(settings(), topk=k), "cpu")
        store = LabelStore.open(path, LabelMaps)
        maps = store.gather(store.rows(keys))
        pooled = torch.stack([label_pool(maps, boxes[:, i], 10) for i in range(FIDELITY_CROPS)], 1).log_softmax(2)
        rows.append((f"label map, k = {k}", store.nbytes / len(store), kl(exact, pooled)))
    for count in (1, 4, 16, 64):
        stored = [stored_regions(images, images.index(key), count, classifier, squash) for key in keys]
        nearest = torch.stack([of[1][box_iou(b, of[0]).argmax(1)] for b, of in zip(boxes, stored, strict=True)])
        name = f"{count} region{'s' * (count > 1)}, k = {TOPK}, the nearest"
        rows.append((name, count * (11 + 4 * TOPK) + 2.0, kl(exact, nearest)))
    lines = ["| stored | bytes an image | mean KL, nats |", "|---|---|---|"]
    lines += [f"| {name} | {size:,.0f} | {value:.3f} |" for name, size, value in rows]
    caption = f"{FIDELITY_CROPS} fresh crops of each of {FIDELITY_IMAGES} {results.SCENES}"
    return "\n".join([*lines, "", f"{caption}. `make results TABLES=fidelity`, {results.machine()}."])


def answers(
    images: ImageSet, index: int, name: str, count: int, classifier: nn.Module, squash: Squash
) -> tuple[Tensor, Tensor]:
    """Random crops of an image, (count, 4), and the classifier's log-probabilities of each, (count, C).

    Args:
        name: other names give other crops.
    """
    image = images.read(index)
    drawn = draw_regions(f"{name} {images.keys[index]}", image.size, count, SCALE, RATIO, hflip=0.0)
    pixels = torch.stack([cut(image, window, mirrored, squash) for window, mirrored in drawn])
    boxes = torch.tensor([window for window, _ in drawn]) / torch.tensor([*image.size, *image.size])
    return boxes, classifier(squash.normalise(pixels)).log_softmax(1)


def stored_regions(images: ImageSet, index: int, count: int, classifier: nn.Module, squash: Squash) -> tuple[Tensor, Tensor]:
    """As `answers`, of the stored regions of an image, as they come back from the store."""
    boxes, log_probs = answers(images, index, "stored", count, classifier, squash)
    return boxes, sparse_answers(log_probs, TOPK, "logmeanexp").dense(log_probs.shape[1]).log_softmax(1)


def kl(p: Tensor, q: Tensor) -> float:
    """Mean KL divergence of q from p, in nats; (..., C) log-probabilities."""
    return float((p.exp() * (p - q)).sum(-1).mean())
