"""Any timm classifier is created with the requested weights, or an error says what is wrong with its name or weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.cli.options import parse_model_kwargs
from relabel.models.classifier import create_classifier
from tests.conftest import refusal

THIN = {"stem_width": 8, "channels": (8, 8, 8, 16)}


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_error_for_an_unknown_model_suggests_similar_names() -> None:
    message = refusal(lambda: create_classifier("resnet5O"))
    assert "no model named 'resnet5O'; did you mean" in message and "resnet50" in message


def test_error_for_an_unknown_model_without_similar_names_points_to_the_list() -> None:
    message = refusal(lambda: create_classifier("qqqqqqqq"))
    assert "no model named 'qqqqqqqq'; `timm.list_models()` lists them all" in message


def test_unknown_weights_tag_is_named_in_the_error() -> None:
    assert "Invalid pretrained tag (nope)" in refusal(lambda: create_classifier("resnet50.nope"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ig_resnext101_32x16d", "pass resnext101_32x16d.fb_wsl_ig1b_ft_in1k if that is what you want"),
        ("ig_resnext101_32x32d", "pass resnext101_32x32d.fb_wsl_ig1b_ft_in1k if that is what you want"),
        ("ig_resnext101_32x48d", "pass resnext101_32x8d with --model-kwargs base_width=48, and its weights as"),
    ],
)
def test_error_for_a_model_that_timm_silently_replaces_by_a_narrower_one_names_both(name: str, remedy: str) -> None:
    message = refusal(lambda: create_classifier(name))
    assert f"timm creates resnext101_32x8d.fb_wsl_ig1b_ft_in1k for {name}, which is a different model; {remedy}" in message


def test_error_for_a_deprecated_name_suggests_the_current_one() -> None:
    message = refusal(lambda: create_classifier("tf_efficientnet_b1_ns"))
    assert message.endswith("pass tf_efficientnet_b1.ns_jft_in1k if that is what you want")


def test_resnext_without_a_timm_entry_is_created_by_its_width() -> None:
    message = refusal(lambda: create_classifier("resnext101_32x48d"))
    assert message.endswith("pass resnext101_32x8d with --model-kwargs base_width=48, and its weights as --checkpoint")
    with torch.device("meta"):
        classifier = create_classifier("resnext101_32x8d", model_kwargs={"base_width": 48})
    assert round(sum(p.numel() for p in classifier.parameters()) / 1e6) == 828  # Mahajan et al. 2018 (arXiv 1805.00932): 829
    assert classifier.get_parameter("layer1.0.conv2.weight").shape == (32 * 48, 48, 3, 3)


def test_model_with_a_fixed_input_size_is_built_for_the_requested_size() -> None:
    assert create_classifier("test_vit", input_size=(64, 96))(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)
    default, same = (create_classifier("test_vit", input_size=size) for size in (None, (160, 160)))
    assert default.get_parameter("pos_embed").shape == same.get_parameter("pos_embed").shape


def test_input_size_does_not_change_a_model_that_takes_any_size() -> None:
    plain, sized = (create_classifier("test_resnet", input_size=size) for size in (None, (64, 96)))
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in sized.state_dict().items()}


def test_img_size_in_model_kwargs_overrides_the_input_size() -> None:
    classifier = create_classifier("test_vit", input_size=(160, 160), model_kwargs={"img_size": (64, 96)})
    patch_embed: Any = classifier.patch_embed
    assert patch_embed.img_size == (64, 96)


def test_own_vision_transformer_trained_at_its_default_size_runs_at_another(
    tmp_path: Path, randomised: Callable[..., nn.Module]
) -> None:
    trained = randomised(timm.create_model("test_vit2", num_classes=3))
    nn.init.normal_(trained.get_parameter("pos_embed"))
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    sized = create_classifier("test_vit2", checkpoint=tmp_path / "x.pth", num_classes=3, input_size=(64, 96))
    patch_embed: Any = trained.patch_embed
    expected = timm.layers.resample_abs_pos_embed(
        trained.get_parameter("pos_embed"), (4, 6), patch_embed.grid_size, num_prefix_tokens=1
    )
    torch.testing.assert_close(sized.get_parameter("pos_embed"), expected)
    assert sized(torch.zeros(1, 3, 64, 96)).shape == (1, 3)


def test_error_for_an_own_classifier_that_timm_cannot_resize_says_to_leave_the_size_out(tmp_path: Path) -> None:
    torch.save(timm.create_model("convit_tiny", num_classes=3).state_dict(), tmp_path / "x.pth")
    message = refusal(
        lambda: create_classifier("convit_tiny", checkpoint=tmp_path / "x.pth", num_classes=3, input_size=(64, 64))
    )
    assert "pos_embed is [1, 196, 192]" in message
    assert message.endswith("the model it was trained as; if it was trained at another size, leave --input-size out")


def test_own_vision_transformer_trained_at_that_size_keeps_its_position_embeddings(
    tmp_path: Path, randomised: Callable[..., nn.Module]
) -> None:
    trained = randomised(timm.create_model("test_vit2", num_classes=3, img_size=(64, 96)))
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    sized = create_classifier("test_vit2", checkpoint=tmp_path / "x.pth", num_classes=3, input_size=(64, 96))
    loaded, own = sized.state_dict(), trained.state_dict()
    assert loaded.keys() == own.keys() and all(torch.equal(loaded[name], own[name]) for name in own)


@pytest.mark.parametrize("kwargs", [{"nonsense": 3}, {"channels": 3}])
def test_error_for_unknown_model_kwargs_names_the_model(kwargs: dict[str, Any]) -> None:
    assert refusal(lambda: create_classifier("resnet10t", model_kwargs=kwargs)).startswith(
        "resnet10t does not accept these --model-kwargs: "
    )


@pytest.mark.parametrize("pretrained", [False, True])
def test_error_for_invalid_model_kwargs_does_not_blame_the_network(pretrained: bool) -> None:
    message = refusal(lambda: create_classifier("resnet10t", pretrained=pretrained, model_kwargs={"output_stride": 7}))
    assert "{'output_stride': 7}" in message
    assert "network" not in message


def test_error_for_published_weights_when_offline_points_to_checkpoint() -> None:
    message = refusal(lambda: create_classifier("test_resnet", pretrained=True))
    assert "cannot load the published weights of test_resnet" in message and "--checkpoint" in message


def test_model_without_published_weights_does_not_get_random_ones() -> None:
    assert "No pretrained weights exist for mixer_s32_224" in refusal(
        lambda: create_classifier("mixer_s32_224", pretrained=True, model_kwargs={})
    )


def test_model_without_classes_is_rejected() -> None:
    kwargs = {"depth": 1, "embed_dim": 48, "num_heads": 2}
    message = refusal(lambda: create_classifier("vit_small_patch14_dinov2", model_kwargs=kwargs))
    assert "vit_small_patch14_dinov2 has no classes" in message and "--num-classes" in message


def test_classifier_is_in_eval_mode_and_has_the_requested_classes() -> None:
    classifier = create_classifier("resnet10t", num_classes=11, model_kwargs=THIN)
    assert not classifier.training
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 11)


def test_model_from_a_local_folder_loads_its_weights(tmp_path: Path, randomised: Callable[..., nn.Module]) -> None:
    saved = randomised(timm.create_model("test_resnet", num_classes=3))
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {}})
    )
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(create_classifier(f"local-dir:{tmp_path}", pretrained=True)(image), saved(image))


# --- options ------------------------------------------------------------------------------------------------------------


def test_model_kwargs_are_parsed_as_python_literals_or_else_strings() -> None:
    assert parse_model_kwargs(["a=8", "b=(8,16)", "c=True", "d=avg", "e=x=1", "f="]) == {
        "a": 8,
        "b": (8, 16),
        "c": True,
        "d": "avg",
        "e": "x=1",
        "f": "",
    }


@pytest.mark.parametrize("pair", ["output_stride", "=8", "output stride=8", ""])
def test_model_kwargs_without_key_and_value_are_rejected(pair: str) -> None:
    assert repr(pair) in refusal(lambda: parse_model_kwargs([pair]))


@pytest.mark.parametrize("channels", [1, 4])
def test_model_for_images_other_than_rgb_is_rejected(channels: int) -> None:
    message = refusal(lambda: create_classifier("resnet10t", num_classes=3, model_kwargs={"in_chans": channels}))
    assert message == f"in_chans={channels}: images are decoded as RGB, 3 channels; leave in_chans out"


def test_features_instead_of_classes_are_refused() -> None:
    message = refusal(lambda: create_classifier("resnet10t", num_classes=3, model_kwargs={"features_only": True}))
    assert message == "features_only=True: it builds a model without classes; leave it out"
