"""Evaluation the slow way, one image at a time by timm's own transform, and small runs to evaluate."""

from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor, nn

from relabel.images.decoding import read_rgb
from relabel.models.card import ModelCard
from relabel.models.preprocessing import Preprocessing
from train.run_dir import checkpoint

THIN: dict[str, Any] = {"stem_width": 8, "channels": (8, 8, 16, 64), "zero_init_last": False}
VIEW = Preprocessing(16, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def logits_of(classifier: nn.Module, paths: list[Path], view: Preprocessing = VIEW) -> Tensor:
    """One image at a time, by timm's transform."""
    with torch.inference_mode():
        return torch.cat([classifier(images_of([path], view)) for path in paths])


def images_of(paths: list[Path], view: Preprocessing = VIEW) -> Tensor:
    transform = create_transform(
        (3, view.size, view.size), interpolation=view.interpolation, mean=view.mean, std=view.std, crop_pct=view.crop
    )
    return torch.stack([transform(read_rgb(path)) for path in paths])


def save_run(path: Path, classifier: nn.Module, classes: tuple[str, ...]) -> Path:
    card = ModelCard("resnet10t", THIN, classes, VIEW)
    checkpoint.save_weights(path, classifier.state_dict(), card)
    return path
