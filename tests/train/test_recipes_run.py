"""Every recipe runs, resumes exactly and sees the same images in one process as in two."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from relabel.models.weights import load_torch_file, read_weights
from relabel.runtime.errors import InputError
from tests.conftest import REPOSITORY, THIN, Relabel, model_options, write_images
from tests.train.runs import stop_in
from train.evaluation.run import EvalOptions, evaluate_checkpoint
from train.loop import train
from train.options import TrainOptions
from train.recipe import load_recipe, recipe_names
from train.run_dir.metrics import read_metrics
from train.stop_signals import Interrupted

SIZES = ["image_size=16", "eval_size=16", "batch_size=4", "warmup_epochs=0"]
STUDENT = {"stem_width": 8, "channels": (8, 8, 8, 16), "zero_init_last": False}
THIN_OPTIONS = [f"{name}={value}".replace(" ", "") for name, value in THIN.items()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine images that the label set `undisturbed` was made from. Only to be read."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def other_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a student of seven classes."""
    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.manual_seed(3)
    torch.save(timm.create_model("resnet10t", num_classes=7, **STUDENT).state_dict(), path)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_with_nothing_but_sizes_overridden(
    name: str,
    images: Path,
    undisturbed: Path,
    tiny_checkpoint: Path,
    other_head: Path,
    tmp_path: Path,
    relabel_here: Relabel,
) -> None:
    recipe = load_recipe(name)
    options = ["--labels", undisturbed] if recipe.needs_labels else []
    if recipe.target == "teacher":
        options += ["--teacher=resnet10t", f"--teacher-checkpoint={tiny_checkpoint}", "--teacher-input-size=32x56"]
        options += [f"--teacher-kwargs={pair}" for pair in THIN_OPTIONS]
    if recipe.start == "pretrained":
        options += ["--initial-weights", other_head]
    student = model_options(STUDENT)
    done = relabel_here(
        *("train", images, "--run-dir", tmp_path / "run", "--arch=resnet10t", "--recipe", name, *student, *options),
        *(f"--set={setting}" for setting in [*SIZES, "batch_size=3", "epochs=2"]),
        *(["--set=cutmix_off_epochs=1"] if recipe.cutmix else []),
        *("--workers=0", "--device=cpu", "--val", images),
    )
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(tmp_path / "run")
    assert [m["epoch"] for m in metrics] == [1, 2] and all(math.isfinite(m["loss"]) for m in metrics)
    assert ("images are left out: " in done.stdout) == recipe.confirmed_only


def run_training(images: Path, run: Path, recipe: str, settings: list[str], **options: Any) -> None:
    defaults: dict[str, Any] = {"model_kwargs": STUDENT, "workers": 0, "device": "cpu"}
    train(images, run, "resnet10t", load_recipe(recipe, [*SIZES, *settings]), TrainOptions(**(defaults | options)))


def state_of(path: Path, entry: str = "state_dict") -> dict[str, torch.Tensor]:
    """A result's bare tensors, or an entry of last.pt."""
    content = load_torch_file(path)
    return content if path.name == "weights.pth" else content[entry]


def test_recipe_that_starts_from_pretrained_weights_refuses_random_ones(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"give --pretrained with an --arch .*resnetv2_50x1_bit\.goog_in21k, or --initial"):
        run_training(images, tmp_path / "run", "relabel-cutmix-in21k", ["epochs=7"], labels=undisturbed)


def test_average_of_the_weights_is_what_is_evaluated_and_kept(images: Path, tmp_path: Path) -> None:
    plain = ["schedule=constant", "batch_size=9"]  # one step an epoch
    run_training(images, tmp_path / "first", "single", [*plain, "epochs=1"])
    run_training(images, tmp_path / "both", "single", [*plain, "epochs=2", "ema=0.9"], val=images)
    first, second = state_of(tmp_path / "first" / "weights.pth"), state_of(tmp_path / "both" / "last.pt")
    kept = state_of(tmp_path / "both" / "weights.pth")
    decay = 1 - 2 ** (-2 / 3)  # timm's warm-up of the decay, in its second step
    for name, average in kept.items():
        if average.is_floating_point():
            torch.testing.assert_close(average, decay * first[name] + (1 - decay) * second[name])
    assert not torch.equal(kept["conv1.0.weight"], second["conv1.0.weight"])
    for file in ("weights.pth", "last.pt"):
        result = evaluate_checkpoint(images, EvalOptions(checkpoint=tmp_path / "both" / file, workers=0, device="cpu"))
        assert result is not None and result["top1"] == read_metrics(tmp_path / "both")[-1]["val"]["top1"]
    found = read_weights(tmp_path / "both" / "last.pt")
    assert all(torch.equal(found[name], average) for name, average in kept.items())


EVERYTHING = ["epochs=25", "cutmix=0.7", "cutmix_target=regions", "ema=0.9", "label_smoothing=0.1", "folder_share=0.2"]


def test_resumed_run_with_cutmix_jitter_and_average_is_the_uninterrupted_one(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_training(images, tmp_path / "whole", "relabel-cutmix", EVERYTHING, labels=undisturbed)
    watcher = stop_in(tmp_path / "parts", 3, 0.0)
    with pytest.raises(Interrupted):
        run_training(images, tmp_path / "parts", "relabel-cutmix", EVERYTHING, labels=undisturbed)
    watcher.join()
    run_training(images, tmp_path / "parts", "relabel-cutmix", EVERYTHING, labels=undisturbed, resume=True)
    for name, entry in (("last.pt", "state_dict"), ("last.pt", "state_dict_ema"), ("weights.pth", "")):
        whole, parts = (state_of(tmp_path / run / name, entry) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


VIT: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}  # no batch norm


def test_two_processes_train_a_vit_on_tokens_as_one_does(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    # sums over the batch are in another order, so the last bits differ; crops, colours, rectangles and pairs must not
    settings = [*SIZES, "epochs=9", "batch_size=8", "optimizer=sgd", "lr=0.1", "token_weight=0.5", "ema=0.5"]
    settings.append("cutmix_target=regions")
    train(
        *(images, tmp_path / "one", "vit_tiny_patch16_224", load_recipe("relabel-cutmix", settings)),
        TrainOptions(labels=undisturbed, model_kwargs=VIT, workers=0, device="cpu"),
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "pipeline",
        "train",
    ]
    command += [str(images), "--run-dir", str(tmp_path / "two"), "--arch=vit_tiny_patch16_224", "--recipe=relabel-cutmix"]
    command += [f"--model-kwargs={key}={value}" for key, value in VIT.items()] + [f"--set={s}" for s in settings]
    command += ["--labels", str(undisturbed), "--workers=0", "--device=cpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = state_of(tmp_path / "one" / "weights.pth"), state_of(tmp_path / "two" / "weights.pth")
    assert one.keys() == two.keys() == timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT).state_dict().keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
    assert [m["top1"] for m in read_metrics(tmp_path / "one")] == [m["top1"] for m in read_metrics(tmp_path / "two")]
