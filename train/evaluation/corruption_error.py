"""Errors under corruption, as ImageNet-C defines them (Hendrycks & Dietterich 2019).

A corruption's error is the mean over five severities of 100 - top-1. Divided by AlexNet's error under the same corruption,
and averaged over the 15 corruptions of the benchmark, it is the mean corruption error, mCE. AlexNet's errors are known for
ImageNet-C only; other images get the plain mean.
"""

import numpy as np

from train.evaluation.measures import Measure

# AlexNet's error as a fraction, averaged over severities; from github.com/hendrycks/robustness, as AugMix uses them
# (Hendrycks et al. 2020, github.com/google-research/augmix, imagenet.py).
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
IMAGENET_C_CORRUPTIONS = tuple(ALEXNET_ERROR)


def mean_error(accuracies: dict[str, list[Measure]]) -> Measure:
    """The mean over corruptions and severities of the error, image by image.

    Args:
        accuracies: by corruption, one for each severity, all over the same images.
    """
    means = [corruption_error(by_severity) for by_severity in accuracies.values()]
    return Measure(np.mean([mean.values for mean in means], axis=0), means[0].strata)


def mean_corruption_error(accuracies: dict[str, list[Measure]]) -> Measure:
    """mCE, which is 100 for AlexNet. It is linear in the errors, so each image has its own share of it."""
    assert accuracies.keys() == ALEXNET_ERROR.keys(), "mCE needs all 15 corruptions"
    shares = [corruption_error(accuracies[name]).values / ALEXNET_ERROR[name] for name in IMAGENET_C_CORRUPTIONS]
    return Measure(np.mean(shares, axis=0))


def corruption_error(by_severity: list[Measure]) -> Measure:
    """The mean over severities of 100 - accuracy, image by image."""
    return Measure(100 - np.mean([measure.values for measure in by_severity], axis=0), by_severity[0].strata)
