"""The annotator sees the whole image, preprocessed with its own timm settings."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from annotate.squash import Squash


def picture(rows: int = 37, columns: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (rows, columns, 3)).astype(np.uint8))


def model(**settings: Any) -> Any:
    return timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=settings)


def test_border_marks_survive_on_all_four_sides() -> None:
    marked = np.zeros((100, 300, 3), dtype=np.uint8)
    marked[:8, :, 0] = marked[-8:, :, 0] = 255  # red above and below
    marked[:, :16, 1] = marked[:, -16:, 1] = 255  # green left and right
    red, green, _ = Squash((16, 32), (0.0,) * 3, (1.0,) * 3, "bilinear")(Image.fromarray(marked)).numpy()
    assert red[[0, -1]].min() > 150 and red[3:-3].max() < 20
    assert green[:, [0, -1]].min() > 150 and green[:, 5:-5].max() < 20


def test_result_has_rows_before_columns() -> None:
    squash = Squash((16, 48), (0.5,) * 3, (0.5,) * 3, "bicubic")
    pixels = squash(picture())
    assert pixels.shape == (3, 16, 48) and pixels.dtype == torch.uint8
    assert squash.normalise(pixels[None]).shape == (1, 3, 16, 48)


@pytest.mark.parametrize(
    ("name", "mode"), [("bicubic", InterpolationMode.BICUBIC), ("bilinear", InterpolationMode.BILINEAR)]
)
def test_squash_equals_torchvisions_resize_to_tensor_and_normalize(name: str, mode: InterpolationMode) -> None:
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.9)
    squash = Squash((20, 44), mean, std, name)
    theirs = transforms.Compose([transforms.Resize((20, 44), mode), transforms.ToTensor(), transforms.Normalize(mean, std)])
    ours = squash.normalise(torch.stack([squash(picture()), squash(picture(80, 21))]))
    assert torch.allclose(ours, torch.stack([theirs(picture()), theirs(picture(80, 21))]), atol=1e-5)


def test_settings_come_from_the_model_and_its_crop_is_not_used() -> None:
    settings = {"input_size": (3, 64, 96), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}
    for crop in (0.5, 1.0):
        squash = Squash.of_model(model(**settings, crop_pct=crop, crop_mode="center"))
        assert squash == Squash((64, 96), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def test_explicit_input_size_overrides_the_models() -> None:
    assert Squash.of_model(model(input_size=(3, 64, 96)), (32, 80)).input_size == (32, 80)
