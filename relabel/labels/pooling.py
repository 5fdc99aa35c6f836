"""LabelPooling: the target of a crop is its image's logit map, pooled over the crop by RoIAlign (Yun et al. 2021).

RoIAlign to 1x1 is linear in the map. Its weights depend only on the box and are an outer product, w = w_row (x) w_col, so
the dense (B, C, H, W) map does not have to be built:

    pooled[c] = sum over cells of w * tail  +  sum over stored entries (cell, c) of w * (score - tail)

`torchvision.ops.roi_align(maps.dense(C), boxes * grid, output_size=1, sampling_ratio=-1, aligned=True)` is the
definition; tests/relabel/labels/test_pooling.py checks that the two are equal.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map.
"""

import torch
from torch import Tensor

from relabel.labels.maps import LabelMaps


def label_pool(maps: LabelMaps, boxes: Tensor, num_classes: int) -> Tensor:
    """Pool each sparse logit map over its box.

    Args:
        maps: B label maps.
        boxes: (B, 4) x0, y0, x1, y1 in fractions of the image, on the maps' device; x along the columns, y along the rows.
        num_classes: C.
    Returns:
        (B, C) float32 logits; `.softmax(1)` is the crop's target.
    Raises:
        ValueError: a box is empty or reaches outside [0, 1]. Not checked on a GPU, where it would stall the stream.

    Source: Yun et al. 2021, arXiv 2101.05022. Differs: a class that a cell does not store counts as the cell's tail,
    not as 0; and x is the column (the authors' code passes top, left to RoIAlign as x, y).
    """
    if boxes.device.type == "cpu":
        _check_boxes(boxes)
    height, width = maps.scores.shape[2:]
    boxes = boxes.float()
    w_row = roi_align_weights(boxes[:, 1], boxes[:, 3], height)  # (B, 1, H)
    w_col = roi_align_weights(boxes[:, 0], boxes[:, 2], width)  # (B, 1, W)
    return weighted_sum(maps, w_row.transpose(1, 2) * w_col, num_classes)


def label_pool_grid(maps: LabelMaps, boxes: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Pool each label map over the N x M cells of a grid laid over its box: RoIAlign with output_size (N, M).

    The result is about as large as the dense map, so it is computed from the dense map.

    Args:
        boxes: as for `label_pool`.
        grid: N rows and M columns.
    Returns:
        (B, N, M, C) float32 logits.
    """
    if boxes.device.type == "cpu":
        _check_boxes(boxes)
    height, width = maps.scores.shape[2:]
    boxes = boxes.float()
    w_row = roi_align_weights(boxes[:, 1], boxes[:, 3], height, grid[0])  # (B, N, H)
    w_col = roi_align_weights(boxes[:, 0], boxes[:, 2], width, grid[1])  # (B, M, W)
    rows = torch.einsum("bnh,bchw->bncw", w_row, maps.dense(num_classes))
    return torch.einsum("bncw,bmw->bnmc", rows, w_col)


def weighted_sum(maps: LabelMaps, weight: Tensor, num_classes: int) -> Tensor:
    """(B, C) float32: the sum over cells of `weight` (B, H, W) times the dense map, without building the dense map."""
    tail = maps.tail.float()
    above_tail = (maps.scores.float() - tail.unsqueeze(1)) * weight.unsqueeze(1)  # (B, k, H, W)
    pooled = (weight * tail).sum((1, 2)).unsqueeze(1).repeat(1, num_classes)  # (B, C)
    return pooled.scatter_add_(1, maps.classes.long().flatten(1), above_tail.flatten(1))


def roi_align_weights(start: Tensor, stop: Tensor, cells: int, outputs: int = 1) -> Tensor:
    """The weight of each cell along one axis in each of RoIAlign's output cells.

    RoIAlign with adaptive sampling takes ceil(length of an output cell) points, evenly spread over that cell, and
    interpolates linearly between the map's cell centres; beyond the outermost centres, only the outermost cell counts.

    Args:
        start, stop: (B,) the box's edges along this axis, in fractions of the image.
        cells: number of cells along this axis.
        outputs: N, the number of output cells that the box is divided into along this axis.
    Returns:
        (B, N, cells) float32; each row sums to 1.
    """
    first = start * cells - 0.5  # in cells; the centre of cell i is at i. The same float32 operations as
    length = ((stop * cells - 0.5) - first) / outputs  # torchvision's, so that the number of points is the same
    count = length.ceil().clamp(min=1).view(-1, 1, 1)  # (B, 1, 1)
    cell = torch.arange(cells, device=start.device, dtype=torch.float32)
    output = torch.arange(outputs, device=start.device, dtype=torch.float32).unsqueeze(1)  # (N, 1)
    point = cell[: -(-cells // outputs)]  # a box within [0, 1] has at most this many points per output cell
    length = length.view(-1, 1, 1)
    position = first.view(-1, 1, 1) + output * length + (point + 0.5) * length / count  # (B, N, P)
    position = position.clamp(0, cells - 1).unsqueeze(3)  # (B, N, P, 1)
    share = (1 - (position - cell).abs()).clamp(min=0)  # (B, N, P, cells): the two neighbours of each point
    return (share * (point < count).unsqueeze(3)).sum(2) / count


def area_weights(boxes: Tensor, height: int, width: int) -> Tensor:
    """Each cell's linear interpolation weight, integrated over a box: the integrals that RoIAlign estimates from points.

    Unlike the estimates, the integrals can be added and subtracted: a crop with a hole has the weights
    `area_weights(crop) - area_weights(hole)`, which are nowhere negative.

    Args:
        boxes: (B, 4) x0, y0, x1, y1 in fractions of the image; a box may be empty.
    Returns:
        (B, H, W) float32; the sum is the box's area in cells.
    """
    boxes = boxes.float()
    row = _integral(boxes[:, 3], height) - _integral(boxes[:, 1], height)
    column = _integral(boxes[:, 2], width) - _integral(boxes[:, 0], width)
    return row.unsqueeze(2) * column.unsqueeze(1)


def _integral(stop: Tensor, cells: int) -> Tensor:
    """(B, cells): each cell's linear interpolation weight along one axis, integrated from the image's edge to `stop`."""
    position = stop.unsqueeze(1) * cells - 0.5  # in cells; the centre of cell i is at i
    cell = torch.arange(cells, device=stop.device, dtype=torch.float32)
    distance = (position.clamp(0, cells - 1) - cell).clamp(-1, 1)
    hat = torch.where(distance < 0, (1 + distance).square() / 2, 1 - (1 - distance).square() / 2)
    # Beyond the outermost centres, only the outermost cell counts.
    beyond = position.clamp(max=0) * (cell == 0) + (position - (cells - 1)).clamp(min=0) * (cell == cells - 1)
    return hat + beyond


def _check_boxes(boxes: Tensor) -> None:
    x0, y0, x1, y1 = boxes.unbind(1)
    valid = (x0 >= 0) & (y0 >= 0) & (x1 <= 1) & (y1 <= 1) & (x0 < x1) & (y0 < y1)
    if not bool(valid.all()):
        bad = int((~valid).nonzero()[0, 0])
        raise ValueError(
            f"box {bad} is {boxes[bad].tolist()}; expected x0 < x1 and y0 < y1 in fractions of the image, within [0, 1]"
        )
