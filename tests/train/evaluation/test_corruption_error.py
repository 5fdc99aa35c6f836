"""The mean corruption error against sums by hand."""

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


def test_mce_of_alexnets_own_errors_is_100() -> None:
    alexnet = {name: 100 * share for name, share in ALEXNET_ERROR.items()}
    assert len(alexnet) == 15
    assert mean_corruption_error(accuracies_with_error(alexnet)).mean() == pytest.approx(100)


def test_mce_and_mean_error_are_those_by_hand() -> None:
    errors = {name: 40.0 + 3 * i for i, name in enumerate(ALEXNET_ERROR)}
    accuracies = accuracies_with_error(errors)
    by_hand = sum(errors[name] / share for name, share in ALEXNET_ERROR.items()) / 15
    assert mean_corruption_error(accuracies).mean() == pytest.approx(by_hand)
    assert mean_error(accuracies).mean() == pytest.approx(sum(errors.values()) / 15)
    assert corruption_error(accuracies["snow"]).values.tolist() == pytest.approx([errors["snow"] - 5, errors["snow"] + 5])


def test_mce_of_some_corruptions_is_no_mce() -> None:
    with pytest.raises(AssertionError, match="all 15"):
        mean_corruption_error(accuracies_with_error({"snow": 50.0}))
