"""Checkpoints that hold what no classifier can use: named with the file, at once, and never evaluated."""

import copy
import io
import json
import os
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from annotate.interchange.published_maps import Place, read_tensor
from relabel.models import weights as weights_files
from relabel.models.card import ModelCard, find_card
from relabel.models.classifier import create_classifier
from relabel.models.preprocessing import Preprocessing
from relabel.models.weights import load_torch_file, read_weights
from tests.conftest import THIN, Relabel, model_options, refusal
from train.run_dir.checkpoint import save_weights

CARD = ModelCard("resnet10t", THIN, ("cat", "dog", "eel"), Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def weights(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(tiny_checkpoint, weights_only=True)
    return loaded


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["fc.weight", "conv1.0.weight", "bn1.running_var"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_not_evaluated(
    tmp_path: Path, weights: dict[str, torch.Tensor], image_folder: Path, relabel_here: Relabel, value: float, name: str,
    suffix: str,
) -> None:  # fmt: skip
    weights[name].view(-1)[1] = value
    path = tmp_path / f"x.{suffix}"
    save_weights(path, weights, CARD)
    refused = relabel_here("eval", image_folder, f"--checkpoint={path}", "--workers=0", "--device=cpu")
    assert refused.returncode == 1 and refused.stdout == ""
    assert f"{path}: {name} has values that are not finite" in refused.stderr


def test_predictions_that_are_not_finite_give_no_figures(
    tmp_path: Path, weights: dict[str, torch.Tensor], image_folder: Path, relabel_here: Relabel
) -> None:
    weights["fc.weight"].fill_(3e38)
    path = tmp_path / "x.pth"
    save_weights(path, weights, CARD)
    output = tmp_path / "eval.json"
    options = [f"--checkpoint={path}", f"--output={output}", "--workers=0", "--device=cpu"]
    refused = relabel_here("eval", image_folder, *options)
    assert refused.returncode == 1 and refused.stdout == "" and not output.exists()
    assert "the model's prediction for cat/cat_0.JPEG is not finite" in refused.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.to_sparse(), "not dense (torch.sparse_coo)"),
        (lambda tensor: tensor.to("meta"), "without values"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: torch.zeros(1).expand(tensor.shape), "an expanded view"),
    ],
    ids=["sparse", "meta", "quantised", "complex", "expanded"],
)
def test_tensor_that_is_no_array_of_numbers_is_named(
    tmp_path: Path, weights: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    torch.save(weights | {"fc.weight": change(weights["fc.weight"])}, tmp_path / "x.pth")
    assert f"{tmp_path / 'x.pth'}: fc.weight is {reason}" in refusal(lambda: read_weights(tmp_path / "x.pth"))


@pytest.mark.slow
def test_pickle_of_millions_of_lists_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = b"\x80\x02" + b"]" * 20_000_000 + b"."
    (tmp_path / "bare.pth").write_bytes(bomb)
    torch.save({"a": torch.zeros(1)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "zip.pth", "w") as changed:
        for record in whole.namelist():
            changed.writestr(record, bomb if record.endswith("data.pkl") else whole.read(record))
    assert "bare.pth" in (said := refusal(lambda: load_torch_file(tmp_path / "bare.pth")))
    assert "it makes more than 5000000 objects" in said
    monkeypatch.setattr(weights_files, "MAX_INSTRUCTIONS", 50_000)  # which are counted a hundred times faster
    for name in ("bare.pth", "zip.pth"):
        for read in (read_weights, load_torch_file, find_card):
            message = refusal(lambda read=read, name=name: read(tmp_path / name))  # type: ignore[misc]
            assert str(tmp_path / name) in message and "it makes more than 50000 objects" in message


def deflated_zeros(path: Path) -> None:
    """A record of a GB of zeros in 4 MB."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("x/data/9", "w") as record:
        for _ in range(1000):
            record.write(bytes(10**6))


def one_record_a_thousand_times(path: Path) -> None:
    """3 GB of uncompressed records, which are all the same 3 MB of the file."""
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data/9", bytes(3 * 10**6))
        for number in range(10, 1000):
            again = copy.copy(file.getinfo("x/data/9"))
            again.filename = f"x/data/{number}"
            file.filelist.append(again)


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [deflated_zeros, one_record_a_thousand_times])
def test_file_of_megabytes_that_unpacks_to_gigabytes_is_refused_without_unpacking(
    tmp_path: Path, hostile: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1)}, path)
    hostile(path)
    assert path.stat().st_size < 20e6
    tracemalloc.start()
    started = time.monotonic()
    messages = [refusal(lambda read=read: read(path)) for read in (read_weights, load_torch_file, find_card)]  # type: ignore[misc]
    messages.append(refusal(lambda: read_tensor(Place(tmp_path, path.name))))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert time.monotonic() - started < 2, "unpacking takes longer"
    for message in messages:
        assert str(path) in message and f"bytes and the file has {path.stat().st_size}; torch.save compresses" in message


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_folder_and_named_pipe_are_not_said_to_be_missing(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder.{suffix}").mkdir()
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    for name, reason in (("folder", "is a folder"), ("pipe", "is not a regular file"), ("none", "does not exist")):
        path = tmp_path / f"{name}.{suffix}"
        for read in (read_weights, find_card):
            assert refusal(lambda read=read, path=path: read(path)).startswith(f"checkpoint {path} {reason}")  # type: ignore[misc]


def test_refusal_of_a_pickle_quotes_no_colours_and_no_advice_to_load_it_unsafely(tmp_path: Path) -> None:
    contents: list[Any] = [
        {"a": io.BytesIO},
        [print],
        {"model": timm.data.IterableImageDataset},
        {"when": zipfile.ZipInfo()},
    ]
    for number, content in enumerate(contents):
        for protocol, old in ((2, False), (2, True)):
            path = tmp_path / f"{number}-{old}.pth"
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
            for read in (read_weights, load_torch_file):
                message = refusal(lambda read=read, path=path: read(path))  # type: ignore[misc]
                assert str(path) in message and "\x1b" not in message, message
                assert "weights_only" not in message and "arbitrary code" not in message, message
    for bare in (b"\x80\x02cos\nsystem\n.", b"\x80\x05K\x01.", pickle.dumps({"a": 1}), b"", b"abc", b"\x80"):
        (tmp_path / "bare.pth").write_bytes(bare)
        message = refusal(lambda: read_weights(tmp_path / "bare.pth"))
        assert "\x1b" not in message and "weights_only" not in message


@pytest.mark.parametrize(
    "change",
    [
        {"arch": 5},
        {"classes": "abc"},
        {"classes": [1, 2]},
        {"classes": []},
        {"model_kwargs": []},
        {"loss": "mse"},
        {"view": None},
        {"view": {"size": "32"}},
        {"view": {"size": 0, "crop": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}},
        {"view": {"size": 32, "crop": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.0] * 3}},
        {"more": 1},
    ],
)
def test_model_card_with_wrong_types_is_no_model_card(
    tmp_path: Path, weights: dict[str, torch.Tensor], change: dict[str, Any], image_folder: Path, relabel_here: Relabel
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(weights, path, {"card": json.dumps(json.loads(CARD.to_json()) | change)})
    refused = relabel_here("eval", image_folder, f"--checkpoint={path}", "--workers=0", "--device=cpu")
    assert refused.returncode == 1
    assert f"{path} does not record which model it is; name the model with --arch" in refused.stderr
    named = relabel_here(
        "eval", image_folder, f"--checkpoint={path}", "--arch=resnet10t", *model_options(THIN), "--workers=0"
    )
    assert named.returncode == 0, named.stderr


@pytest.mark.parametrize("card", ["", "[" * 100_000, "null", "[1]", '{"view": [], "arch": 1}', "\x00"])
def test_model_card_that_is_no_object_is_no_model_card(tmp_path: Path, card: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"card": card})
    assert find_card(tmp_path / "x.safetensors") is None


def test_safetensors_of_the_same_weights_have_the_same_bytes(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    contents = set()
    for _ in range(20):  # the library orders the metadata at random: the odds of the same order 20 times are 1 in 500,000
        save_weights(path, weights, CARD)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert find_card(path) == CARD and path.read_bytes()[0] % 8 == 0  # the header's length
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(path).items())
    model = timm.create_model("resnet10t", num_classes=3, checkpoint_path=str(path), **THIN)
    assert torch.equal(model.state_dict()["fc.weight"], weights["fc.weight"])
    created = create_classifier("resnet10t", num_classes=3, checkpoint=path, model_kwargs=THIN)
    assert torch.equal(created.state_dict()["fc.weight"], weights["fc.weight"])
