"""The paired bootstrap against a slow one that draws image indices."""

import numpy as np
import pytest

from train.evaluation import bootstrap
from train.evaluation.bootstrap import paired_bootstrap
from train.evaluation.measures import Measure


def outcomes(seed: int, images: int, share: float) -> np.ndarray:
    return 100.0 * (np.random.default_rng(seed).random(images) < share)


def slow_interval(first: np.ndarray, second: np.ndarray, strata: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        per_class = []
        for s in np.unique(strata):
            drawn = rng.choice(np.flatnonzero(strata == s), size=(strata == s).sum())
            per_class.append(first[drawn].mean() - second[drawn].mean())
        means.append(np.mean(per_class))
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


@pytest.mark.parametrize("classes", [1, 3])
def test_interval_equals_that_of_drawing_image_indices(classes: int) -> None:
    first, second = outcomes(0, 300, 0.7), outcomes(1, 300, 0.6)
    strata = (np.arange(300) ** 2) % classes if classes > 1 else np.zeros(300, dtype=int)
    found = paired_bootstrap(Measure(first, strata), Measure(second, strata))
    low, high = slow_interval(first, second, strata)
    assert found.difference == pytest.approx(Measure(first, strata).mean() - Measure(second, strata).mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.7)
    assert high - low > 10


def test_pairing_narrows_the_interval() -> None:
    second = outcomes(0, 400, 0.5)
    first = second.copy()
    first[np.flatnonzero(second == 0)[:20]] = 100  # five percent of the images are won, none lost
    found = paired_bootstrap(Measure(first), Measure(second))
    assert found.difference == pytest.approx(5) and found.excludes_zero
    assert (found.low, found.high) == pytest.approx((5 - 1.96 * 1.09, 5 + 1.96 * 1.09), abs=0.4)
    unpaired = paired_bootstrap(Measure(first), Measure(np.random.default_rng(2).permutation(second)))
    assert unpaired.high - unpaired.low > 2 * (found.high - found.low)


def test_same_model_does_not_differ_from_itself() -> None:
    same = Measure(outcomes(0, 50, 0.5))
    found = paired_bootstrap(same, same)
    assert (found.difference, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)


def test_images_that_do_not_count_are_never_drawn() -> None:
    first, second = outcomes(0, 40, 0.9), outcomes(1, 40, 0.2)
    first[20:], second[20:] = np.nan, np.nan
    found = paired_bootstrap(Measure(first), Measure(second))
    without_them = paired_bootstrap(Measure(first[:20]), Measure(second[:20]))
    assert found == without_them


def test_same_seed_gives_the_same_interval_however_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = Measure(rng.random(30)), Measure(rng.random(30))
    at_once = paired_bootstrap(first, second)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 1000)
    assert paired_bootstrap(first, second) == at_once
    assert paired_bootstrap(first, second, seed=1) != at_once
