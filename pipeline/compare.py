"""Compare two label sets of the same images: their whole-image classes, and the targets they give the same crops.

The crops are random ones, or the stored ones if either set holds regions.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from relabel.labels.boxes import random_boxes, whole_image
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from relabel.labels.stored import StoredLabels
from relabel.labels.whole_image import whole_image_top1
from relabel.runtime.defaults import COMPARE_BOXES
from relabel.runtime.errors import InputError
from relabel.runtime.typed import shown

BATCH = 256
MAX_NAMED = 5  # images and classes listed
MAX_BOXES = 1000  # per image: more would tell nothing new, and take hours
SETTINGS = (
    "model",
    "kind",
    "input_size",
    "grid",
    "precision",
    "topk",
    "tail",
    "recentre",
    "flip",
    "regions",
    "crop_scale",
    "crop_ratio",
    "hflip",
    "ensemble",
)


@dataclass(frozen=True)
class Comparison:
    """How two label sets differ, over the images in both.

    Attributes:
        different_settings: settings in which the sets differ, as "name: first's, not second's".
        images: number of images in both sets; only_first, only_second: number of images in one set only.
        agreement: share of images with the same whole-image top-1 class in both.
        kl: mean Kullback-Leibler divergence, in nats, of the second set's target from the first's, over the same boxes.
        boxes: how many boxes per image, and which, in words.
        worst_images: (key, mean KL over its boxes), largest first.
        worst_folders: (class folder, mean KL), largest first.
    """

    different_settings: list[str]
    images: int
    only_first: int
    only_second: int
    agreement: float
    kl: float
    boxes: str
    worst_images: list[tuple[str, float]]
    worst_folders: list[tuple[str, float]]


def different_settings(first: Manifest, second: Manifest) -> list[str]:
    """The SETTINGS in which two label sets differ, as "name: first's, not second's"."""
    return [difference for difference in first.differences(second) if difference.partition(":")[0] in SETTINGS]


def log_targets(maps: LabelMaps, boxes: list[Tensor], num_classes: int) -> Tensor:
    """(n, B, C) log-probabilities from the maps for n boxes per image, each (B, 4)."""
    return torch.stack([label_pool(maps, box, num_classes).log_softmax(1) for box in boxes])


def mean_kl(p: Tensor, q: Tensor) -> Tensor:
    """(B,) KL divergence in nats of q from p, both (n, B, C) log-probabilities; the mean over the n boxes."""
    return (p.exp() * (p - q)).sum(2).mean(0)


def mean_kl_of(
    p: StoredLabels, q: StoredLabels, count: int, num_classes: int, generator: torch.Generator, names: str
) -> Tensor:
    """(B,) KL divergence in nats of the targets of q from those of p, the mean over `count` boxes of each of B images.

    NaN for an image without regions.
    """
    regions = [labels for labels in (p, q) if isinstance(labels, LabelRegions)]
    if not regions:
        boxes = [random_boxes(len(p), generator) for _ in range(count)]
        present = torch.ones(len(p), count)
    else:
        check_same_crops(regions, names)
        count = min(count, *(labels.flags.shape[1] for labels in regions))
        present = torch.stack([labels.present()[:, :count] for labels in regions]).all(0).float()
        stored = torch.where(present.bool().unsqueeze(2), regions[0].boxes[:, :count], whole_image(1))
        boxes = list(stored.unbind(1))
    by_box = []  # one box at a time, to save memory
    for number, box in enumerate(boxes):
        by_box.append(mean_kl(*(log_target(labels, box, number, num_classes).unsqueeze(0) for labels in (p, q))))
    return (torch.stack(by_box, 1) * present).sum(1) / present.sum(1)  # NaN without any


def log_target(labels: StoredLabels, box: Tensor, number: int, num_classes: int) -> Tensor:
    """(B, C) log-probabilities of a box of each image, (B, 4); of regions, those of the region of that number."""
    if isinstance(labels, LabelRegions):
        numbers = torch.full((len(labels),), number)
        return labels.select(numbers).logits().dense(num_classes).log_softmax(1)
    assert isinstance(labels, LabelMaps)
    return log_targets(labels, [box], num_classes)[0]


def check_same_crops(regions: list[LabelRegions], names: str) -> None:
    """Raises InputError if two sets hold the answers to different crops."""
    if len(regions) < 2:
        return
    n = min(labels.flags.shape[1] for labels in regions)
    both = torch.stack([labels.present()[:, :n] for labels in regions]).all(0)
    a, b = ((labels.boxes[:, :n], labels.flags[:, :n]) for labels in regions)
    if not (torch.equal(a[0][both], b[0][both]) and torch.equal(a[1][both], b[1][both])):
        raise InputError(
            f"{names} hold the answers to different crops, which cannot be compared; make them by `relabel annotate` with"
            " the same --crop-scale, --crop-ratio and --hflip"
        )


def compare(first: Path, second: Path, boxes_per_image: int = COMPARE_BOXES, seed: int = 0) -> Comparison:
    """Compare two label sets.

    Raises:
        InputError: one of them is not a complete label set, their classes differ, or they have no image in common.
    """
    if not 1 <= boxes_per_image <= MAX_BOXES:
        raise InputError(f"--boxes {shown(boxes_per_image)}: expected 1 to {MAX_BOXES}")
    a, b = (LabelStore.open(labels).check() for labels in (first, second))
    if a.manifest.num_classes != b.manifest.num_classes:
        raise InputError(
            f"{first} has {a.manifest.num_classes} classes, {second} has {b.manifest.num_classes}; they cannot be compared"
        )
    if a.manifest.window != b.manifest.window:
        raise InputError(
            f"{first} and {second} do not cover the same part of each image (window {a.manifest.window} and"
            f" {b.manifest.window} in {MANIFEST}); they cannot be compared"
        )
    mismatch = b.manifest.classes and a.manifest.class_mismatch(b.manifest.classes)
    if mismatch:
        raise InputError(f"{first} cannot be compared with {second}: {mismatch}")
    keys = [key for key, row in zip(a.keys, b.find(a.keys).tolist(), strict=True) if row >= 0]
    if not keys:
        raise InputError(f"{first} and {second} have no image in common (first keys: {a.keys[0]}, {b.keys[0]})")
    in_both = len(keys)
    classes = a.manifest.num_classes
    generator = torch.Generator().manual_seed(seed)
    same, kl_parts = [], []
    stored = [min(s.manifest.regions, boxes_per_image) for s in (a, b) if s.manifest.regions is not None]
    for start in tqdm(range(0, len(keys), BATCH), desc="compare", unit="batch", disable=None):
        part = keys[start : start + BATCH]
        pair = a.gather(a.rows(part)), b.gather(b.rows(part))
        tops = [whole_image_top1(labels, classes) for labels in pair]
        same.append(tops[0] == tops[1])
        kl_parts.append(mean_kl_of(*pair, boxes_per_image, classes, generator, f"{first} and {second}"))
    kl = torch.cat(kl_parts)
    answered = kl.isfinite()  # the others have no regions
    if not bool(answered.any()):
        raise InputError(f"{first} and {second} have no regions of the same images")
    keys, kl = [key for key, has in zip(keys, answered.tolist(), strict=True) if has], kl[answered]
    folders: dict[str, list[float]] = {}
    for key, value in zip(keys, kl.tolist(), strict=True):
        folders.setdefault(key.rpartition("/")[0], []).append(value)
    by_folder = sorted(((name, sum(v) / len(v)) for name, v in folders.items()), key=lambda item: -item[1])
    order = kl.argsort(descending=True)[:MAX_NAMED].tolist()
    return Comparison(
        different_settings=different_settings(a.manifest, b.manifest),
        images=in_both,
        only_first=len(a) - in_both,
        only_second=len(b) - in_both,
        agreement=float(torch.cat(same).float().mean()),
        kl=float(kl.mean()),
        boxes=f"{min(stored)} stored regions" if stored else f"{boxes_per_image} random boxes",
        worst_images=[(keys[i], float(kl[i])) for i in order],
        worst_folders=by_folder[:MAX_NAMED],
    )
