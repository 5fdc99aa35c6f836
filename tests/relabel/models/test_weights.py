"""Weights in every form in which people save them load without running code; other files are rejected with the reason."""

import argparse
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from relabel.models.classifier import create_classifier
from tests.conftest import refusal

THIN = {"stem_width": 8, "channels": (8, 8, 8, 16)}


def thin(checkpoint: Path, num_classes: int | None = 3) -> nn.Module:
    kwargs = {**THIN, "output_stride": 8}
    return create_classifier("resnet10t", checkpoint=checkpoint, num_classes=num_classes, model_kwargs=kwargs)


@pytest.fixture
def weights(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(tiny_checkpoint, weights_only=True)
    return loaded


def assert_loaded(classifier: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    loaded = classifier.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_state_dict_loads(tiny_checkpoint: Path, weights: dict[str, torch.Tensor]) -> None:
    assert_loaded(thin(tiny_checkpoint), weights)


def test_safetensors_load(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    assert_loaded(thin(tmp_path / "x.safetensors"), weights)


def test_weights_of_a_data_parallel_run_load_without_their_prefix(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)


def test_averaged_weights_are_preferred_to_raw_ones(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    raw = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"state_dict": raw, "state_dict_ema": weights}, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        ("model_state_dict", ()),
        ("net", ()),
        ("ema", ("model",)),
        ("ema_state_dict", ("model_state_dict",)),
        ("model", ("semantic",)),
    ],
)
def test_weights_are_found_under_whatever_name_they_were_saved(
    tmp_path: Path, tiny_checkpoint: Path, weights: dict[str, torch.Tensor], chosen: str, others: tuple[str, ...]
) -> None:
    optimizer = torch.optim.Adam(thin(tiny_checkpoint).parameters())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    saved = {"epoch": 3, "optimizer": optimizer.state_dict(), **dict.fromkeys(others, zeros), chosen: weights}
    torch.save(saved, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)


@pytest.mark.parametrize(
    "path",
    [
        "ema.module",
        "model_ema.state_dict",
        "ema.state_dict_ema",
        "modelEMA",
        "emaModel",
        "netEma.module",
        "model.ema",
        "SWA",
    ],
)
def test_average_is_found_within_another_dict_and_in_camel_case(
    tmp_path: Path, weights: dict[str, torch.Tensor], path: str
) -> None:
    raw = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    outer, _, inner = path.partition(".")
    average: Any = {inner: weights, "updates": 7} if inner else weights
    if outer == "model":
        average["state_dict"] = raw
    torch.save({"model": raw, outer: average, "epoch": 3}, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)


@pytest.mark.parametrize("form", ["list", "deep", "bare names"])
def test_average_that_cannot_be_read_is_an_error_instead_of_the_raw_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], form: str
) -> None:
    saved: dict[str, Any] = {"state_dict": weights}
    if form == "list":  # as torch_ema saves it
        saved["ema"] = {"decay": 0.99, "shadow_params": list(weights.values())}
    elif form == "deep":
        saved["callbacks"] = {"EMA": {"weights": {"inner": weights}}}
    else:  # as LitEma saves it, without the dots
        averaged = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in weights.items()}
        saved["state_dict"] = {f"model.{name}": tensor for name, tensor in weights.items()} | averaged
    torch.save(saved, tmp_path / "x.pth")
    message = refusal(lambda: thin(tmp_path / "x.pth"))
    assert "has averaged weights" in message and "save the set that you want as a state_dict of its own" in message


@pytest.mark.parametrize(
    "beside",
    [{"ema_decay": 0.99}, {"ema_decay": torch.tensor(0.99)}, {"ema": None}, {"schema": {"a": torch.ones(2)}}, {"ema": {}}],
)
def test_words_about_an_average_without_one_do_not_matter(
    tmp_path: Path, weights: dict[str, torch.Tensor], beside: dict[str, Any]
) -> None:
    torch.save({"state_dict": weights, **beside}, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)


@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_batch_norms_number_of_batches_may_be_absent(tmp_path: Path, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """As in checkpoints of old torch."""
    old = {f"{prefix}{name}": tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(weights)
    torch.save({"state_dict": old}, tmp_path / "x.pth")
    loaded = thin(tmp_path / "x.pth").state_dict()
    assert all(torch.equal(loaded[name.removeprefix(prefix)], tensor) for name, tensor in old.items())


def test_only_what_is_refused_is_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    harmless = {"args": argparse.Namespace(lr=np.float64(0.1)), "best": np.float32(1), "dtype": np.dtype("int64")}
    torch.save({"state_dict": weights, **harmless}, tmp_path / "x.pth")
    assert_loaded(thin(tmp_path / "x.pth"), weights)
    torch.save({"state_dict": weights, **harmless, "output": tmp_path}, tmp_path / "x.pth")
    assert re.search(r"\(it contains pathlib[.\w]*\.PosixPath\);", refusal(lambda: thin(tmp_path / "x.pth")))


def test_several_sets_of_weights_without_a_telling_name_are_an_error(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    torch.save({"student": weights, "teacher": weights}, tmp_path / "x.pth")
    message = refusal(lambda: thin(tmp_path / "x.pth"))
    assert f"{tmp_path / 'x.pth'} contains several sets of weights (student, teacher); save only the classifier's" in message


class Training(nn.Module):
    """Like a LightningModule, with a classifier, its average, and a loss that has a tensor of its own."""

    def __init__(self, classifier: nn.Module, average: nn.Module | None = None) -> None:
        super().__init__()
        self.net = classifier
        self.net_ema = average
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))


def test_classifier_in_the_module_that_trained_it_loads(
    tmp_path: Path, tiny_checkpoint: Path, weights: dict[str, torch.Tensor]
) -> None:
    trained = Training(thin(tiny_checkpoint))
    torch.save({"epoch": 3, "state_dict": trained.state_dict(), "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    assert_loaded(thin(tmp_path / "last.ckpt"), weights)
    created = create_classifier(
        "resnet10t",
        num_classes=5,
        checkpoint=tmp_path / "last.ckpt",
        model_kwargs={**THIN, "output_stride": 8},
        new_head=True,
    )
    assert torch.equal(created.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    assert created.state_dict()["fc.weight"].shape == (5, 16)


def test_average_beside_the_classifier_is_preferred(
    tmp_path: Path, tiny_checkpoint: Path, weights: dict[str, torch.Tensor]
) -> None:
    raw = thin(tiny_checkpoint)
    for parameter in raw.parameters():
        nn.init.zeros_(parameter)
    torch.save({"state_dict": Training(raw, thin(tiny_checkpoint)).state_dict()}, tmp_path / "last.ckpt")
    assert_loaded(thin(tmp_path / "last.ckpt"), weights)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_prefixes_of_torch_compile_and_data_parallel_are_both_removed(
    tmp_path: Path, weights: dict[str, torch.Tensor], suffix: str
) -> None:
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}
    path = tmp_path / f"x.{suffix}"
    save_file(wrapped, path) if suffix == "safetensors" else torch.save(wrapped, path)
    assert_loaded(thin(path), weights)


def test_average_of_torchs_averaged_model_loads(tmp_path: Path, tiny_checkpoint: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(thin(tiny_checkpoint))
    with torch.no_grad():
        averaged.module.get_parameter("fc.bias").add_(1)
    raw = {name: torch.zeros_like(tensor) for name, tensor in averaged.module.state_dict().items()}
    torch.save(
        {"model": raw, "model_ema": averaged.state_dict()}, tmp_path / "x.pth"
    )  # as torchvision's reference scripts do
    assert_loaded(thin(tmp_path / "x.pth"), averaged.module.state_dict())


def test_checkpoint_of_timms_train_script_loads_its_average(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = thin(tiny_checkpoint)
    average = timm.utils.ModelEmaV3(model)
    with torch.no_grad():
        model.get_parameter("fc.bias").add_(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = timm.utils.CheckpointSaver(
        model,
        optimizer,
        args=argparse.Namespace(model="resnet10t"),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=0, metric=1.0)
    assert_loaded(thin(tmp_path / "model_best.pth.tar"), average.module.state_dict())


def test_missing_checkpoint_is_named_in_the_error(tmp_path: Path) -> None:
    assert refusal(lambda: thin(tmp_path / "x.pth")) == f"checkpoint {tmp_path}/x.pth does not exist"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_checkpoint_is_named_in_the_error(
    tmp_path: Path, weights: dict[str, torch.Tensor], suffix: str, share: float
) -> None:
    path = tmp_path / f"x.{suffix}"
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert f"{path} is truncated, not a weights file" in refusal(lambda: thin(path))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_text_file_is_not_a_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text("<html>404 not found</html>")
    assert f"{path} is truncated, not a weights file" in refusal(lambda: thin(path))


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), None, {"epoch": 3}, {"state_dict": [1]}, {1: torch.zeros(1)}, {1: {"a": torch.zeros(1)}}],
    ids=["list", "tensor", "none", "no tensors", "state_dict of no tensors", "numbers for names", "and a state_dict"],
)
def test_checkpoint_without_a_state_dict_is_named_in_the_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in refusal(lambda: thin(tmp_path / "x.pth"))


class Intruder:
    """Unpickling this creates a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("container", ["zip", "old", "bare"])
@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
def test_checkpoint_with_code_is_rejected_and_the_code_does_not_run(
    tmp_path: Path, weights: dict[str, torch.Tensor], container: str, suffix: str
) -> None:
    path, trace = tmp_path / f"x.{suffix}", tmp_path / "code_ran"
    content = {"state_dict": weights, "card": Intruder(trace)}
    if container == "bare":
        path.write_bytes(pickle.dumps({"card": Intruder(trace)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    try:
        message = refusal(lambda: thin(path))
    finally:
        assert not trace.exists()
    assert f"{path} is truncated, not a weights file, or contains more than weights" in message
    whole = io.BytesIO(path.read_bytes())
    pickle.load(whole) if container == "bare" else torch.load(whole, weights_only=False)
    assert trace.exists(), "otherwise this test could not fail"


def test_pickled_model_is_rejected_and_its_class_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.save(thin(tiny_checkpoint), tmp_path / "x.pth")
    message = refusal(lambda: thin(tmp_path / "x.pth"))
    assert "contains more than weights (it contains timm." in message
    assert message.endswith("expected .safetensors, or a .pth saved from a state_dict")


def test_error_for_another_architecture_gives_examples_of_tensors(tiny_checkpoint: Path) -> None:
    message = refusal(lambda: create_classifier("test_resnet", num_classes=3, checkpoint=tiny_checkpoint))
    assert (
        f"{tiny_checkpoint} is not a checkpoint of test_resnet: 12 of 92 tensors missing, 6 unknown (such as layer"
        in message
    )


def test_error_for_another_width_names_both_shapes(tiny_checkpoint: Path) -> None:
    kwargs = {**THIN, "channels": (8, 8, 8, 24), "output_stride": 8}
    message = refusal(lambda: create_classifier("resnet10t", num_classes=3, checkpoint=tiny_checkpoint, model_kwargs=kwargs))
    assert "layer4.0.conv1.weight is [16, 8, 3, 3], resnet10t with 3 classes needs [24, 8, 3, 3]" in message
    assert "pass the model it was trained as" in message


@pytest.mark.parametrize("num_classes", [5, None])
def test_error_for_another_class_count_says_which_to_pass(tiny_checkpoint: Path, num_classes: int | None) -> None:
    message = refusal(lambda: thin(tiny_checkpoint, num_classes))
    assert f"with {num_classes or 1000} classes needs [{num_classes or 1000}, 16]" in message
    assert "pass --num-classes 3" in message


@pytest.mark.parametrize("headless", [False, True])
def test_new_head_is_reinitialised_and_all_other_weights_are_loaded(
    tiny_checkpoint: Path, tmp_path: Path, headless: bool
) -> None:
    weights = torch.load(tiny_checkpoint, weights_only=True)
    if headless:
        torch.save({k: v for k, v in weights.items() if not k.startswith("fc.")}, tmp_path / "features.pth")
        tiny_checkpoint = tmp_path / "features.pth"
    kwargs = {**THIN, "output_stride": 8}
    created = create_classifier("resnet10t", num_classes=5, checkpoint=tiny_checkpoint, model_kwargs=kwargs, new_head=True)
    for name, tensor in created.state_dict().items():
        assert tensor.shape == (5, 16) if name == "fc.weight" else name == "fc.bias" or torch.equal(tensor, weights[name])


def test_new_head_of_a_model_with_two_heads_replaces_both(tmp_path: Path) -> None:
    weights = timm.create_model("volo_d1_224", num_classes=3).state_dict()
    torch.save(weights, tmp_path / "volo.pth")
    created = create_classifier("volo_d1_224", num_classes=5, checkpoint=tmp_path / "volo.pth", new_head=True).state_dict()
    new = {name for name, tensor in created.items() if tensor.shape != weights[name].shape}
    assert new == {"head.weight", "head.bias", "aux_head.weight", "aux_head.bias"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in created.items() if name not in new)


def test_with_new_head_a_head_that_fits_is_loaded_and_a_body_that_does_not_is_an_error(tiny_checkpoint: Path) -> None:
    kwargs = {**THIN, "output_stride": 8}
    created = create_classifier("resnet10t", num_classes=3, checkpoint=tiny_checkpoint, model_kwargs=kwargs, new_head=True)
    assert torch.equal(created.state_dict()["fc.weight"], torch.load(tiny_checkpoint, weights_only=True)["fc.weight"])
    wider = {**kwargs, "channels": (8, 8, 8, 24)}
    message = refusal(
        lambda: create_classifier("resnet10t", num_classes=5, checkpoint=tiny_checkpoint, model_kwargs=wider, new_head=True)
    )
    assert "layer4.0.conv1.weight is [16, 8, 3, 3]" in message
