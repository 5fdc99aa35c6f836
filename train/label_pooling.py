"""LabelPooling: the target of a crop is its image's logit map, pooled over the crop by RoIAlign (Yun et al. 2021).

RoIAlign to 1x1 is linear in the map and its weights are an outer product, w = w_row (x) w_col, of the box alone. So the
dense (B, C, H, W) map need not be built:

    pooled[c] = sum over cells of w * tail  +  sum over stored entries (cell, c) of w * (score - tail)

`torchvision.ops.roi_align(maps.dense(C), boxes * grid, output_size=1, sampling_ratio=-1, aligned=True)` is the
definition; tests/train/test_label_pooling.py holds the two equal.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map.
"""

import torch
from torch import Tensor

from pipeline.shards import LabelMaps


def label_pool(maps: LabelMaps, boxes: Tensor, num_classes: int) -> Tensor:
    """Pool each sparse logit map over its box.

    Args:
        maps: B label maps.
        boxes: (B, 4) x0, y0, x1, y1 in fractions of the image, on the maps' device; x along the columns, y along the rows.
        num_classes: C.
    Returns:
        (B, C) float32 logits; `.softmax(1)` is the crop's target.
    Raises:
        ValueError: a box is empty or reaches outside [0, 1]. Not checked on a GPU, where looking would stall the stream.

    Source: Yun et al. 2021, arXiv 2101.05022. Differs: a class that a cell does not store counts as the cell's tail,
    not as 0; and x is x (the authors' code hands RoIAlign top, left as x, y).
    """
    if boxes.device.type == "cpu":
        _check(boxes)
    batch, _, height, width = maps.scores.shape
    boxes = boxes.float()
    w_row = roi_align_weights(boxes[:, 1], boxes[:, 3], height)
    w_col = roi_align_weights(boxes[:, 0], boxes[:, 2], width)
    weight = w_row.unsqueeze(2) * w_col.unsqueeze(1)  # (B, H, W)
    tail = maps.tail.float()
    above_tail = (maps.scores.float() - tail.unsqueeze(1)) * weight.unsqueeze(1)  # (B, k, H, W)
    pooled = (weight * tail).sum((1, 2)).unsqueeze(1).repeat(1, num_classes)  # (B, C)
    return pooled.scatter_add_(1, maps.classes.long().reshape(batch, -1), above_tail.reshape(batch, -1))


def roi_align_weights(start: Tensor, stop: Tensor, cells: int) -> Tensor:
    """How much each cell along one axis counts in RoIAlign's single output cell.

    RoIAlign with adaptive sampling takes ceil(length) points, evenly spread over the box, and interpolates linearly
    between cell centres; beyond the outer centres the outer cell counts alone.

    Args:
        start, stop: (B,) the box's edges along this axis, in fractions of the image.
        cells: number of cells along this axis.
    Returns:
        (B, cells) float32; each row sums to 1.
    """
    first = start * cells - 0.5  # in cells; the centre of cell i lies at i. The same float32 steps as torchvision's,
    length = (stop * cells - 0.5) - first  # so that the same number of points comes out
    count = length.ceil().clamp(min=1).unsqueeze(1)  # (B, 1)
    point = torch.arange(cells, device=start.device, dtype=torch.float32)  # a box within [0, 1] has `cells` points at most
    position = first.unsqueeze(1) + (point + 0.5) * length.unsqueeze(1) / count  # (B, P)
    position = position.clamp(0, cells - 1).unsqueeze(2)  # (B, P, 1)
    share = (1 - (position - point).abs()).clamp(min=0)  # (B, P, cells): the two neighbours of each point
    return (share * (point < count).unsqueeze(2)).sum(1) / count


def _check(boxes: Tensor) -> None:
    x0, y0, x1, y1 = boxes.unbind(1)
    sound = (x0 >= 0) & (y0 >= 0) & (x1 <= 1) & (y1 <= 1) & (x0 < x1) & (y0 < y1)
    if not bool(sound.all()):
        bad = int((~sound).nonzero()[0, 0])
        raise ValueError(
            f"box {bad} is {boxes[bad].tolist()}; expected x0 < x1 and y0 < y1 in fractions of the image, within [0, 1]"
        )
