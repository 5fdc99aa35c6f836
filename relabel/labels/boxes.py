"""Boxes are (x0, y0, x1, y1) in fractions of the image, x along the columns. One box crops the image and pools its map."""

import torch
from torch import Tensor


def whole_image(count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count, 4) boxes that each cover the whole image."""
    edges = torch.zeros(count, 4, device=device)
    edges[:, 2:] = 1
    return edges


def covered(width: int, height: int, window: float | None) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in pixels of what an image's label map covers: the image, or its central square.

    Args:
        window: of the manifest; the square's side as a share of the image's shorter side.
    """
    if window is None:
        return 0.0, 0.0, float(width), float(height)
    side = window * min(width, height)
    x0, y0 = (width - side) / 2, (height - side) / 2
    return x0, y0, x0 + side, y0 + side


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes drawn like random resized crops of square images: 8% to 100% of the area, aspect ratio 3:4 to 4:3."""
    area = torch.empty(count).uniform_(0.08, 1, generator=generator)
    ratio = torch.empty(count).uniform_(-0.28768, 0.28768, generator=generator).exp()  # log of 3/4 ... 4/3
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)
    start = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([start, (start + size).clamp(max=1)], 1)
