"""The difference between two models, with a 95 % interval by a paired bootstrap over images."""

from dataclasses import dataclass

import numpy as np

from train.evaluation.measures import Measure

RESAMPLES = 10_000
DRAWN_AT_ONCE = 10_000_000  # counts held in memory


@dataclass(frozen=True)
class Difference:
    """First minus second, in the measure's units, and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(first: Measure, second: Measure, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """The difference with its percentile interval, over resamples of the images with replacement, the same for both models.

    If a measure is a mean over classes, images are resampled within their class.

    Instead of n images, it draws how often each distinct difference occurs, which follows a multinomial distribution; right
    and wrong answers have only three distinct differences.
    """
    assert np.array_equal(first.valid, second.valid), "two models are compared on the same images"
    difference = first.values - second.values
    generator = np.random.default_rng(seed)
    groups = first.groups()
    means = np.zeros(resamples)
    for group in groups:
        distinct, counts = np.unique(difference[group], return_counts=True)
        at_once = max(1, DRAWN_AT_ONCE // len(distinct))
        for start in range(0, resamples, at_once):
            part = means[start : start + at_once]
            part += generator.multinomial(len(group), counts / len(group), size=len(part)) @ distinct / len(group)
    means /= len(groups)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(first.mean() - second.mean(), float(low), float(high))
