"""A timm classifier becomes an annotator whose maps have the classifier's logits as mean, or is rejected with a reason."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from annotate.convert import fully_convolutional
from tests.conftest import THIN, Randomised, refusal

pytestmark = pytest.mark.slow

Make = Callable[..., Any]  # a timm classifier: Any, since its layers differ by family

SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": (64, 96), "window_size": (2, 3)}
CLASSES = 7

EXACT: list[tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = [  # model, its kwargs, pixels, cells
    ("resnet10t", THIN, (48, 72), (6, 9)),
    ("test_efficientnet", {}, (64, 160), (2, 5)),
    ("tf_efficientnet_b0", {}, (65, 160), (3, 5)),  # TF-SAME padding: ceil(size / 32)
    ("regnetx_002", {}, (64, 160), (2, 5)),
    ("test_nfnet", {}, (64, 160), (2, 5)),
    ("swin_tiny_patch4_window7_224", SWIN, (64, 96), (2, 3)),  # NHWC features
    ("mixer_s32_224", {}, (224, 224), (7, 7)),  # tokens
    ("levit_128s", {}, (224, 224), (4, 4)),  # tokens, and two heads with batch norm
]
NONLINEAR: list[tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = [
    ("convnext_atto", {}, (64, 160), (2, 5)),  # a norm after the pool
    ("mobilenetv3_small_050", {}, (64, 160), (2, 5)),  # a convolution and an activation after the pool
    ("test_vit2", {"img_size": (64, 96)}, (64, 96), (4, 6)),  # tokens after a register token, a norm after the pool
]


def images(count: int, size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make(randomised: Randomised) -> Make:
    def make(name: str, size: tuple[int, int] | None = None, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return randomised(timm.create_model(name, **{"num_classes": CLASSES} | kwargs), size=size)

    return make


@pytest.mark.parametrize(("name", "kwargs", "size", "cells"), EXACT, ids=lambda p: p if isinstance(p, str) else "")
@torch.inference_mode()
def test_mean_of_logit_map_equals_classifier_logits(
    make: Make, name: str, kwargs: dict[str, Any], size: tuple[int, int], cells: tuple[int, int]
) -> None:
    classifier = make(name, size, **kwargs)
    annotator = fully_convolutional(classifier, size)
    batch = images(3, size)
    logits, maps = classifier(batch), annotator(batch)
    assert annotator.kind == "exact"
    assert maps.shape == (3, CLASSES, *cells)
    assert maps.std((2, 3)).mean() > 0.01 * logits.std(), "a uniform map would prove nothing"
    assert torch.allclose(maps.mean((2, 3)), logits, rtol=0, atol=1e-4 * float(logits.std()))


@pytest.mark.parametrize(("name", "kwargs", "size", "cells"), NONLINEAR, ids=lambda p: p if isinstance(p, str) else "")
@torch.inference_mode()
def test_nonlinear_head_is_measured_as_such_and_its_map_has_the_expected_grid(
    make: Make, name: str, kwargs: dict[str, Any], size: tuple[int, int], cells: tuple[int, int]
) -> None:
    classifier = make(name, size, **kwargs)
    annotator = fully_convolutional(classifier, size)
    batch = images(3, size)
    assert annotator.kind == "nonlinear"
    assert annotator(batch).shape == (3, CLASSES, *cells)
    assert (annotator(batch).mean((2, 3)) - classifier(batch)).abs().max() > 1e-2 * classifier(batch).std()


Location = Callable[[Any, Tensor, int, int], Tensor]  # classifier, features, row, column -> (B, C)

BY_HAND: list[tuple[str, dict[str, Any], tuple[int, int], Location]] = [
    ("resnet10t", THIN, (48, 72), lambda m, f, r, c: m.fc(f[:, :, r, c])),
    ("test_efficientnet", {}, (64, 160), lambda m, f, r, c: m.classifier(f[:, :, r, c])),
    ("convnext_atto", {}, (64, 160), lambda m, f, r, c: m.head.fc(m.head.norm(f[:, :, r, c, None, None]).flatten(1))),
    ("swin_tiny_patch4_window7_224", SWIN, (64, 96), lambda m, f, r, c: m.head.fc(f[:, r, c])),
    ("mixer_s32_224", {}, (224, 224), lambda m, f, r, c: m.head(f[:, 7 * r + c])),
    ("test_vit2", {"img_size": (64, 96)}, (64, 96), lambda m, f, r, c: m.head(m.fc_norm(f[:, 1 + 6 * r + c]))),
]


@pytest.mark.parametrize(("name", "kwargs", "size", "at"), BY_HAND, ids=lambda p: p if isinstance(p, str) else "")
@torch.inference_mode()
def test_each_cell_equals_the_models_own_head_at_that_location(
    make: Make, name: str, kwargs: dict[str, Any], size: tuple[int, int], at: Location
) -> None:
    classifier = make(name, size, **kwargs)
    maps = fully_convolutional(classifier, size)(images(2, size))
    features = classifier.forward_features(images(2, size))
    for row, column in np.ndindex(*maps.shape[2:]):
        assert torch.allclose(maps[:, :, row, column], at(classifier, features, row, column), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("resnet10t", THIN, (48, 72)),
        ("test_efficientnet", {}, (128, 256)),
        ("swin_tiny_patch4_window7_224", SWIN, (64, 96)),
        ("test_vit2", {"img_size": (64, 96)}, (64, 96)),
    ],
)
@torch.inference_mode()
def test_change_at_the_top_right_of_the_image_changes_the_top_right_of_the_map(
    make: Make, name: str, kwargs: dict[str, Any], size: tuple[int, int]
) -> None:
    annotator = fully_convolutional(make(name, size, **kwargs), size)
    plain = 0.1 * images(1, size)
    patched = plain.clone()
    patched[..., : size[0] // 4, -size[1] // 6 :] += 8
    change = (annotator(patched) - annotator(plain)).abs().sum(1)[0]
    rows, columns = change.shape
    assert rows < columns
    row, column = divmod(int(change.argmax()), columns)
    assert row < rows / 2 and column >= columns / 2
    top_left, top_right, bottom_left, bottom_right = change[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()
    assert top_right > max(top_left, bottom_left, bottom_right)


def test_annotator_stays_in_eval_mode_and_its_batch_norm_statistics_do_not_change(make: Make) -> None:
    annotator = fully_convolutional(make("resnet10t", **THIN), (48, 72))
    before = {name: value.clone() for name, value in annotator.state_dict().items()}
    single = annotator(images(1, (48, 72)))
    annotator.train()
    assert not any(module.training for module in annotator.modules())
    in_a_batch = annotator(torch.cat([images(1, (48, 72)), images(1, (48, 72), seed=2)]))
    assert torch.allclose(in_a_batch[:1], single, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in annotator.state_dict().items())


def test_classifier_in_train_mode_is_converted_in_eval_mode(make: Make) -> None:
    expected = fully_convolutional(make("resnet10t", **THIN), (48, 72))(images(2, (48, 72)))
    assert torch.allclose(
        fully_convolutional(make("resnet10t", **THIN).train(), (48, 72))(images(2, (48, 72))), expected, atol=1e-6
    )


def test_input_size_defaults_to_the_models_own(make: Make) -> None:
    seen = []

    def record(_: nn.Module, batch: tuple[Tensor]) -> None:
        seen.append(tuple(batch[0].shape[2:]))

    classifier = make("resnet10t", **THIN, pretrained_cfg_overlay={"input_size": (3, 40, 56)})
    classifier.conv1.register_forward_pre_hook(record)
    fully_convolutional(classifier)
    assert set(seen) == {(40, 56)}


# --- rejected -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("deit_tiny_patch16_224", {"depth": 1}, "its head reads a class token"),
        ("test_vit", {}, "its head reads a class token"),
        ("coat_lite_tiny", {}, "its head reads a class token"),
        ("crossvit_tiny_240", {}, "its features (list) are not a single feature map"),
        ("pit_ti_224", {}, ""),
    ],
)
def test_classifier_that_cannot_annotate_is_rejected_with_its_name_and_the_reason(
    make: Make, name: str, kwargs: dict[str, Any], reason: str
) -> None:
    message = refusal(functools.partial(fully_convolutional, make(name, **kwargs)))
    assert message.startswith(f"{name} cannot annotate") and reason in message


def test_message_for_pit_does_not_suggest_a_larger_input_which_would_not_help(make: Make) -> None:
    classifier = make("pit_ti_224", img_size=448)
    assert "--input-size" not in refusal(lambda: fully_convolutional(classifier, (448, 448)))


def test_message_for_a_single_cell_map_asks_for_a_larger_input(make: Make) -> None:
    message = refusal(lambda: fully_convolutional(make("test_resnet"), (32, 32)))
    assert message == "test_resnet cannot annotate at 32x32 pixels: its map is a single cell; use a larger --input-size"


def test_message_for_an_unsupported_size_gives_it_and_the_models_native_size(make: Make) -> None:
    message = refusal(lambda: fully_convolutional(make("mixer_s32_224"), (64, 96)))
    assert message.startswith("mixer_s32_224 cannot annotate at 64x96 pixels: ")
    assert message.endswith("; its native size is 224x224, and some models accept only multiples of it or of their stride")


def test_classifier_that_was_never_trained_is_rejected(make: Make) -> None:
    classifier = make("resnet10t", **THIN)
    nn.init.zeros_(classifier.fc.weight)
    nn.init.zeros_(classifier.fc.bias)
    message = refusal(lambda: fully_convolutional(classifier, (48, 72)))
    assert "its logits are all the same, so it was never trained" in message


def test_classifier_with_damaged_weights_is_not_reported_as_untrained(make: Make) -> None:
    classifier = make("resnet10t", **THIN)
    nn.init.constant_(classifier.fc.bias, float("nan"))
    message = refusal(lambda: fully_convolutional(classifier, (48, 72)))
    assert "finite" in message and "never trained" not in message


def test_classifier_not_from_timm_is_rejected_with_the_methods_it_lacks() -> None:
    message = refusal(lambda: fully_convolutional(torchvision.models.squeezenet1_1(num_classes=3), (64, 96)))
    assert message.startswith("SqueezeNet cannot annotate: it lacks forward_features or forward_head")
