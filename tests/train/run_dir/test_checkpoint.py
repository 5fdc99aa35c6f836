"""Checkpoints: complete or absent, without code in them, and loaded by timm and torchvision as they are."""

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from relabel.models.card import ModelCard, find_card
from relabel.models.preprocessing import Preprocessing
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from train.export import RESNETS
from train.run_dir import checkpoint

CARD = ModelCard(
    "resnet10t",
    {"stem_width": 8, "channels": (8, 8, 8, 16)},
    ("a", "b"),
    Preprocessing(16, 1.0, "bilinear", (0.5,) * 3, (0.2,) * 3),
)


KINDS = ("weights.safetensors", "weights.pth")


@pytest.mark.parametrize("name", KINDS)
def test_card_is_read_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    checkpoint.save_weights(tmp_path / name, {"weight": torch.zeros(2)}, CARD)
    assert find_card(tmp_path / name) == CARD
    checkpoint.save_weights(tmp_path / name, {"weight": torch.zeros(2)})
    assert find_card(tmp_path / name) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_timm_loads_saved_weights_as_they_are(tmp_path: Path, name: str) -> None:
    model = timm.create_model(CARD.arch, num_classes=2, **CARD.model_kwargs).to(memory_format=torch.channels_last)
    checkpoint.save_weights(tmp_path / name, model.state_dict(), CARD)
    loaded = timm.create_model(CARD.arch, num_classes=2, checkpoint_path=str(tmp_path / name), **CARD.model_kwargs)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))


@pytest.mark.slow
def test_torchvision_loads_saved_weights_as_they_are_and_gives_the_same_logits(tmp_path: Path) -> None:
    model = timm.create_model("resnet50", num_classes=7, zero_init_last=False).to(memory_format=torch.channels_last).eval()
    for name in KINDS:
        checkpoint.save_weights(tmp_path / name, model.state_dict(), CARD)
    images = torch.rand(1, 3, 64, 64)
    for state in (load_file(tmp_path / KINDS[0]), torch.load(tmp_path / KINDS[1], weights_only=True)):
        theirs = torchvision.models.resnet50(num_classes=7).eval()
        theirs.load_state_dict(state)
        torch.testing.assert_close(theirs(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_names_and_shapes_agree_with_torchvision_for_each_of_its_resnets() -> None:
    assert len(RESNETS) == 10
    for arch in RESNETS:
        with torch.device("meta"):
            ours, theirs = timm.create_model(arch), torchvision.models.get_model(arch, weights=None)
        shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (ours, theirs)]
        assert shapes[0] == shapes[1], arch


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    tied = torch.rand(3)
    for name in KINDS:
        checkpoint.save_weights(tmp_path / name, {"a": tied, "b": tied})
    assert torch.equal(load_file(tmp_path / KINDS[0])["b"], tied)


def test_full_disk_leaves_only_the_last_good_checkpoint(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(path, {"step": 7})
    with (
        file_size_limit(100_000),
        pytest.raises(InputError, match=r"cannot save a checkpoint.* holds the previous one"),
    ):
        checkpoint.save_checkpoint(path, {"state_dict": {"weight": torch.zeros(100_000)}})
    assert load_torch_file(path) == {"step": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_checkpoint_with_code_is_rejected_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Malice(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Malice(tmp_path / "ran")))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(InputError, match=f"{name} is damaged, or contains more than weights"):
            load_torch_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt does not exist"):
        load_torch_file(tmp_path / "none.pt")
    checkpoint.save_checkpoint(tmp_path / "cut.pt", {"state_dict": {"weight": torch.zeros(1000)}})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.pt is damaged"):
        load_torch_file(tmp_path / "cut.pt")
    with pytest.raises(InputError, match=r"none\.safetensors does not exist"):
        find_card(tmp_path / "none.safetensors")
    checkpoint.save_weights(tmp_path / "cut.safetensors", {"weight": torch.zeros(1000)}, CARD)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.safetensors is truncated"):
        find_card(tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"list\.pt contains a list"):
        load_torch_file(tmp_path / "list.pt")
