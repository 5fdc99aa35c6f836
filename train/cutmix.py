"""CutMix: a rectangle of every crop is replaced by that of another crop (Yun et al. 2019, arXiv 1905.04899).

As in the reference and in torchvision, one rectangle serves all crops of a step. A crop's partner lies half a batch away:
that gives the same pairs however many processes share the batch, each of them an equal, even part of it.

Shapes: B images of a batch, S pixels of a crop's side, C classes, N rows and M columns of a grid of tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix

from train.recipe import Recipe
from train.seeds import CUTMIX_STREAM, seed_of


@dataclass(frozen=True)
class Paste:
    """The pixels [left, right) x [top, bottom) of a crop that come from its partner."""

    left: int
    top: int
    right: int
    bottom: int
    size: int  # S

    @property
    def share(self) -> float:
        """Of the crop's area."""
        return (self.right - self.left) * (self.bottom - self.top) / self.size**2


def draw_paste(step: int, epoch: int, images: Tensor, recipe: Recipe) -> Paste | None:
    """The rectangle of a step, or None where this step mixes nothing. It depends on (seed, step) alone.

    Args:
        step: counted from the start of training; `epoch` too, from 0.
        images: (B, 3, S, S), for their size.
    """
    if not recipe.cutmix or epoch >= recipe.epochs - recipe.cutmix_off_epochs:
        return None
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
        torch.default_generator.manual_seed(seed_of(recipe.seed, step, 0, CUTMIX_STREAM))
        if torch.rand(()).item() >= recipe.cutmix:
            return None
        left, top, right, bottom = CutMix(alpha=recipe.cutmix_beta).make_params([images])["box"]
    return Paste(left, top, right, bottom, images.shape[-1])


def partner(batch: Tensor) -> Tensor:
    """Every row's partner's, (B, ...)."""
    return batch.roll(len(batch) // 2, 0)


def paste_in(images: Tensor, paste: Paste) -> None:
    """Write each one's rectangle from its partner into the (B, 3, S, S) images."""
    part = images[:, :, paste.top : paste.bottom, paste.left : paste.right]
    part.copy_(partner(part))  # roll makes a copy, so what is read is not yet written over


def mix_by_area(target: Tensor, paste: Paste) -> Tensor:
    """(B, C) targets of whole crops -> of mixed ones, each crop's weighted by the area that is seen of it."""
    return torch.lerp(target, partner(target), paste.share)


def parts_of(boxes: Tensor, mirrored: Tensor, paste: Paste) -> Tensor:
    """(B, 4): where in its own image each crop has the rectangle.

    Args:
        boxes: (B, 4) the crops' boxes, x0, y0, x1, y1 in fractions of their images.
        mirrored: (B,) bool; a mirrored crop has the rectangle's left edge at its own right.
    """
    left, right = paste.left / paste.size, paste.right / paste.size
    x0, y0, x1, y1 = boxes.float().unbind(1)
    start = torch.where(mirrored, 1 - right, left)
    stop = torch.where(mirrored, 1 - left, right)
    top, bottom = paste.top / paste.size, paste.bottom / paste.size
    edges = (torch.lerp(x0, x1, start), torch.lerp(y0, y1, top), torch.lerp(x0, x1, stop), torch.lerp(y0, y1, bottom))
    return torch.stack(edges, 1)  # lerp is exact at 0 and 1: no part reaches out of its crop


def token_shares(paste: Paste, grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, M): how much of each token's patch is pasted."""

    def covered(start: int, stop: int, count: int) -> Tensor:
        edge = torch.arange(count, device=device) * (paste.size / count)  # (count,) where each patch begins, in pixels
        inside = (edge + paste.size / count).clamp(max=stop) - edge.clamp(min=start)
        return inside.clamp(min=0) * (count / paste.size)

    rows, columns = covered(paste.top, paste.bottom, grid[0]), covered(paste.left, paste.right, grid[1])
    return rows.unsqueeze(1) * columns
