"""Which way round were published maps stored? Ask any annotator: its own map agrees better with one of the two.

The published crops index those maps with (top, left) as (x, y), so a map's first axis may be the image's columns. For a
sample of images, each cell's best class is looked up in the annotator's probabilities at that place, both ways; the way
that gives the larger mean log-probability wins, if it wins beyond chance.

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

SAMPLE = 64  # images to ask about
MIN_IMAGES = 16  # with fewer images, a standard error says little
MIN_STANDARD_ERRORS = 3.0  # standard errors between the two means; chance exceeds it once in some 300 times


@dataclass(frozen=True)
class Verdict:
    """The way round, and by what margin.

    Attributes:
        yx, xy: mean log-probability, in nats, that the annotator gives a cell's best class when read that way.
        votes: images that fit better the way of `axes`.
    """

    axes: Axes
    yx: float
    xy: float
    votes: int
    images: int

    def __str__(self) -> str:
        return (
            f"axes {self.axes}: {self.votes} of {self.images} images fit better so; mean log-probability of a cell's best"
            f" class {self.yx:.3f} as yx, {self.xy:.3f} as xy"
        )


@torch.inference_mode()
def decide_axes(
    maps: list[Tensor], indices: list[int], images: ImageSet, annotator: FullyConvolutional, squash: Squash
) -> Verdict:
    """Compare stored maps with an annotator's.

    Args:
        maps: (2, k, H, W) scores, largest first, and classes, of images `indices`; of those, unreadable ones are left out.
    Raises:
        InputError: neither way fits clearly better.
    """
    device = next(annotator.parameters()).device
    fits: list[tuple[float, float]] = []
    for stored, index in zip(maps, indices, strict=True):
        try:
            pixels = squash(images.read(index)).unsqueeze(0).to(device)
        except UnreadableImage:
            continue
        log_probs = annotator(squash.normalise(pixels)).float().log_softmax(1).cpu()  # (1, C, rows, columns)
        best = stored[1, 0].long()  # (H, W)
        fits.append((log_prob_fit(log_probs, best), log_prob_fit(log_probs, best.T)))
    if len(fits) < MIN_IMAGES:
        raise InputError(
            f"--axes auto needs at least {MIN_IMAGES} readable images, found {len(fits)}; say --axes yx or xy yourself"
        )
    yx, xy = torch.tensor(fits, dtype=torch.float64).unbind(1)
    gap = yx - xy
    standard_error = float(gap.std()) / math.sqrt(len(gap))
    axes: Axes = "yx" if gap.mean() > 0 else "xy"
    votes = int((gap > 0).sum()) if axes == "yx" else int((gap < 0).sum())
    verdict = Verdict(axes, float(yx.mean()), float(xy.mean()), votes, len(gap))
    if not abs(float(gap.mean())) > MIN_STANDARD_ERRORS * standard_error:
        raise InputError(
            f"--axes auto cannot tell ({verdict}); name more images or a better --model, or say --axes yx or xy yourself"
        )
    return verdict


def log_prob_fit(log_probs: Tensor, best: Tensor) -> float:
    """Mean over cells of the log-probability of (H, W) classes in a (1, C, rows, columns) map of another grid."""
    at_cells = interpolate(log_probs, best.shape, mode="bilinear", align_corners=False)[0]
    return float(at_cells.gather(0, best.unsqueeze(0)).mean())
