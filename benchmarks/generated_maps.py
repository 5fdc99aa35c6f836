"""Label maps like an annotator's: a dozen classes to an image, each strong in one part of it and fading over its neighbours.

Shapes: N images, C classes, k classes kept per cell, H rows and W columns of the label map, M classes present in an image.
"""

import torch
from torch.nn.functional import interpolate

from pipeline.shards import LabelMaps

NUM_CLASSES = 1000
TOPK = 5
GRID = (15, 15)  # of tf_efficientnet_l2 at 475 pixels
CLASSES_PRESENT = 12
COARSE_GRID = (4, 4)  # logits are drawn here and interpolated: neighbouring cells of a real map share most of their view


def generated_maps(count: int, generator: torch.Generator) -> LabelMaps:
    """`count` label maps in the stored types: float16 scores and tail, uint16 classes."""
    present = torch.rand(count, NUM_CLASSES, generator=generator).topk(CLASSES_PRESENT).indices  # (N, M)
    coarse = 6 + 3 * torch.randn(count, CLASSES_PRESENT + 1, *COARSE_GRID, generator=generator)
    logits = interpolate(coarse, GRID, mode="bicubic")  # (N, M + 1, H, W); the last one makes the tail
    scores, places = logits[:, :-1].topk(TOPK, dim=1)  # (N, k, H, W) twice
    classes = present.gather(1, places.flatten(1)).view_as(places)
    return LabelMaps(scores.half(), classes.to(torch.uint16), (logits[:, -1] / 10 - 1).half())
