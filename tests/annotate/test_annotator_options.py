"""The options recentre, flip and class_token, and their effect on a map."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from annotate.convert import fully_convolutional
from relabel.runtime.errors import InputError
from tests.conftest import THIN, Randomised

SIZE = (48, 72)


def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def make(randomised: Randomised, name: str, size: tuple[int, int] | None = None, **kwargs: Any) -> Any:
    """A timm classifier: Any, since its layers differ by family."""
    torch.manual_seed(0)
    return randomised(timm.create_model(name, num_classes=7, **kwargs), size=size)


@torch.inference_mode()
def test_mean_of_a_recentred_map_equals_the_classifiers_logits_although_the_head_is_nonlinear(
    randomised: Randomised,
) -> None:
    classifier = make(randomised, "mobilenetv3_small_050", size=(64, 160))
    batch = torch.randn(2, 3, 64, 160, generator=torch.Generator().manual_seed(2))
    plain, recentred = (fully_convolutional(classifier, (64, 160), recentre=r)(batch) for r in (False, True))
    logits = classifier(batch)
    assert (plain.mean((2, 3)) - logits).abs().max() > 1e-2 * logits.std()
    torch.testing.assert_close(recentred.mean((2, 3)), logits, atol=1e-4, rtol=1e-4)
    shift = recentred - plain  # the same in every cell
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_flip_averages_with_the_mirrored_images_map_mirrored_back(randomised: Randomised) -> None:
    classifier = make(randomised, "resnet10t", None, **THIN)
    plain = fully_convolutional(classifier, SIZE)
    flipped = fully_convolutional(classifier, SIZE, flip=True)
    by_hand = (plain(images()) + plain(images().flip(-1)).flip(-1)) / 2
    assert not torch.allclose(flipped(images()), plain(images()), atol=1e-3)
    torch.testing.assert_close(flipped(images()), by_hand)
    torch.testing.assert_close(flipped(images().flip(-1)), flipped(images()).flip(-1), atol=1e-5, rtol=1e-5)


def test_class_token_model_is_accepted_only_with_the_option(randomised: Randomised) -> None:
    classifier = make(randomised, "test_vit", img_size=(64, 96))
    with pytest.raises(InputError, match=r"class token.*annotate --class-token uses it anyway"):
        fully_convolutional(classifier, (64, 96))
    annotator = fully_convolutional(classifier, (64, 96), class_token=True)
    assert annotator.kind == "token"
    with torch.inference_mode():
        assert annotator(torch.randn(1, 3, 64, 96)).shape == (1, 7, 4, 6)


@pytest.mark.parametrize("class_token", [False, True])
def test_head_that_pools_by_attention_is_rejected_with_and_without_the_option(
    randomised: Randomised, class_token: bool
) -> None:
    classifier = make(randomised, "test_vit", global_pool="map", img_size=(64, 96))
    for layer in (classifier.attn_pool.q, classifier.attn_pool.kv):
        nn.init.normal_(layer.weight)  # with its small initial weights, it is nearly a plain mean
    with pytest.raises(InputError, match="test_vit cannot annotate: its head does not pool by averaging"):
        fully_convolutional(classifier, (64, 96), class_token=class_token)


@torch.inference_mode()
def test_recentred_map_keeps_its_mean_under_bfloat16_autocast(randomised: Randomised) -> None:
    classifier = make(randomised, "mobilenetv3_small_050", size=(64, 160))
    batch = torch.randn(2, 3, 64, 160, generator=torch.Generator().manual_seed(2))
    annotator = fully_convolutional(classifier, (64, 160), recentre=True)
    with torch.autocast("cpu", torch.bfloat16):
        recentred, logits = annotator(batch), classifier(batch)
    assert recentred.dtype == torch.float32
    rounding = 2**-8 * logits.float().abs().max()  # of the head's logits; taking the mean adds none
    assert (recentred.mean((2, 3)) - logits.float()).abs().max() < rounding / 16
