"""Find out whether published maps were stored transposed, by comparing them with the maps of any annotator.

The published crops index those maps with (top, left) as (x, y), so a map's first axis may be the image's columns. For a
sample of images, we look up each cell's top class in the annotator's probabilities at that location, with either axis
order. The order with the larger mean log-probability wins, if the difference is significant.

Shapes: C classes, k classes kept per cell, H rows and W columns of a stored map, read as if its first axis were the rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from annotate.convert import FullyConvolutional
from annotate.squash import Squash
from relabel.images.decoding import UnreadableImage
from relabel.images.image_set import ImageSet
from relabel.runtime.defaults import Axes
from relabel.runtime.errors import InputError

SAMPLE = 64  # images to compare
MIN_IMAGES = 16  # with fewer images, the standard error is unreliable
MIN_STANDARD_ERRORS = 3.0  # between the two means; chance exceeds it about once in 300 times


@dataclass(frozen=True)
class AxesComparison:
    """The axis order that fits better, and by what margin.

    Attributes:
        yx, xy: mean log-probability, in nats, that the annotator gives a cell's top class with that axis order.
        votes: the number of images that `axes` fits better.
        images: the number of images compared.
    """

    axes: Axes
    yx: float
    xy: float
    votes: int
    images: int

    def __str__(self) -> str:
        return (
            f"axes {self.axes}: fits better for {self.votes} of {self.images} images; mean log-probability of each cell's"
            f" top class {self.yx:.3f} as yx, {self.xy:.3f} as xy"
        )


@torch.inference_mode()
def decide_axes(
    maps: list[Tensor], indices: list[int], images: ImageSet, annotator: FullyConvolutional, squash: Squash
) -> AxesComparison:
    """Compare stored maps with an annotator's maps of the same images.

    Args:
        maps: (2, k, H, W) scores, largest first, then classes; one per image.
        indices: the maps' images in `images`. Unreadable ones are skipped.
    Raises:
        InputError: too few readable images, or neither axis order fits clearly better.
    """
    device = next(annotator.parameters()).device
    fits: list[tuple[float, float]] = []
    for stored, index in zip(maps, indices, strict=True):
        try:
            pixels = squash(images.read(index)).unsqueeze(0).to(device)
        except UnreadableImage:
            continue
        log_probs = annotator(squash.normalise(pixels)).float().log_softmax(1).cpu()  # (1, C, rows, columns)
        top_class = stored[1, 0].long()  # (H, W)
        fits.append((log_prob_fit(log_probs, top_class), log_prob_fit(log_probs, top_class.T)))
    if len(fits) < MIN_IMAGES:
        raise InputError(
            f"--axes auto needs at least {MIN_IMAGES} readable images, found {len(fits)}; set --axes yx or --axes xy"
        )
    yx, xy = torch.tensor(fits, dtype=torch.float64).unbind(1)
    gap = yx - xy
    standard_error = float(gap.std()) / math.sqrt(len(gap))
    axes: Axes = "yx" if gap.mean() > 0 else "xy"
    votes = int((gap > 0).sum()) if axes == "yx" else int((gap < 0).sum())
    comparison = AxesComparison(axes, float(yx.mean()), float(xy.mean()), votes, len(gap))
    if not abs(float(gap.mean())) > MIN_STANDARD_ERRORS * standard_error:
        raise InputError(
            f"--axes auto cannot decide ({comparison}); try more images, a better --model, or set --axes yx or --axes xy"
        )
    return comparison


def log_prob_fit(log_probs: Tensor, top_class: Tensor) -> float:
    """Mean log-probability over cells of the (H, W) classes in a (1, C, rows, columns) map of another grid."""
    at_cells = interpolate(log_probs, top_class.shape, mode="bilinear", align_corners=False)[0]
    return float(at_cells.gather(0, top_class.unsqueeze(0)).mean())
