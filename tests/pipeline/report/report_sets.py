"""Label sets with images for reports: the maps of random logits, and pictures of no meaning."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relabel.labels.maps import LabelMaps
from relabel.labels.regions import BOX_STEPS, LabelRegions
from tests.label_sets import write_label_set


def random_maps(
    count: int, num_classes: int, topk: int, grid: tuple[int, int], seed: int = 0, absent: dict[int, int] | None = None
) -> LabelMaps:
    """Maps of random logits; `absent` has a class that an image shows nowhere, by number of the image."""
    logits = 3 * torch.randn(count, num_classes, *grid, generator=torch.Generator().manual_seed(seed))
    for number, class_ in (absent or {}).items():
        logits[number, class_] = -9
    scores, classes = logits.topk(topk, dim=1)
    rest = logits.sum(1) - scores.sum(1)
    return LabelMaps(scores, classes, rest / max(num_classes - topk, 1))


def random_regions(count: int, num_classes: int, topk: int, regions: int) -> LabelRegions:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, regions, 2, 2, generator=generator).sort(2).values
    boxes = (corners.flatten(2) * BOX_STEPS).round() / BOX_STEPS
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 0.01).clamp(max=1)
    boxes[..., :2] = torch.minimum(boxes[..., :2], boxes[..., 2:] - 0.01)
    logits = (3 * torch.randn(count, regions, num_classes, generator=generator)).log_softmax(2)
    logits = logits - logits.amax(2, keepdim=True)
    scores, classes = logits.topk(topk, dim=2)
    tail = torch.full((count, regions), -7.0)
    return LabelRegions(boxes, torch.zeros(count, regions).byte(), scores, classes, tail, torch.full((count,), regions))


def write_pictures(root: Path, keys: Sequence[str]) -> Path:
    """JPEGs of different sizes, none of them square."""
    rng = np.random.default_rng(0)
    for number, key in enumerate(keys):
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, size=(3, 5, 3)).astype(np.uint8))
        coarse.resize((60 + 7 * (number % 9), 40 + 3 * (number % 7))).save(path, "JPEG")
    return root


def write_maps(folder: Path, keys: Sequence[str], maps: LabelMaps, classes: Sequence[str]) -> tuple[Path, Path]:
    """A label set and its images: FOLDER/labels and FOLDER/images."""
    write_pictures(folder / "images", keys)
    write_label_set(folder / "labels", keys, maps, len(classes), classes=tuple(classes))
    return folder / "labels", folder / "images"
