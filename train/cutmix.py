"""CutMix: a rectangle of every crop is replaced by the same rectangle of another crop (Yun et al. 2019, arXiv 1905.04899).

As in the reference and in torchvision, all crops of a step share one rectangle. A crop's partner is half a batch away, which
gives the same pairs however many processes share the batch, as long as each has an equal, even part of it.

Shapes: B images of a batch, S pixels of a crop's side, C classes, H rows and W columns of the label map, N rows and M
columns of a grid of tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix

from relabel.labels.pooling import area_weights
from train.recipe import Recipe
from train.seeds import CUTMIX_STREAM, seed_of


@dataclass(frozen=True)
class Paste:
    """The pixels [left, right) x [top, bottom) of every crop that come from its partner, and their effect on targets."""

    left: int
    top: int
    right: int
    bottom: int
    size: int  # S

    @property
    def share(self) -> float:
        """The rectangle's share of a crop's area."""
        return (self.right - self.left) * (self.bottom - self.top) / self.size**2

    def paste_into(self, images: Tensor) -> None:
        """Replace the rectangle of each of the (B, 3, S, S) images, in place."""
        part = images[:, :, self.top : self.bottom, self.left : self.right]
        part.copy_(partner(part))  # roll copies, so what is read has not been overwritten

    def mix(self, target: Tensor) -> Tensor:
        """(B, C) targets of whole crops -> of mixed ones: the two crops' targets, weighted by their visible areas."""
        return torch.lerp(target, partner(target), self.share)

    def region_weights(self, boxes: Tensor, mirrored: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Weights that pool a label map over what is visible of a crop, and over the part that its partner shows.

        The weights integrate the interpolated map over each region. Integrals add up over an L-shaped region; the points
        that RoIAlign samples do not.

        Args:
            boxes: (B, 4) the crops' boxes, x0, y0, x1, y1 in fractions of their images.
            mirrored: (B,) bool.
            grid: H, W.
        Returns:
            (B, H, W) twice: of the part that the partner covers with its own, and of the rectangle that is pasted into
            the partner's crop. Each sums to 1, or is all zero where its region is empty.
        """
        pasted = area_weights(self.boxes_of_rectangle(boxes, mirrored), *grid)
        kept = (area_weights(boxes, *grid) - pasted).clamp(min=0)  # below 0 by rounding only
        kept, pasted = (weights / weights.sum((1, 2), True).clamp(min=1e-9) for weights in (kept, pasted))
        return kept, pasted

    def mix_regions(self, kept: Tensor, pasted: Tensor) -> Tensor:
        """(B, C) targets of the regions of `region_weights` -> of mixed crops."""
        return torch.lerp(kept, partner(pasted), self.share)

    def boxes_of_rectangle(self, boxes: Tensor, mirrored: Tensor) -> Tensor:
        """(B, 4): where the rectangle of each crop lies in the crop's own image."""
        left, right = self.left / self.size, self.right / self.size
        x0, y0, x1, y1 = boxes.float().unbind(1)
        start = torch.where(mirrored, 1 - right, left)
        stop = torch.where(mirrored, 1 - left, right)
        top, bottom = self.top / self.size, self.bottom / self.size
        edges = (torch.lerp(x0, x1, start), torch.lerp(y0, y1, top), torch.lerp(x0, x1, stop), torch.lerp(y0, y1, bottom))
        return torch.stack(edges, 1)  # lerp is exact at 0 and 1: no rectangle reaches outside its crop

    def mix_tokens(self, target: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N * M, C) targets of patch tokens -> of mixed crops, each patch weighted by how much of it is pasted."""
        return torch.lerp(target, partner(target), self.token_shares(grid, target.device).view(-1, 1))

    def token_shares(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """(N, M): how much of each token's patch is pasted."""

        def covered(start: int, stop: int, count: int) -> Tensor:
            edge = torch.arange(count, device=device) * (self.size / count)  # (count,) where each patch begins, in pixels
            inside = (edge + self.size / count).clamp(max=stop) - edge.clamp(min=start)
            return inside.clamp(min=0) * (count / self.size)

        rows, columns = covered(self.top, self.bottom, grid[0]), covered(self.left, self.right, grid[1])
        return rows.unsqueeze(1) * columns


def draw_paste(step: int, epoch: int, images: Tensor, recipe: Recipe) -> Paste | None:
    """The rectangle of a step, or None if this step does not mix. It depends only on (seed, step).

    Args:
        step, epoch: counted from 0 at the start of training.
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
    """(B, ...) -> (B, ...): for every row, the row of its partner."""
    return batch.roll(len(batch) // 2, 0)
