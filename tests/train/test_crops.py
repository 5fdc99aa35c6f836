"""Crops: the box is where the pixels come from, and a crop depends on seed, epoch and image alone."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.image_sources import find_images
from pipeline.images import ImageSet
from train.crops import RandomCrops, TrainingBatches, collate
from train.recipe import Recipe, load

SMALL = load("scenes-single", ["image_size=24", "batch_size=4", "epochs=3", "warmup_epochs=1"])


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Lopsided images whose red grows along the columns and whose green grows along the rows, from 0 to 255."""
    root = tmp_path_factory.mktemp("gradients")
    for i, (rows, columns) in enumerate([(60, 90), (90, 60), (40, 41), (64, 200), (50, 50), (33, 77)]):
        red = np.broadcast_to(np.linspace(0, 255, columns)[None, :], (rows, columns))
        green = np.broadcast_to(np.linspace(0, 255, rows)[:, None], (rows, columns))
        image = np.stack([red, green, np.full((rows, columns), 128.0)], 2).round().astype(np.uint8)
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / f"class{i % 2}" / f"{i}.png")
    return find_images(root)


def test_box_is_where_the_pixels_come_from(gradients: ImageSet) -> None:
    crops = RandomCrops(gradients, SMALL)
    for epoch in range(10):
        for index in range(len(gradients)):
            image, (x0, y0, x1, y1), *_ = crops[(epoch, index)]
            red, green = image[0].float().mean() / 255, image[1].float().mean() / 255
            assert float(red) == pytest.approx((x0 + x1) / 2, abs=0.02)  # the mean of a gradient is its value mid-way
            assert float(green) == pytest.approx((y0 + y1) / 2, abs=0.02)


def test_boxes_are_within_the_image_and_of_the_recipes_area(gradients: ImageSet) -> None:
    crops = RandomCrops(gradients, dataclasses.replace(SMALL, crop_scale=(0.3, 0.5)))
    index = gradients.keys.index("class0/4.png")  # square: torchvision need not fall back to a centre crop
    boxes = torch.tensor([crops[(epoch, index)][1] for epoch in range(50)])
    assert boxes.min() >= 0 and boxes.max() <= 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.28 < area.min() < area.max() < 0.52  # rounded to whole pixels
    assert boxes[:, 0].std() > 0.05 and boxes[:, 1].std() > 0.05


def test_crops_and_their_draws_do_not_depend_on_the_number_of_workers(gradients: ImageSet) -> None:
    def boxes_and_draws(workers: int) -> torch.Tensor:
        batches = TrainingBatches(len(gradients), SMALL, 0, 0, 1)
        loader = DataLoader(RandomCrops(gradients, SMALL), batch_sampler=batches, num_workers=workers, collate_fn=collate)
        return torch.cat([torch.cat([batch.boxes, batch.draws], 1) for batch in loader])

    assert torch.equal(boxes_and_draws(0), boxes_and_draws(2))


def test_drawing_crops_leaves_torchs_random_numbers_alone(gradients: ImageSet) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    RandomCrops(gradients, SMALL)[(0, 0)]
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_or_epoch_is_another_crop(gradients: ImageSet) -> None:
    _, box, _, _, draws = RandomCrops(gradients, SMALL)[(0, 0)]
    again = RandomCrops(gradients, SMALL)[(0, 0)]
    assert again[1] == box and torch.equal(again[4], draws)
    for other in (
        RandomCrops(gradients, SMALL)[(1, 0)],
        RandomCrops(gradients, dataclasses.replace(SMALL, seed=1))[(0, 0)],
    ):
        assert other[1] != box and not torch.equal(other[4], draws)


def stream(images: int, recipe: Recipe, first_step: int = 0, rank: int = 0, world: int = 1) -> list[list[tuple[int, int]]]:
    return list(TrainingBatches(images, recipe, first_step, rank, world))


def test_every_epoch_takes_every_image_at_most_once_in_a_new_order() -> None:
    batches = stream(14, SMALL)  # 14 images, batches of 4: 3 steps an epoch, 2 images left out
    assert len(batches) == 9
    orders = []
    for epoch in range(3):
        places = [place for batch in batches[3 * epoch : 3 * epoch + 3] for place in batch]
        assert {e for e, _ in places} == {epoch}
        order = [index for _, index in places]
        assert len(set(order)) == 12 and set(order) <= set(range(14))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("first_step", [1, 3, 5, 9])
def test_resumed_stream_is_the_rest_of_the_whole_one(first_step: int) -> None:
    assert stream(14, SMALL, first_step) == stream(14, SMALL)[first_step:]


def test_processes_share_every_batch_without_overlap() -> None:
    whole, first, second = stream(14, SMALL), stream(14, SMALL, 0, 0, 2), stream(14, SMALL, 0, 1, 2)
    for batch, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 2
        assert sorted(a + b) == sorted(batch)
