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
PREPROCESSING = Preprocessing(16, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def logits_of(classifier: nn.Module, paths: list[Path], preprocessing: Preprocessing = PREPROCESSING) -> Tensor:
    """One image at a time, by timm's transform."""
    with torch.inference_mode():
        return torch.cat([classifier(images_of([path], preprocessing)) for path in paths])


def images_of(paths: list[Path], preprocessing: Preprocessing = PREPROCESSING) -> Tensor:
    transform = create_transform(
        (3, preprocessing.size, preprocessing.size),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop,
    )
    return torch.stack([transform(read_rgb(path)) for path in paths])


def save_run(path: Path, classifier: nn.Module, classes: tuple[str, ...]) -> Path:
    card = ModelCard("resnet10t", THIN, classes, PREPROCESSING)
    checkpoint.save_weights(path, classifier.state_dict(), card)
    return path
