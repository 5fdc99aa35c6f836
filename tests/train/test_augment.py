"""Augmentation of a batch equals torchvision's, image by image, and depends only on an image's own random numbers."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from train.augment import DRAWS, EIGENVALUES, EIGENVECTORS, FACTORS, LIGHTING, ORDER, augment, augmentation_draws, mirror
from train.recipe import load_recipe

PLAIN = ["hflip=0", "lighting=0", "colour_jitter=[0,0,0]"]


def pictures(count: int, size: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def drawn(count: int) -> Tensor:
    torch.manual_seed(1)
    return torch.stack([augmentation_draws() for _ in range(count)])


def unmirrored(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool)


def test_augmentations_that_are_off_leave_the_images_unchanged() -> None:
    images = pictures(4)
    assert augment(images, unmirrored(4), drawn(4), load_recipe("single", PLAIN)) is images
    assert augment(images, unmirrored(4), drawn(4), load_recipe("single", [*PLAIN, "hflip=0.5"])).dtype == torch.uint8


def test_only_mirrored_crops_are_flipped() -> None:
    images, mirrored = pictures(3), torch.tensor([True, False, True])
    flipped = augment(images, mirrored, drawn(3), load_recipe("single", [*PLAIN, "hflip=0.3"]))
    assert torch.equal(flipped, torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)]))


@pytest.mark.parametrize("strength", [(0.4, 0.4, 0.4), (0.8, 0.0, 1.5)])
def test_jitter_equals_torchvision_with_each_images_own_factors_and_order(strength: tuple[float, float, float]) -> None:
    images, draws = pictures(40), drawn(40)
    jittered = augment(
        images, unmirrored(len(images)), draws, load_recipe("single", [*PLAIN, f"colour_jitter={list(strength)}"])
    )
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    orders = set()
    for image, draw, ours in zip(images, draws, jittered, strict=True):
        theirs = image.float() / 255
        order = draw[ORDER].argsort().tolist()
        orders.add(tuple(order))
        for which in order:
            low, high = max(0.0, 1 - strength[which]), 1 + strength[which]
            theirs = adjust[which](theirs, low + float(draw[FACTORS][which]) * (high - low))
        torch.testing.assert_close(ours / 255, theirs, atol=1e-5, rtol=0)
    assert len(orders) == 6


def test_lighting_adds_a_random_sum_of_components_to_every_pixel() -> None:
    images, draws = pictures(5), drawn(5)
    lit = augment(images, unmirrored(len(images)), draws, load_recipe("single", [*PLAIN, "lighting=0.1"]))
    for i in range(5):
        for channel in range(3):
            added = sum(EIGENVECTORS[channel][j] * EIGENVALUES[j] * 0.1 * float(draws[i, LIGHTING][j]) for j in range(3))
            torch.testing.assert_close(lit[i, channel], images[i, channel].float() + 255 * added, atol=1e-3, rtol=0)


def test_principal_components_are_orthonormal() -> None:
    vectors = torch.tensor(EIGENVECTORS)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)


def test_augmentation_of_an_image_does_not_depend_on_its_batch() -> None:
    images, draws, recipe = pictures(6), drawn(6), load_recipe("relabel")
    mirrored = torch.tensor([True, False, False, True, False, True])
    together = augment(images, mirrored, draws, recipe)
    one_by_one = torch.cat([augment(images[i : i + 1], mirrored[i : i + 1], draws[i : i + 1], recipe) for i in range(6)])
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=0)


def test_draws_are_uniform_and_normal_where_they_should_be() -> None:
    draws = drawn(4000)
    uniform, normal = draws[:, : LIGHTING.start], draws[:, LIGHTING]
    assert draws.shape == (4000, DRAWS) and uniform.min() >= 0 and uniform.max() < 1
    assert (uniform.mean(0) - 0.5).abs().max() < 0.03
    assert normal.mean(0).abs().max() < 0.06 and (normal.std(0) - 1).abs().max() < 0.05


def test_mirroring_leaves_the_batch_itself_as_it_was() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    before = images.clone()
    mirrored = mirror(images, torch.tensor([False, True]))
    assert mirrored[1, 0].tolist() == [[13, 12], [15, 14]] and torch.equal(mirrored[0], before[0])
    assert torch.equal(images, before)
