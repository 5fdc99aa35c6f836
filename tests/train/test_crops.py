"""Crops: the box is where the pixels come from, and a crop depends only on seed, epoch and image."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor, resized_crop

from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.runtime import workers
from relabel.runtime.errors import InputError
from train.augment import MIRROR
from train.crops import RandomCrops, TrainingBatches, reduction_for
from train.recipe import Recipe, load_recipe

SMALL = load_recipe("scenes-single", ["image_size=24", "batch_size=4", "epochs=3", "warmup_epochs=1"])


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Lopsided images whose red grows along the columns and green along the rows, from 0 to 255."""
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
            crop = crops[[(epoch, index)]]
            (x0, y0, x1, y1), image = crop.boxes[0].tolist(), crop.images[0]
            red, green = image[0].float().mean() / 255, image[1].float().mean() / 255
            assert float(red) == pytest.approx((x0 + x1) / 2, abs=0.02)  # the mean of a gradient is the value in its middle
            assert float(green) == pytest.approx((y0 + y1) / 2, abs=0.02)


def test_crops_for_maps_of_the_central_square_lie_in_it_and_their_boxes_are_fractions_of_it(gradients: ImageSet) -> None:
    crops = RandomCrops(gradients, SMALL, window=0.9)
    for index, key in enumerate(gradients.keys):
        with gradients.open_image(index) as encoded:
            width, height = encoded.width, encoded.height
        side = 0.9 * min(width, height)
        for epoch in range(10):
            crop = crops[[(epoch, index)]]
            (x0, y0, x1, y1), image = crop.boxes[0].tolist(), crop.images[0]
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, key
            red, green = image[0].float().mean() / 255, image[1].float().mean() / 255
            assert float(red) == pytest.approx(0.5 + side / width * ((x0 + x1) / 2 - 0.5), abs=0.02)
            assert float(green) == pytest.approx(0.5 + side / height * ((y0 + y1) / 2 - 0.5), abs=0.02)
            edges = torch.tensor([x0 * side + (width - side) / 2, y0 * side + (height - side) / 2])
            assert (edges - edges.round()).abs().max() < 1e-3  # whole pixels of the file


def test_boxes_lie_within_the_image_and_have_the_recipes_area(gradients: ImageSet) -> None:
    crops = RandomCrops(gradients, dataclasses.replace(SMALL, crop_scale=(0.3, 0.5)))
    index = gradients.keys.index("class0/4.png")  # square, so that torchvision does not fall back to a centre crop
    boxes = torch.cat([crops[[(epoch, index)]].boxes for epoch in range(50)])
    assert boxes.min() >= 0 and boxes.max() <= 1
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert 0.28 < area.min() < area.max() < 0.52  # rounded to whole pixels
    assert boxes[:, 0].std() > 0.05 and boxes[:, 1].std() > 0.05


def test_crops_and_their_draws_do_not_depend_on_the_number_of_workers(gradients: ImageSet) -> None:
    def boxes_and_draws(workers: int) -> torch.Tensor:
        batches = TrainingBatches(len(gradients), SMALL, 0, 0, 1)
        loader = DataLoader(RandomCrops(gradients, SMALL), batch_size=None, sampler=batches, num_workers=workers)
        return torch.cat([torch.cat([batch.boxes, batch.draws], 1) for batch in loader])

    assert torch.equal(boxes_and_draws(0), boxes_and_draws(2))


def test_drawing_crops_leaves_torchs_generator_alone(gradients: ImageSet) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    RandomCrops(gradients, SMALL)[[(0, 0)]]
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_or_epoch_gives_another_crop(gradients: ImageSet) -> None:
    crops, again = RandomCrops(gradients, SMALL)[[(0, 0)]], RandomCrops(gradients, SMALL)[[(0, 0)]]
    assert torch.equal(again.boxes, crops.boxes) and torch.equal(again.draws, crops.draws)
    for other in (
        RandomCrops(gradients, SMALL)[[(1, 0)]],
        RandomCrops(gradients, dataclasses.replace(SMALL, seed=1))[[(0, 0)]],
    ):
        assert not torch.equal(other.boxes, crops.boxes) and not torch.equal(other.draws, crops.draws)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Large, lopsided JPEGs of odd sizes, with detail of several scales and no grain."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    (root / "class").mkdir()
    for i, (columns, rows) in enumerate([(501, 375), (331, 613), (807, 605)]):
        pixels = np.zeros((rows, columns, 3))
        for cells, strength in ((3, 60), (9, 40), (40, 15)):
            coarse = rng.normal(128, strength, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)) - 128.0
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(root / "class" / f"{i}.JPEG", quality=90)
    return find_images(root)


def test_crops_equal_torchvisions_of_tensors_and_nearly_those_of_pillow_if_nothing_is_reduced(photographs: ImageSet) -> None:
    crops = RandomCrops(photographs, dataclasses.replace(SMALL, image_size=256, hflip=0.0))
    for index in range(len(photographs)):
        crop = crops[[(0, index)]]
        image = Image.open(photographs.name(index))
        left, top, right, bottom = (crop.boxes[0] * torch.tensor([*image.size, *image.size])).round().int().tolist()
        if min(right - left, bottom - top) < 2 * 256:  # otherwise it is decoded at half size
            window = top, left, bottom - top, right - left, [256, 256]
            assert torch.equal(crop.images[0], resized_crop(pil_to_tensor(image), *window, antialias=True))
            difference = (crop.images[0].int() - pil_to_tensor(resized_crop(image, *window)).int()).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 0.05


@pytest.mark.parametrize("side", [24, 50, 100])
def test_reduced_decoding_shows_the_same_place_in_about_the_same_pixels(photographs: ImageSet, side: int) -> None:
    settings = dataclasses.replace(SMALL, image_size=side, crop_scale=(0.4, 1.0))
    whole = RandomCrops(photographs, dataclasses.replace(settings, reduced_decode=False))
    reduced = RandomCrops(photographs, settings)
    for epoch in range(4):
        for index in range(len(photographs)):
            a, b = whole[[(epoch, index)]], reduced[[(epoch, index)]]
            image = Image.open(photographs.name(index))
            moved = (b.boxes - a.boxes)[0] * torch.tensor([*image.size, *image.size])
            assert (moved[:2] >= -1e-3).all() and (moved[2:] <= 1e-3).all() and moved.abs().max() < 8, "not just inside"
            left, top, right, bottom = (b.boxes[0] * torch.tensor([*image.size, *image.size])).round().int().tolist()
            b_pixels = b.images[0].double()
            window = top, left, bottom - top, right - left
            a_pixels = resized_crop(pil_to_tensor(image), *window, [side, side], antialias=True).double()
            assert not torch.equal(a_pixels, b_pixels), "nothing was reduced"
            assert (a_pixels - b_pixels).abs().mean() < 1.5
            shifted = min(float((a_pixels.roll(by, axis) - b_pixels).abs().mean()) for by in (-1, 1) for axis in (1, 2))
            assert (a_pixels - b_pixels).abs().mean() < shifted / 2


def test_box_is_where_the_pixels_come_from_when_decoding_rounds_the_size_up(tmp_path: Path) -> None:
    # at an eighth, 101 columns become 13, not 12.6: taking 101 / 13 for the reduction would read a shifted place
    (tmp_path / "class").mkdir()
    red = np.broadcast_to(np.linspace(0, 255, 101)[None, :, None], (93, 101, 3))
    Image.fromarray(red.round().astype(np.uint8)).save(tmp_path / "class" / "0.JPEG", quality=95)
    crops = RandomCrops(find_images(tmp_path), dataclasses.replace(SMALL, image_size=5, crop_scale=(0.4, 0.6)))
    errors = []
    for epoch in range(40):
        crop = crops[[(epoch, 0)]]
        x0, _, x1, _ = crop.boxes[0].tolist()
        errors.append(abs(float(crop.images[0, 0].float().mean()) / 255 - (x0 + x1) / 2))
    assert max(errors) < 0.012


@pytest.mark.parametrize(
    ("side", "width", "by", "size"),
    [
        (100, 199, 1, (501, 375)),
        (100, 200, 2, (251, 188)),
        (100, 501, 2, (251, 188)),  # 375 rows are 93 at a quarter
        (93, 400, 4, (126, 94)),
        (5, 39, 4, (126, 94)),
        (5, 40, 8, (63, 47)),
        (1, 375, 8, (63, 47)),
    ],
)
def test_jpeg_is_reduced_as_far_as_the_smallest_crop_allows(
    photographs: ImageSet, side: int, width: int, by: int, size: tuple[int, int]
) -> None:
    assert reduction_for([(0, 0, 501, 375), (0, 0, width, 375)], side) == by
    with photographs.open_image(photographs.index("class/0.JPEG")) as encoded:
        assert (encoded.width, encoded.height) == (501, 375)
        image, reduction = encoded.decode(by)
    assert (image.size, reduction) == (size, by)


def test_other_formats_are_decoded_at_full_size(gradients: ImageSet) -> None:
    with gradients.open_image(0) as encoded:
        image, reduction = encoded.decode(8)
    assert reduction == 1 and image.size == (encoded.width, encoded.height)


def test_crop_is_mirrored_if_its_random_number_is_below_the_probability(gradients: ImageSet) -> None:
    third = RandomCrops(gradients, dataclasses.replace(SMALL, hflip=0.3))
    crops = third[[(epoch, index) for epoch in range(20) for index in range(len(gradients))]]
    assert torch.equal(crops.mirrored, crops.draws[:, MIRROR] < 0.3)
    assert 20 < crops.mirrored.sum() < 52  # of 120, so 36 are expected


def test_crops_of_one_image_differ_and_the_first_is_that_of_one_crop_per_image(gradients: ImageSet) -> None:
    one = RandomCrops(gradients, SMALL)[[(0, 0)]]
    four = RandomCrops(gradients, dataclasses.replace(SMALL, crops_per_image=4))[[(0, 0)]]
    assert torch.equal(four.images[:1], one.images) and torch.equal(four.boxes[:1], one.boxes)
    assert len({tuple(box) for box in four.boxes.tolist()}) == 4 and four.indices.tolist() == [0] * 4
    for image, (x0, _, x1, _) in zip(four.images, four.boxes.tolist(), strict=True):  # each with its own box
        assert float(image[0].float().mean() / 255) == pytest.approx((x0 + x1) / 2, abs=0.02)


def test_batch_has_all_crops_of_its_images(gradients: ImageSet) -> None:
    crops = RandomCrops(gradients, dataclasses.replace(SMALL, crops_per_image=2))
    batch = crops[[(0, 3), (0, 1)]]
    assert batch.images.shape == (4, 3, 24, 24) and batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.indices.tolist() == [3, 3, 1, 1]
    assert batch.targets.tolist() == gradients.targets[[3, 3, 1, 1]].tolist()
    assert torch.equal(batch.images[2:], crops[[(0, 1)]].images)


def batches_of(
    images: int, recipe: Recipe, first_step: int = 0, rank: int = 0, world: int = 1
) -> list[list[tuple[int, int]]]:
    return list(TrainingBatches(images, recipe, first_step, rank, world))


def test_every_epoch_takes_every_image_at_most_once_in_a_new_order() -> None:
    batches = batches_of(14, SMALL)  # 14 images, batches of 4: 3 steps per epoch, 2 images left out
    assert len(batches) == 9
    orders = []
    for epoch in range(3):
        pairs = [pair for batch in batches[3 * epoch : 3 * epoch + 3] for pair in batch]
        assert {e for e, _ in pairs} == {epoch}
        order = [index for _, index in pairs]
        assert len(set(order)) == 12 and set(order) <= set(range(14))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("first_step", [1, 3, 5, 9])
def test_resumed_training_gets_the_remaining_batches(first_step: int) -> None:
    assert batches_of(14, SMALL, first_step) == batches_of(14, SMALL)[first_step:]


def test_epoch_has_as_many_crops_from_fewer_images_with_several_crops_per_image() -> None:
    settings = dataclasses.replace(SMALL, crops_per_image=2, epochs=4)
    batches = batches_of(14, settings)  # 2 images, 4 crops a batch; 3 steps per epoch, as with one crop per image
    assert len(batches) == 12 and {len(batch) for batch in batches} == {2}
    assert [batch[0][0] for batch in batches] == [epoch for epoch in range(4) for _ in range(3)]
    both = [[index for batch in batches[half : half + 6] for _, index in batch] for half in (0, 6)]
    assert all(len(set(order)) == 12 for order in both)  # two epochs read an image at most once
    assert both[0] != both[1]
    for first_step in (1, 3, 8):
        assert batches_of(14, settings, first_step) == batches[first_step:]


def test_processes_share_every_batch_without_overlap() -> None:
    whole, first, second = batches_of(14, SMALL), batches_of(14, SMALL, 0, 0, 2), batches_of(14, SMALL, 0, 1, 2)
    for batch, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 2
        assert sorted(a + b) == sorted(batch)


@pytest.mark.parametrize(("size", "ratio"), [((1, 20), (3.0, 4.0)), ((20, 1), (0.25, 0.3))])
def test_image_that_is_too_narrow_for_a_crop_is_named(
    tmp_path: Path, size: tuple[int, int], ratio: tuple[float, float]
) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", size).save(tmp_path / "a" / "thin.png")
    crops = RandomCrops(find_images(tmp_path), dataclasses.replace(SMALL, crop_ratio=ratio))
    loader = DataLoader(crops, batch_size=None, sampler=[[(0, 0)]], num_workers=1)
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/a/thin\.png: {size[0]} x {size[1]} pixels are too narrow for a crop"
    ):
        next(workers.batches_of(loader))
    assert RandomCrops(find_images(tmp_path), SMALL)[[(0, 0)]].images.shape == (1, 3, 24, 24)
