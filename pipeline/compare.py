"""Compare two label sets of the same images: their whole-image classes, and the targets they give random crops."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from relabel.labels.boxes import random_boxes
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore
from relabel.labels.whole_image import whole_image_top1
from relabel.runtime.defaults import COMPARE_BOXES
from relabel.runtime.errors import InputError
from relabel.runtime.typed import shown

BATCH = 256
MAX_NAMED = 5  # images and classes listed
MAX_BOXES = 1000  # per image: more would tell nothing new, and take hours
SETTINGS = ("model", "kind", "input_size", "grid", "precision", "topk", "tail", "recentre", "flip")


@dataclass(frozen=True)
class Comparison:
    """How two label sets differ, over the images in both.

    Attributes:
        different_settings: settings in which the sets differ, as "name: first's, not second's".
        images: number of images in both sets; only_first, only_second: number of images in one set only.
        agreement: share of images with the same whole-image top-1 class in both.
        kl: mean Kullback-Leibler divergence, in nats, of the second set's pooled target from the first's, over random boxes.
        worst_images: (key, mean KL over its boxes), largest first.
        worst_folders: (class folder, mean KL), largest first.
    """

    different_settings: list[str]
    images: int
    only_first: int
    only_second: int
    agreement: float
    kl: float
    worst_images: list[tuple[str, float]]
    worst_folders: list[tuple[str, float]]


def log_targets(maps: LabelMaps, boxes: list[Tensor], num_classes: int) -> Tensor:
    """(n, B, C) log-probabilities from the maps for n boxes per image, each (B, 4)."""
    return torch.stack([label_pool(maps, box, num_classes).log_softmax(1) for box in boxes])


def mean_kl(p: Tensor, q: Tensor) -> Tensor:
    """(B,) KL divergence in nats of q from p, both (n, B, C) log-probabilities; the mean over the n boxes."""
    return (p.exp() * (p - q)).sum(2).mean(0)


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
    mismatch = b.manifest.classes and a.manifest.class_mismatch(b.manifest.classes)
    if mismatch:
        raise InputError(f"{first} cannot be compared with {second}: {mismatch}")
    keys = [key for key, row in zip(a.keys, b.find(a.keys).tolist(), strict=True) if row >= 0]
    if not keys:
        raise InputError(f"{first} and {second} have no image in common (first keys: {a.keys[0]}, {b.keys[0]})")
    classes = a.manifest.num_classes
    generator = torch.Generator().manual_seed(seed)
    same, kl_parts = [], []
    for start in tqdm(range(0, len(keys), BATCH), desc="compare", unit="batch", disable=None):
        part = keys[start : start + BATCH]
        maps = a.gather(a.rows(part)), b.gather(b.rows(part))
        tops = [whole_image_top1(m, classes) for m in maps]
        same.append(tops[0] == tops[1])
        boxes = [random_boxes(len(part), generator) for _ in range(boxes_per_image)]
        by_box = [mean_kl(*(log_targets(m, [box], classes) for m in maps)) for box in boxes]  # one at a time, to save memory
        kl_parts.append(torch.stack(by_box).mean(0))
    kl = torch.cat(kl_parts)
    folders: dict[str, list[float]] = {}
    for key, value in zip(keys, kl.tolist(), strict=True):
        folders.setdefault(key.rpartition("/")[0], []).append(value)
    by_folder = sorted(((name, sum(v) / len(v)) for name, v in folders.items()), key=lambda item: -item[1])
    order = kl.argsort(descending=True)[:MAX_NAMED].tolist()
    return Comparison(
        different_settings=[d for d in a.manifest.differences(b.manifest) if d.partition(":")[0] in SETTINGS],
        images=len(keys),
        only_first=len(a) - len(keys),
        only_second=len(b) - len(keys),
        agreement=float(torch.cat(same).float().mean()),
        kl=float(kl.mean()),
        worst_images=[(keys[i], float(kl[i])) for i in order],
        worst_folders=by_folder[:MAX_NAMED],
    )
