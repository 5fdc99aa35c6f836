"""Centre crops equal those of timm's own transform."""

import resource
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from relabel.images.decoding import read_rgb
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.models.preprocessing import Preprocessing, eval_preprocessing
from train.evaluation.centre_crops import CentreCrops


@pytest.fixture
def folder(tmp_path: Path) -> ImageSet:
    """Three noisy images of three shapes."""
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i, size in enumerate([(20, 33, 3), (47, 21, 3), (30, 30, 3)]):
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(tmp_path / "a" / f"{i}.png")
    return find_images(tmp_path)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_uint8_crops_normalised_on_the_device_equal_timms_transform(
    folder: ImageSet, crop_mode: str, interpolation: str
) -> None:
    preprocessing = Preprocessing(16, 0.875, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_mode)
    theirs = create_transform(
        (3, 16, 16),
        interpolation=interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=0.875,
        crop_mode=crop_mode,
    )
    crops = CentreCrops(folder, preprocessing, range(3))
    for i, key in enumerate(folder.keys):
        pixels, index = crops[i]
        assert index == i and pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 16)
        expected = theirs(read_rgb(Path(folder.source, key)))
        torch.testing.assert_close(preprocessing.normalise(pixels.unsqueeze(0))[0], expected, rtol=1e-5, atol=1e-5)


def test_published_model_is_evaluated_with_its_own_settings_at_test_size() -> None:
    preprocessing = eval_preprocessing(timm.create_model("resnet10t.c3_in1k"))
    assert (preprocessing.size, preprocessing.crop, preprocessing.interpolation) == (224, 0.95, "bicubic")
    settings = resolve_model_data_config(timm.create_model("resnet10t.c3_in1k"), use_test_size=True)
    assert astuple(preprocessing)[3:5] == (settings["mean"], settings["std"])


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (3, 65_001)])
def test_very_long_image_is_shown_from_its_middle_without_resizing_it_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """Resized to 256 pixels along its shorter side, 1 x 65,000 pixels would take 15 GB."""
    shorter, longer = sorted(size)
    grey = np.zeros((longer, shorter), dtype=np.uint8)
    grey[longer // 2 :] = 200
    tall = size[1] > size[0]
    (tmp_path / "a").mkdir()
    Image.fromarray(grey if tall else grey.T).save(tmp_path / "a" / "x.png")
    crops = CentreCrops(find_images(tmp_path), Preprocessing(224, 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3), [0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shown = np.asarray(crops[0][0])[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    profile = shown.mean(1 if tall else 0)
    assert shown.shape == (224, 224) and (np.diff(profile) >= 0).all(), "dark before the middle, bright after it"
    assert profile[0] < 60 and profile[-1] > 140
