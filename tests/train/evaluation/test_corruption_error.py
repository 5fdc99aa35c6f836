"""The mean corruption error against published values and sums by hand."""

import numpy as np
import pytest

from train.evaluation.corruption_error import ALEXNET_ERROR, corruption_error, mean_corruption_error, mean_error
from train.evaluation.measures import Measure


def accuracies_with_error(error_of_corruption: dict[str, float]) -> dict[str, list[Measure]]:
    """Two images at five severities: errors of error - 20 ... error + 20 on average, the first image 10 below the second."""
    return {
        name: [Measure(100 - np.array([e + step - 5, e + step + 5])) for step in (-20, -10, 0, 10, 20)]
        for name, e in error_of_corruption.items()
    }


# torchvision's ResNet-50: top-1 in percent under each corruption, and its error relative to AlexNet's, as measured by Rusak
# et al. 2020 (github.com/bethgelab/game-of-noise, Results/clean_results.txt)
RESNET50 = {
    "brightness": (68.02, 56.64),
    "contrast": (39.06, 71.43),
    "defocus_blur": (38.75, 74.71),
    "elastic_transform": (45.25, 84.75),
    "fog": (45.83, 66.11),
    "frost": (38.14, 74.84),
    "gaussian_noise": (29.29, 79.77),
    "glass_blur": (26.79, 88.61),
    "impulse_noise": (23.81, 82.58),
    "jpeg_compression": (53.41, 76.82),
    "motion_blur": (38.67, 78.03),
    "pixelate": (44.79, 76.92),
    "shot_noise": (27.03, 81.58),
    "snow": (32.53, 77.83),
    "zoom_blur": (36.24, 79.86),
}


def test_resnet50_has_its_published_mce() -> None:
    errors = {name: 100 - top1 for name, (top1, _) in RESNET50.items()}
    assert mean_corruption_error(accuracies_with_error(errors)).mean() == pytest.approx(76.70, abs=0.01)


@pytest.mark.parametrize("name", RESNET50)
def test_resnet50_has_its_published_error_relative_to_alexnets(name: str) -> None:
    top1, relative = RESNET50[name]
    assert (100 - top1) / ALEXNET_ERROR[name] == pytest.approx(relative, abs=0.02)  # both are rounded


def test_mce_and_mean_error_are_those_by_hand() -> None:
    errors = {name: 40.0 + 3 * i for i, name in enumerate(RESNET50)}  # 40, 43 ... 79 for snow, 82
    accuracies = accuracies_with_error(errors)
    by_hand = sum(errors[name] * relative / (100 - top1) for name, (top1, relative) in RESNET50.items()) / 15
    assert mean_corruption_error(accuracies).mean() == pytest.approx(by_hand, rel=1e-3)
    assert mean_error(accuracies).mean() == pytest.approx(61)
    assert corruption_error(accuracies["snow"]).values.tolist() == pytest.approx([74, 84])


def test_mce_needs_all_15_corruptions() -> None:
    with pytest.raises(AssertionError, match="all 15"):
        mean_corruption_error(accuracies_with_error({"snow": 50.0}))
