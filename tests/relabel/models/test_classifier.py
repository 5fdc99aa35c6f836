"""Any timm classifier with the weights asked for, or a message that says what is wrong with the name or the weights."""

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
from relabel.runtime.machine import choose_device
from tests.conftest import refusal

THIN = {"stem_width": 8, "channels": (8, 8, 8, 16)}


# --- names --------------------------------------------------------------------------------------------------------------


def test_unknown_model_is_named_with_the_nearest_names() -> None:
    message = refusal(lambda: create_classifier("resnet5O"))
    assert "no model named 'resnet5O'; did you mean" in message and "resnet50" in message


def test_unknown_model_like_no_other_is_sent_to_the_list_in_a_sentence() -> None:
    message = refusal(lambda: create_classifier("qqqqqqqq"))
    assert "no model named 'qqqqqqqq'; `timm.list_models()` lists them all" in message


def test_unknown_weights_tag_is_named() -> None:
    assert "Invalid pretrained tag (nope)" in refusal(lambda: create_classifier("resnet50.nope"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ig_resnext101_32x16d", "name resnext101_32x16d.fb_wsl_ig1b_ft_in1k if that is what you want"),
        ("ig_resnext101_32x32d", "name resnext101_32x32d.fb_wsl_ig1b_ft_in1k if that is what you want"),
        ("ig_resnext101_32x48d", "build it as resnext101_32x8d with --model-kwargs base_width=48, and its weights as"),
    ],
)
def test_model_that_timm_silently_replaces_by_a_narrower_one_is_refused_with_both_names(name: str, remedy: str) -> None:
    message = refusal(lambda: create_classifier(name))
    assert f"timm makes resnext101_32x8d.fb_wsl_ig1b_ft_in1k when asked for {name}, which is another; {remedy}" in message


def test_name_that_timm_gave_up_is_answered_with_its_name_today() -> None:
    message = refusal(lambda: create_classifier("tf_efficientnet_b1_ns"))
    assert message.endswith("name tf_efficientnet_b1.ns_jft_in1k if that is what you want")


def test_resnext_that_timm_has_no_entry_for_is_built_by_its_width() -> None:
    message = refusal(lambda: create_classifier("resnext101_32x48d"))
    assert message.endswith(
        "build it as resnext101_32x8d with --model-kwargs base_width=48, and its weights as --checkpoint"
    )
    with torch.device("meta"):
        classifier = create_classifier("resnext101_32x8d", model_kwargs={"base_width": 48})
    assert round(sum(p.numel() for p in classifier.parameters()) / 1e6) == 828  # Mahajan et al. 2018 (arXiv 1805.00932): 829
    assert classifier.layer1[0].conv2.weight.shape == (32 * 48, 48, 3, 3)


def test_model_of_a_fixed_input_size_is_built_for_the_size_asked_for() -> None:
    assert create_classifier("test_vit", input_size=(64, 96))(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)
    own, asked = (create_classifier("test_vit", input_size=size) for size in (None, (160, 160)))
    assert own.pos_embed.shape == asked.pos_embed.shape


def test_size_of_a_model_without_a_fixed_one_changes_nothing_about_it() -> None:
    plain, sized = (create_classifier("test_resnet", input_size=size) for size in (None, (64, 96)))
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in sized.state_dict().items()}


def test_img_size_among_the_model_kwargs_comes_before_the_input_size() -> None:
    classifier = create_classifier("test_vit", input_size=(160, 160), model_kwargs={"img_size": (64, 96)})
    assert classifier.patch_embed.img_size == (64, 96)


def test_own_vision_transformer_trained_at_its_own_size_runs_at_another(
    tmp_path: Path, randomised: Callable[..., nn.Module]
) -> None:
    trained = randomised(timm.create_model("test_vit2", num_classes=3))
    nn.init.normal_(trained.pos_embed)
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    sized = create_classifier("test_vit2", checkpoint=tmp_path / "x.pth", num_classes=3, input_size=(64, 96))
    grid = trained.patch_embed.grid_size
    expected = timm.layers.resample_abs_pos_embed(trained.pos_embed, (4, 6), grid, num_prefix_tokens=1)
    torch.testing.assert_close(sized.pos_embed, expected)
    assert sized(torch.zeros(1, 3, 64, 96)).shape == (1, 3)


def test_own_classifier_that_timm_cannot_resize_is_to_run_at_the_size_of_its_training(tmp_path: Path) -> None:
    torch.save(timm.create_model("convit_tiny", num_classes=3).state_dict(), tmp_path / "x.pth")
    own = {"checkpoint": tmp_path / "x.pth", "num_classes": 3}
    message = refusal(lambda: create_classifier("convit_tiny", **own, input_size=(64, 64)))
    assert "pos_embed is [1, 196, 192]" in message
    assert message.endswith("the model it was trained as; if that was at another size, leave --input-size out")


def test_own_vision_transformer_trained_at_that_size_keeps_its_positions(
    tmp_path: Path, randomised: Callable[..., nn.Module]
) -> None:
    trained = randomised(timm.create_model("test_vit2", num_classes=3, img_size=(64, 96)))
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    sized = create_classifier("test_vit2", checkpoint=tmp_path / "x.pth", num_classes=3, input_size=(64, 96))
    loaded, own = sized.state_dict(), trained.state_dict()
    assert loaded.keys() == own.keys() and all(torch.equal(loaded[name], own[name]) for name in own)


@pytest.mark.parametrize("kwargs", [{"nonsense": 3}, {"channels": 3}])
def test_model_kwargs_that_the_model_does_not_take_are_refused_with_its_name(kwargs: dict[str, Any]) -> None:
    assert refusal(lambda: create_classifier("resnet10t", model_kwargs=kwargs)).startswith(
        "resnet10t does not take these --model-kwargs: "
    )


@pytest.mark.parametrize("pretrained", [False, True])
def test_model_kwargs_of_an_impossible_value_are_not_blamed_on_the_network(pretrained: bool) -> None:
    message = refusal(lambda: create_classifier("resnet10t", pretrained=pretrained, model_kwargs={"output_stride": 7}))
    assert "{'output_stride': 7}" in message
    assert "network" not in message


def test_published_weights_that_cannot_be_had_offline_point_to_checkpoint() -> None:
    message = refusal(lambda: create_classifier("test_resnet", pretrained=True))
    assert "cannot get the published weights of test_resnet" in message and "--checkpoint" in message


def test_model_without_published_weights_is_not_given_random_ones() -> None:
    assert "No pretrained weights exist for mixer_s32_224" in refusal(
        lambda: create_classifier("mixer_s32_224", pretrained=True, model_kwargs={})
    )


def test_model_without_classes_is_refused() -> None:
    kwargs = {"depth": 1, "embed_dim": 48, "num_heads": 2}
    message = refusal(lambda: create_classifier("vit_small_patch14_dinov2", model_kwargs=kwargs))
    assert "vit_small_patch14_dinov2 has no classes" in message and "--num-classes" in message


def test_classifier_comes_in_eval_mode_with_the_classes_asked_for() -> None:
    classifier = create_classifier("resnet10t", num_classes=11, model_kwargs=THIN)
    assert not classifier.training
    assert classifier(torch.zeros(1, 3, 32, 32)).shape == (1, 11)


def test_model_folder_of_ones_own_loads_its_weights(tmp_path: Path, randomised: Callable[..., nn.Module]) -> None:
    saved = randomised(timm.create_model("test_resnet", num_classes=3))
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {}})
    )
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(create_classifier(f"local-dir:{tmp_path}", pretrained=True)(image), saved(image))


# --- options ------------------------------------------------------------------------------------------------------------


def test_model_kwargs_are_python_literals_or_else_strings() -> None:
    assert parse_model_kwargs(["a=8", "b=(8,16)", "c=True", "d=avg", "e=x=1", "f="]) == {
        "a": 8,
        "b": (8, 16),
        "c": True,
        "d": "avg",
        "e": "x=1",
        "f": "",
    }


@pytest.mark.parametrize("pair", ["output_stride", "=8", "output stride=8", ""])
def test_model_kwargs_without_key_and_value_are_refused(pair: str) -> None:
    assert repr(pair) in refusal(lambda: parse_model_kwargs([pair]))


def test_unknown_device_is_refused_by_name() -> None:
    assert "--device abacus" in refusal(lambda: choose_device("abacus"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_absent_cuda_is_refused_and_not_replaced_by_the_cpu() -> None:
    assert "--device cuda is not available" in refusal(lambda: choose_device("cuda"))
    assert choose_device(None) == torch.device("cpu")
