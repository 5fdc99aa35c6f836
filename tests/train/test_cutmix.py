"""CutMix: the same rectangle and pairs for any number of processes, and targets by what is visible."""

import dataclasses

import pytest
import torch
from torch import Tensor

from train.crops import TrainingBatches
from train.cutmix import Paste, draw_paste, partner
from train.recipe import load_recipe

RECIPE = load_recipe("relabel-cutmix", ["epochs=8", "warmup_epochs=1", "batch_size=8"])
LOPSIDED = Paste(left=3, top=1, right=12, bottom=4, size=12)  # of 12 x 12 pixels; reaches the right edge


def test_paste_depends_only_on_seed_and_step_and_leaves_torchs_generator_alone() -> None:
    first = [draw_paste(step, 0, torch.empty(4, 3, 24, 24), RECIPE) for step in range(20)]
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    assert [draw_paste(step, 0, torch.empty(2, 3, 24, 24), RECIPE) for step in range(20)] == first
    assert torch.equal(torch.rand(3), expected)
    assert len(set(first)) > 15
    other = dataclasses.replace(RECIPE, seed=1)
    assert [draw_paste(step, 0, torch.empty(4, 3, 24, 24), other) for step in range(20)] != first


def test_cutmix_is_off_in_the_last_epochs_and_has_the_given_probability() -> None:
    images = torch.empty(2, 3, 24, 24)
    assert [draw_paste(7, epoch, images, RECIPE) is not None for epoch in range(8)] == [True] * 3 + [False] * 5
    third = dataclasses.replace(RECIPE, cutmix=0.3)
    assert 60 < sum(draw_paste(step, 0, images, third) is not None for step in range(300)) < 120
    assert draw_paste(0, 0, images, load_recipe("relabel")) is None


def test_kept_share_is_drawn_from_the_beta_distribution() -> None:
    images = torch.empty(2, 3, 224, 224)
    flat, peaked = RECIPE, dataclasses.replace(RECIPE, cutmix_beta=50.0)
    drawn = [[p.share for step in range(200) if (p := draw_paste(step, 0, images, r))] for r in (flat, peaked)]
    assert min(drawn[0]) < 0.02 and max(drawn[0]) > 0.7  # clipped at the edges, where the centre lies near one
    assert max(drawn[1]) < 0.66 and sum(drawn[1]) / 200 < 0.5


def test_pasted_pixels_are_the_partners_and_all_others_stay() -> None:
    images = torch.arange(4 * 3 * 12 * 12).reshape(4, 3, 12, 12)
    mixed = images.clone()
    LOPSIDED.paste_into(mixed)
    for i in range(4):
        for row in range(12):
            for column in range(12):
                inside = 3 <= column < 12 and 1 <= row < 4
                source = (i + 2) % 4 if inside else i
                assert torch.equal(mixed[i, :, row, column], images[source, :, row, column])


@pytest.mark.parametrize("world", [2, 4])
def test_pairs_are_the_same_however_many_processes_share_the_batch(world: int) -> None:
    def pairs(rank: int, world: int) -> dict[int, int]:
        (batch,) = list(
            TrainingBatches(8, dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0, cutmix_off_epochs=0), 0, rank, world)
        )
        indices = torch.tensor([index for _, index in batch])
        return dict(zip(indices.tolist(), partner(indices).tolist(), strict=True))

    shared = {image: other for rank in range(world) for image, other in pairs(rank, world).items()}
    assert shared == pairs(0, 1)
    assert all(image != other for image, other in shared.items())


def test_targets_by_area_equal_a_sum_by_hand() -> None:
    assert LOPSIDED.share == pytest.approx(27 / 144)
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(LOPSIDED.mix(target), torch.tensor([[117 / 144, 27 / 144], [27 / 144, 117 / 144]]))


def position(box: list[float], mirror: bool, size: int) -> Tensor:
    """(2, size, size): x and y in the image of the centre of each pixel of a crop."""
    along = (torch.arange(size) + 0.5) / size
    x = (box[0] + along * (box[2] - box[0])).expand(size, size)
    y = (box[1] + along * (box[3] - box[1])).unsqueeze(1).expand(size, size)
    return torch.stack([x.flip(-1) if mirror else x, y])


def test_box_of_the_rectangle_is_where_its_pixels_lie_in_the_image() -> None:
    boxes, mirror = [[0.1, 0.2, 0.7, 0.5], [0.1, 0.2, 0.7, 0.5]], [False, True]
    rectangles = LOPSIDED.boxes_of_rectangle(torch.tensor(boxes), torch.tensor(mirror))
    for box, flipped, rectangle in zip(boxes, mirror, rectangles, strict=True):
        inside = position(box, flipped, 12)[:, LOPSIDED.top : LOPSIDED.bottom, LOPSIDED.left : LOPSIDED.right]
        half = torch.tensor([0.6 / 24, 0.3 / 24])  # from a pixel's centre to its edge
        torch.testing.assert_close(rectangle[:2], inside.amin((1, 2)) - half)
        torch.testing.assert_close(rectangle[2:], inside.amax((1, 2)) + half)


def test_rectangle_never_reaches_outside_its_crop() -> None:
    boxes = torch.rand(2000, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values.reshape(2000, 4)
    whole = Paste(0, 0, 12, 12, 12)
    for mirror in (True, False):
        assert torch.equal(whole.boxes_of_rectangle(boxes, torch.full((2000,), mirror)), boxes)


@pytest.mark.parametrize("grid", [(4, 3), (5, 7), (1, 1)])
def test_token_shares_equal_a_count_of_small_squares(grid: tuple[int, int]) -> None:
    fine = 35 * 12  # a multiple of pixels and of all the grids' cells
    covered = torch.zeros(fine, fine)
    scale = fine // LOPSIDED.size
    covered[LOPSIDED.top * scale : LOPSIDED.bottom * scale, LOPSIDED.left * scale : LOPSIDED.right * scale] = 1
    counted = covered.reshape(grid[0], fine // grid[0], grid[1], fine // grid[1]).mean((1, 3))
    torch.testing.assert_close(LOPSIDED.token_shares(grid, torch.device("cpu")), counted, atol=1e-5, rtol=1e-5)
