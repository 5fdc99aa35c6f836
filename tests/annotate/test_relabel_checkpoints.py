"""A relabel checkpoint annotates as the model that it records, with its classes; what contradicts it is rejected."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from annotate.convert import fully_convolutional
from annotate.squash import Squash
from relabel.images.decoding import read_rgb
from relabel.labels.manifest import Manifest
from relabel.labels.store import LabelStore
from relabel.models.card import ModelCard
from relabel.models.preprocessing import Preprocessing
from tests.conftest import THIN, Randomised, Relabel
from train.run_dir.checkpoint import save_weights

OPTIONS = ["--topk=3", "--workers=0", "--device=cpu"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
KEY = "eel/eel_1.JPEG"


@pytest.fixture
def network(randomised: Randomised) -> nn.Module:
    torch.manual_seed(0)
    return randomised(timm.create_model("resnet10t", num_classes=3, **THIN), size=(32, 32))


def save_run(path: Path, network: nn.Module, classes: tuple[str, ...], kwargs: dict[str, Any] = THIN) -> Path:
    card = ModelCard("resnet10t", kwargs, classes, Preprocessing(32, 1.0, "bilinear", MEAN, STD))
    save_weights(path, network.state_dict(), card)
    return path


@pytest.fixture
def run(network: nn.Module, tmp_path: Path) -> Path:
    return save_run(tmp_path / "weights.safetensors", network, ("cat", "dog", "eel"))


def first_map(labels: Path) -> torch.Tensor:
    store = LabelStore.open(labels)
    dense: torch.Tensor = store.gather(store.rows([KEY])).dense(3)
    return dense


def test_model_arguments_size_and_normalisation_come_from_the_checkpoint(
    relabel_here: Relabel, image_folder: Path, run: Path, network: Any, tmp_path: Path
) -> None:
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", f"--checkpoint={run}", *OPTIONS)
    assert finished.returncode == 0, finished.stderr
    manifest = Manifest.load(tmp_path / "labels")
    assert (manifest.model, manifest.num_classes, manifest.classes) == ("resnet10t", 3, ("cat", "dog", "eel"))
    assert (manifest.input_size, manifest.mean, manifest.std, manifest.outputs) == ((32, 32), MEAN, STD, None)
    squash = Squash((32, 32), MEAN, STD, Squash.of_model(network).interpolation)
    with torch.inference_mode():
        pixels = squash.normalise(squash(read_rgb(image_folder / KEY))[None])
        expected = fully_convolutional(network, (32, 32))(pixels)
    torch.testing.assert_close(first_map(tmp_path / "labels"), expected, atol=5e-3, rtol=5e-3)
    checked = [
        "verify",
        tmp_path / "labels",
        "--images",
        image_folder,
        "--min-agreement=0",
        "--spot-check=3",
        "--device=cpu",
    ]
    assert relabel_here(*checked, f"--checkpoint={run}").returncode == 0


def test_named_model_may_have_another_tag_and_given_arguments_count(
    relabel_here: Relabel, image_folder: Path, network: nn.Module, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "weights.pth", network, ("cat", "dog", "eel"), {**THIN, "drop_rate": 0.2})
    options = ["--model=resnet10t.c3_in1k", "--model-kwargs=drop_rate=0.1", "--input-size=64", f"--checkpoint={run}"]
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *options, *OPTIONS)
    assert finished.returncode == 0, finished.stderr
    assert "--model-kwargs drop_rate=0.1" in finished.stdout and "was trained with 0.2" in finished.stdout
    manifest = Manifest.load(tmp_path / "labels")
    assert (manifest.model, manifest.input_size, manifest.grid) == ("resnet10t.c3_in1k", (64, 64), (8, 8))
    assert manifest.model_kwargs["drop_rate"] == 0.1 and manifest.model_kwargs["stem_width"] == THIN["stem_width"]


def test_classes_in_another_order_are_found_by_name(
    relabel_here: Relabel, image_folder: Path, run: Path, network: Any, tmp_path: Path
) -> None:
    shuffled = save_run(tmp_path / "shuffled.pth", network, ("eel", "dog", "cat"))
    for name, checkpoint in (("labels", run), ("shuffled", shuffled)):
        finished = relabel_here(
            "annotate", image_folder, "--labels", tmp_path / name, f"--checkpoint={checkpoint}", *OPTIONS
        )
        assert finished.returncode == 0, finished.stderr
    assert Manifest.load(tmp_path / "shuffled").outputs == (2, 1, 0)
    assert torch.equal(first_map(tmp_path / "shuffled"), first_map(tmp_path / "labels").flip(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model=resnet18"], "--model resnet18: .*weights.safetensors records that it is a checkpoint of resnet10t"),
        (["--num-classes=4"], "--num-classes 4: .*weights.safetensors records 3 classes; leave --num-classes out"),
        (["--classes=NAMES"], "--classes .*names.txt: .*weights.safetensors records other classes or another order"),
        (["--classes=nowhere.txt"], "--classes nowhere.txt: .*No such file"),
    ],
)
def test_option_that_contradicts_the_checkpoint_is_rejected(
    relabel_here: Relabel, image_folder: Path, run: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "names.txt").write_text("dog\ncat\neel\n")
    given = [option.replace("NAMES", str(tmp_path / "names.txt")) for option in options]
    failed = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", f"--checkpoint={run}", *given, *OPTIONS)
    assert failed.returncode == 1 and re.search(message, failed.stderr), failed.stderr
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("extra", [False, True])
def test_images_of_other_classes_are_rejected(
    relabel_here: Relabel, image_folder: Path, run: Path, tmp_path: Path, extra: bool
) -> None:
    (image_folder / "cat").rename(image_folder / "cow")
    if extra:
        (image_folder / "cat").mkdir()
    failed = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", f"--checkpoint={run}", *OPTIONS)
    assert failed.returncode == 1 and "cow" in failed.stderr and str(run) in failed.stderr
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("names", [("class1", "class2", "class10"), ("Zebra", "ant", "bee")])
def test_order_that_nothing_proves_is_warned_of(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    for old, new in zip(("cat", "dog", "eel"), names, strict=True):
        (image_folder / old).rename(image_folder / new)
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert finished.returncode == 0, finished.stderr
    assert "does not record its classes" in finished.stdout and "with --classes FILE" in finished.stdout
    (tmp_path / "names.txt").write_text("\n".join(sorted(names)))
    named = [*tiny_options, f"--classes={tmp_path / 'names.txt'}"]
    finished = relabel_here("annotate", image_folder, "--labels", tmp_path / "named", *named)
    assert finished.returncode == 0 and "does not record" not in finished.stdout
