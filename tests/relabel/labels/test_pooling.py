"""Label pooling compared with its definition, torchvision's RoIAlign on the dense map, and with sums by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from annotate.sparsify import sparsify
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import area_weights, label_pool, label_pool_grid, roi_align_weights, weighted_sum

BATCH = 500


def random_maps(batch: int, classes: int, topk: int, rows: int, columns: int, seed: int = 0) -> LabelMaps:
    logits = torch.randn(batch, classes, rows, columns, generator=torch.Generator().manual_seed(seed)) * 3
    return sparsify(logits, topk, "mean")


def random_boxes(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values  # (B, low/high, x/y)
    return torch.cat([corners[:, 0], corners[:, 1]], 1)


def thin_boxes(count: int, rows: int, columns: int, seed: int) -> Tensor:
    """Boxes thinner than a cell along one axis or both."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(count, 2, generator=generator) * torch.tensor([0.9 / columns, 0.9 / rows]) + 1e-4
    size[: count // 2, 0] = 0.5  # half of them long in x
    start = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([start, start + size], 1)


def edge_boxes(count: int, rows: int, columns: int, seed: int) -> Tensor:
    """Boxes whose edges lie on cell borders or on the edges of the image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for cells in (columns, rows):
        first = torch.randint(0, cells, (count,), generator=generator)
        last = first + 1 + (torch.rand(count, generator=generator) * (cells - first)).long()
        boxes.append((first / cells, last.clamp(max=cells) / cells))
    (x0, x1), (y0, y1) = boxes
    return torch.stack([x0, y0, x1, y1], 1)


def by_roi_align(maps: LabelMaps, boxes: Tensor, classes: int) -> Tensor:
    rows, columns = maps.scores.shape[2:]
    in_cells = boxes * torch.tensor([columns, rows, columns, rows])
    numbered = torch.cat([torch.arange(len(boxes)).unsqueeze(1).float(), in_cells], 1)
    pooled: Tensor = roi_align(maps.dense(classes), numbered, output_size=1, sampling_ratio=-1, aligned=True)
    return pooled[:, :, 0, 0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("rows", "columns", "topk", "classes"), [(6, 9, 3, 11), (15, 15, 5, 40), (1, 4, 2, 5), (13, 2, 1, 7)]
)
def test_sparse_pooling_equals_roi_align_on_the_dense_map(
    rows: int, columns: int, topk: int, classes: int, seed: int
) -> None:
    maps = random_maps(BATCH, classes, topk, rows, columns, seed)
    for boxes in (
        random_boxes(BATCH, seed),
        thin_boxes(BATCH, rows, columns, seed),
        edge_boxes(BATCH, rows, columns, seed),
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(BATCH, 4),
    ):
        torch.testing.assert_close(
            label_pool(maps, boxes, classes), by_roi_align(maps, boxes, classes), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (14, 4)])
@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (15, 15), (1, 4)])
def test_pooling_to_a_grid_equals_roi_align_with_that_output_size(rows: int, columns: int, grid: tuple[int, int]) -> None:
    maps = random_maps(BATCH, 7, 2, rows, columns)
    for boxes in (random_boxes(BATCH, 0), thin_boxes(BATCH, rows, columns, 1), edge_boxes(BATCH, rows, columns, 2)):
        numbered = torch.cat([torch.arange(BATCH).unsqueeze(1).float(), boxes * torch.tensor([columns, rows] * 2)], 1)
        defined = roi_align(maps.dense(7), numbered, output_size=grid, sampling_ratio=-1, aligned=True)
        torch.testing.assert_close(label_pool_grid(maps, boxes, grid, 7).permute(0, 3, 1, 2), defined, atol=1e-5, rtol=1e-5)


def by_points(dense: Tensor, inside: Callable[[float, float], bool], per_side: int = 200) -> Tensor:
    """(C,) mean of the interpolated (C, H, W) map over those points of a fine grid for which `inside` is true, by a loop."""
    _, height, width = dense.shape
    total, count = torch.zeros(len(dense)), 0
    for i in range(per_side):
        for j in range(per_side):
            x, y = (j + 0.5) / per_side, (i + 0.5) / per_side
            if inside(x, y):
                u, v = min(max(x * width - 0.5, 0), width - 1), min(max(y * height - 0.5, 0), height - 1)
                left, top = min(int(u), max(width - 2, 0)), min(int(v), max(height - 2, 0))
                right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
                across, down = u - left, v - top
                upper = dense[:, top, left] * (1 - across) + dense[:, top, right] * across
                lower = dense[:, bottom, left] * (1 - across) + dense[:, bottom, right] * across
                total += upper * (1 - down) + lower * down
                count += 1
    return total / count


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 4)])
def test_area_weights_of_a_crop_with_a_hole_equal_a_slow_loop_over_its_points(rows: int, columns: int) -> None:
    maps = random_maps(1, 4, 2, rows, columns)
    crop, hole = (0.1, 0.3, 0.9, 1.0), (0.35, 0.5, 0.9, 0.8)  # the hole reaches the crop's right edge

    def within(box: tuple[float, ...]) -> Callable[[float, float], bool]:
        return lambda x, y: box[0] < x < box[2] and box[1] < y < box[3]

    whole, part = (area_weights(torch.tensor([box]), rows, columns) for box in (crop, hole))
    for weight, inside in (
        (whole - part, lambda x, y: within(crop)(x, y) and not within(hole)(x, y)),
        (part, within(hole)),
    ):
        pooled = weighted_sum(maps, weight / weight.sum((1, 2), keepdim=True), 4)[0]
        torch.testing.assert_close(pooled, by_points(maps.dense(4)[0], inside), atol=0.02, rtol=0)


def test_area_weights_sum_to_the_area_are_not_negative_and_are_close_to_roi_align() -> None:
    boxes = random_boxes(BATCH, 4)
    weight = area_weights(boxes, 6, 9)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * 54
    torch.testing.assert_close(weight.sum((1, 2)), area, atol=1e-4, rtol=1e-4)
    half = torch.cat([boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2], 1)
    assert (weight - area_weights(half, 6, 9)).min() > -1e-5
    maps = random_maps(BATCH, 5, 2, 6, 9)
    large = area > 8  # many points, whose mean is close to the integral
    difference = weighted_sum(maps, weight / area.view(-1, 1, 1), 5) - label_pool(maps, boxes, 5)
    assert difference[large].abs().mean() < 0.05


def test_pooling_stored_types_equals_pooling_their_float32_values() -> None:
    maps = random_maps(BATCH, 30, 5, 6, 9)
    stored = LabelMaps(maps.scores.half(), maps.classes.to(torch.uint16), maps.tail.half())
    widened = LabelMaps(stored.scores.float(), stored.classes.long(), stored.tail.float())
    boxes = random_boxes(BATCH, 1)
    assert torch.equal(label_pool(stored, boxes, 30), label_pool(widened, boxes, 30))


def one_hot_cell(row: int, column: int) -> LabelMaps:
    """A 6x9 map of 4 classes: the logit of class 2 is 1 in one cell, and all others are 0."""
    scores, classes = torch.zeros(1, 1, 6, 9), torch.full((1, 1, 6, 9), 3)
    scores[0, 0, row, column], classes[0, 0, row, column] = 1.0, 2
    return LabelMaps(scores, classes, torch.zeros(1, 6, 9))


def test_crop_of_top_third_reads_top_rows() -> None:
    top_third = torch.tensor([[0.0, 0.0, 1.0, 1 / 3]])  # rows 0 and 1 of 6, all 9 columns
    pooled = label_pool(one_hot_cell(0, 8), top_third, 4)
    assert pooled[0, 2] == pytest.approx(1 / 18)
    assert pooled[0, [0, 1, 3]].abs().max() == 0
    assert label_pool(one_hot_cell(5, 0), top_third, 4).abs().max() == 0


def test_crop_of_left_third_reads_left_columns() -> None:
    left_third = torch.tensor([[0.0, 0.0, 1 / 3, 1.0]])  # columns 0 to 2 of 9, all 6 rows
    assert label_pool(one_hot_cell(5, 0), left_third, 4)[0, 2] == pytest.approx(1 / 18)
    assert label_pool(one_hot_cell(0, 8), left_third, 4).abs().max() == 0


def test_box_between_two_cell_centres_weights_both_cells_by_distance() -> None:
    # In a row of 4 cells, the box from 0.25 to 0.45 spans 1.0 to 1.8: one sampling point, at 1.4 - 0.5 = 0.9 in cell centres
    weights = roi_align_weights(torch.tensor([0.25]), torch.tensor([0.45]), 4)
    torch.testing.assert_close(weights, torch.tensor([[[0.1, 0.9, 0.0, 0.0]]]))


def test_pooling_the_whole_image_gives_the_mean_of_the_map() -> None:
    maps = random_maps(20, 11, 3, 6, 9)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(20, 4)
    torch.testing.assert_close(label_pool(maps, whole, 11), maps.dense(11).mean((2, 3)))


@pytest.mark.parametrize("topk", [1, 4, 7])
def test_with_a_mean_tail_the_sum_over_classes_is_exact_for_any_k(topk: int) -> None:
    logits = torch.randn(BATCH, 7, 6, 9)
    boxes = random_boxes(BATCH, 3)
    full = label_pool(sparsify(logits, 7, "mean"), boxes, 7)
    torch.testing.assert_close(
        label_pool(sparsify(logits, topk, "mean"), boxes, 7).sum(1), full.sum(1), atol=1e-4, rtol=1e-4
    )


def test_with_all_classes_stored_pooled_logits_equal_those_of_the_full_map() -> None:
    logits = torch.randn(BATCH, 7, 6, 9)
    boxes = random_boxes(BATCH, 3)
    maps = sparsify(logits, 7, "logmeanexp")
    numbered = torch.cat([torch.arange(BATCH).unsqueeze(1).float(), boxes * torch.tensor([9, 6, 9, 6])], 1)
    exact = roi_align(logits, numbered, output_size=1, sampling_ratio=-1, aligned=True)[:, :, 0, 0]
    torch.testing.assert_close(label_pool(maps, boxes, 7), exact, atol=1e-5, rtol=1e-5)


def test_mirroring_the_image_and_the_box_does_not_change_the_target() -> None:
    maps = random_maps(BATCH, 11, 3, 6, 9)
    mirrored = LabelMaps(maps.scores.flip(-1), maps.classes.flip(-1), maps.tail.flip(-1))
    x0, y0, x1, y1 = random_boxes(BATCH, 5).unbind(1)
    original = label_pool(maps, torch.stack([x0, y0, x1, y1], 1), 11)
    flipped = label_pool(mirrored, torch.stack([1 - x1, y0, 1 - x0, y1], 1), 11)
    # 1 - x is rounded, which may change RoIAlign's number of points if a box spans a whole number of cells
    assert ((original - flipped).abs().amax(1) < 1e-4).float().mean() > 0.99


@pytest.mark.parametrize(
    "box",
    [[0.5, 0.2, 0.5, 0.4], [0.6, 0.2, 0.5, 0.4], [-0.1, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.1], [0.0, float("nan"), 1.0, 1.0]],
)
def test_box_that_is_empty_or_outside_the_image_is_named_in_the_error(box: list[float]) -> None:
    with pytest.raises(ValueError, match="box 1 is"):
        label_pool(random_maps(2, 4, 2, 6, 9), torch.tensor([[0.0, 0.0, 1.0, 1.0], box]), 4)


@pytest.mark.gpu
def test_pooling_on_the_gpu_equals_pooling_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    maps, boxes = random_maps(BATCH, 1000, 5, 15, 15), random_boxes(BATCH, 0)
    stored = LabelMaps(maps.scores.half(), maps.classes.to(torch.uint16), maps.tail.half())
    on_gpu = label_pool(stored.to("cuda"), boxes.cuda(), 1000).cpu()
    torch.testing.assert_close(on_gpu, label_pool(stored, boxes, 1000), atol=1e-5, rtol=1e-5)
