"""VGG and VOLO predict logits at every location with their own heads: the cells hold the right logits in the right place."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from annotate.convert import fully_convolutional
from tests.conftest import Randomised

pytestmark = pytest.mark.slow

Classifier = Any  # of timm, whose layers differ by family


def images(size: tuple[int, int], count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vgg(randomised: Randomised) -> Classifier:
    torch.manual_seed(0)
    return randomised(timm.create_model("vgg11", num_classes=7, mlp_ratio=0.02))


@pytest.fixture(scope="module")
def volo(randomised: Randomised) -> Classifier:
    torch.manual_seed(0)
    classifier = timm.create_model("volo_d1_224", num_classes=7, img_size=(64, 96))
    nn.init.normal_(classifier.aux_head.weight, std=0.2)
    return randomised(classifier)


@torch.inference_mode()
def test_middle_cell_of_vgg_at_its_native_size_equals_the_classifiers_logits(vgg: Classifier) -> None:
    maps = fully_convolutional(vgg)(images((224, 224), 1))
    assert maps.shape == (1, 7, 7, 7)
    torch.testing.assert_close(maps[:, :, 3, 3], vgg(images((224, 224), 1)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_each_cell_of_vgg_equals_its_head_on_the_window_centred_there(vgg: Classifier) -> None:
    maps = fully_convolutional(vgg, (96, 160))(images((96, 160)))
    features = vgg.forward_features(images((96, 160)))
    assert maps.shape == (2, 7, 3, 5)
    for row, column in np.ndindex(3, 5):
        rows = [min(max(row + i, 0), 2) for i in range(-3, 4)]  # the border is repeated
        columns = [min(max(column + j, 0), 4) for j in range(-3, 4)]
        window = features[:, :, rows][:, :, :, columns]
        torch.testing.assert_close(maps[:, :, row, column], vgg.forward_head(window), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_mean_over_full_windows_of_vgg_equals_its_logits_for_a_larger_image(vgg: Classifier) -> None:
    maps = fully_convolutional(vgg, (224, 288))(images((224, 288), 1))
    assert maps.shape == (1, 7, 7, 9)
    torch.testing.assert_close(maps[:, :, 3:4, 3:6].mean((2, 3)), vgg(images((224, 288), 1)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_each_cell_of_volo_equals_its_auxiliary_head_at_that_token(volo: Classifier) -> None:
    maps = fully_convolutional(volo, (64, 96))(images((64, 96)))
    tokens = volo.forward_features(images((64, 96)))
    assert maps.shape == (2, 7, 4, 6)
    for row, column in np.ndindex(4, 6):
        expected = volo.aux_head(tokens[:, 1 + 6 * row + column])
        torch.testing.assert_close(maps[:, :, row, column], expected, atol=1e-5, rtol=1e-5)
    # timm's logits are those of the class token plus half of each class's largest logit over the tokens
    logits = volo.head(tokens[:, 0]) + 0.5 * maps.amax((2, 3))
    torch.testing.assert_close(logits, volo(images((64, 96))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("vgg", (96, 160)), ("volo", (64, 96))])
@torch.inference_mode()
def test_change_in_a_corner_of_the_image_changes_that_corner_of_the_map_most(
    request: pytest.FixtureRequest, name: str, size: tuple[int, int]
) -> None:
    annotator = fully_convolutional(request.getfixturevalue(name), size)
    hot = 0.1 * images(size, 1).repeat(5, 1, 1, 1)  # four images with one hot corner each, and one without
    height, width = size[0] // 6, size[1] // 6
    for i, (top, left) in enumerate(np.ndindex(2, 2)):
        hot[
            i, :, slice(height) if top == 0 else slice(-height, None), slice(width) if left == 0 else slice(-width, None)
        ] += 8
    maps = annotator(hot)
    for i in range(4):
        change = (maps[i] - maps[4]).abs().sum(0)
        assert int(change[[0, 0, -1, -1], [0, -1, 0, -1]].argmax()) == i


@pytest.mark.parametrize(("name", "size"), [("vgg", (96, 160)), ("volo", (64, 96))])
@torch.inference_mode()
def test_kind_is_dense_and_recentring_gives_the_classifiers_logits(
    request: pytest.FixtureRequest, name: str, size: tuple[int, int]
) -> None:
    classifier = request.getfixturevalue(name)
    plain, recentred = (fully_convolutional(classifier, size, recentre=r) for r in (False, True))
    assert plain.kind == recentred.kind == "dense"
    logits = classifier(images(size))
    assert (plain(images(size)).mean((2, 3)) - logits).abs().max() > 1e-2 * logits.std()
    torch.testing.assert_close(recentred(images(size)).mean((2, 3)), logits, atol=1e-4, rtol=1e-4)


def test_volo_without_its_auxiliary_head_is_a_class_token_model(randomised: Randomised) -> None:
    classifier = randomised(timm.create_model("volo_d1_224", num_classes=7, img_size=(64, 96), use_aux_head=False))
    assert fully_convolutional(classifier, (64, 96), class_token=True).kind == "token"
