"""run.json records what determines the weights, and only that has to stay the same for a resume."""

import dataclasses
import hashlib
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL
import pytest
import timm
import torch
import torchvision

from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import append_shard_line, read_shard_lines, write_shard_lines
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from tests.conftest import REPOSITORY, THIN, Relabel, model_options
from tests.label_sets import write_label_set
from tests.train.runs import train_images
from train.recipe import load_recipe
from train.run_dir.provenance import git_state, label_set_digest
from train.teacher import TeacherChoice

pytestmark = pytest.mark.slow

SETTINGS = ["image_size=16", "eval_size=16", "batch_size=8", "warmup_epochs=0", "epochs=2"]


@pytest.fixture
def label_set(image_folder: Path, tmp_path: Path) -> Path:
    folder = find_images(image_folder)
    classes = torch.from_numpy(folder.targets).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    maps = LabelMaps(torch.full(classes.shape, 4.0), classes, torch.zeros(len(folder), 2, 3))
    write_label_set(tmp_path / "labels", folder.keys, maps, 3, shard_size=4)
    return tmp_path / "labels"


def run_training(images: Path, labels: Path, run: Path, *more: str, **options: Any) -> dict[str, Any]:
    """Train, and return the content of run.json."""
    recipe = load_recipe("scenes-relabel", [*SETTINGS, *more])
    train_images(images, run, recipe, labels=labels, model_kwargs=THIN, **options)
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


@pytest.mark.slow
def test_run_file_has_recipe_versions_labels_command_and_hardware(
    image_folder: Path, label_set: Path, tmp_path: Path, relabel: Relabel
) -> None:
    kwargs = model_options(THIN)
    options = [*kwargs, *(f"--set={setting}" for setting in SETTINGS), "--arch=resnet10t", "--device=cpu", "--workers=0"]
    done = relabel("train", image_folder, "--labels", label_set, "--run-dir", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["recipe"]["epochs"] == 2 and content["recipe"]["target"] == "localized-multi"
    assert (content["arch"], content["model_kwargs"]["stem_width"], content["initial_weights"]) == ("resnet10t", 8, "random")
    whole = (label_set / "manifest.json").read_bytes() + (label_set / "shards.jsonl").read_bytes()
    assert content["label_digest"] == hashlib.sha256(whole).hexdigest()
    (start,) = content["starts"]
    assert start["step"] == 0 and start["processes"] == 1 and start["device"]
    assert "-m pipeline train" in start["command"] and "--set=epochs=2" in start["command"]
    installed = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": np, "Pillow": PIL}
    for name, package in installed.items():
        assert start["versions"][name] == package.__version__
    assert start["versions"]["python"] == platform.python_version()
    assert start.get("git") == git_state(REPOSITORY / "train" / "run_dir" / "provenance.py")


def test_every_resume_is_recorded_and_may_have_other_versions_and_paths(
    image_folder: Path, label_set: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    content = run_training(image_folder, label_set, run)
    elsewhere = {"versions": {"torch": "1.0"}, "device": "an abacus", "git": {"commit": "0", "dirty": True}}
    content["starts"] = [content["starts"][0] | elsewhere]
    (run / "run.json").write_text(json.dumps(content))
    images = image_folder.rename(tmp_path / "moved-images")
    labels = label_set.rename(tmp_path / "moved-labels")
    resumed = run_training(images, labels, run, resume=True)
    assert resumed["starts"][0] == content["starts"][0]
    assert [start["step"] for start in resumed["starts"]] == [0, 2]
    assert resumed["starts"][1]["versions"]["torch"] == torch.__version__
    assert resumed["label_folder"] == str(labels)


def test_run_of_a_version_without_a_setting_had_its_default(image_folder: Path, label_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    content = run_training(image_folder, label_set, run)
    del content["recipe"]["region_share"], content["recipe"]["crop_scale"]
    (run / "run.json").write_text(json.dumps(content))
    assert len(run_training(image_folder, label_set, run, resume=True)["starts"]) == 2
    content["recipe"]["crop_scale"] = [0.5, 1.0]
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="crop_scale"):
        run_training(image_folder, label_set, run, resume=True)


def test_other_labels_with_the_same_manifest_are_rejected(image_folder: Path, label_set: Path, tmp_path: Path) -> None:
    run_training(image_folder, label_set, tmp_path / "run")
    lines = read_shard_lines(label_set)
    for i, line in lines.items():
        with h5py.File(label_set / line.file, "r+") as file:
            file["scores"][...] = file["scores"][...] + 1
        lines[i] = dataclasses.replace(line, sha256=sha256_of(label_set / line.file))
    write_shard_lines(label_set, lines)
    with pytest.raises(InputError, match=r"holds a run with different settings \(label_digest "):
        run_training(image_folder, label_set, tmp_path / "run", resume=True)


def test_label_set_digest_does_not_depend_on_the_order_in_which_shards_were_written(label_set: Path) -> None:
    before = label_set_digest(label_set)
    lines = read_shard_lines(label_set)
    assert len(lines) == 3
    (label_set / "shards.jsonl").unlink()
    for i in (2, 0, 1):
        append_shard_line(label_set, lines[i])
    assert label_set_digest(label_set) == before


def test_initial_weights_are_identified_by_their_bytes_not_their_name(
    image_folder: Path, label_set: Path, tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Any
) -> None:
    run = tmp_path / "run"
    content = run_training(image_folder, label_set, run, initial_weights=tiny_checkpoint)
    assert content["initial_weights"] == f"sha256 {hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()}"
    shutil.copy(tiny_checkpoint, tmp_path / "renamed.pth")
    run_training(image_folder, label_set, run, initial_weights=tmp_path / "renamed.pth", resume=True)
    with pytest.raises(InputError, match=r"holds a run with different settings \(initial_weights "):
        run_training(image_folder, label_set, run, initial_weights=make_checkpoint(1), resume=True)


def test_teacher_is_identified_by_its_bytes_and_a_resume_may_have_other_validation_images(
    image_folder: Path, tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Any
) -> None:
    def distil(weights: Path, **options: Any) -> dict[str, Any]:
        recipe = load_recipe("distillation", SETTINGS)
        teacher = TeacherChoice("resnet10t", weights, THIN, (32, 56))
        train_images(image_folder, tmp_path / "run", recipe, teacher=teacher, model_kwargs=THIN, **options)
        content: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
        return content

    content = distil(tiny_checkpoint)
    assert content["teacher"]["checkpoint"] == f"sha256 {hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()}"
    assert (content["teacher_file"], content["val"], content["val_digest"]) == (str(tiny_checkpoint), None, None)
    renamed = shutil.copy(tiny_checkpoint, tmp_path / "renamed.pth")
    content = distil(Path(renamed), val=image_folder, resume=True)
    assert (content["val"], content["val_digest"]) == (str(image_folder), content["image_digest"])
    with pytest.raises(InputError, match=r"holds a run with different settings \(teacher\.checkpoint "):
        distil(make_checkpoint(1), resume=True)


def test_resume_in_another_precision_is_logged_and_recorded(
    image_folder: Path, label_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run_training(image_folder, label_set, run)
    run_training(image_folder, label_set, run, resume=True)
    assert "different settings" not in caplog.text
    content = run_training(image_folder, label_set, run, resume=True, amp=True)
    assert f"resuming {run} with different settings: precision 'float32', now 'bfloat16'" in caplog.text
    assert [start["precision"] for start in content["starts"]] == ["float32", "float32", "bfloat16"]
    assert (content["starts"][0]["sync_bn"], content["starts"][0]["compile"]) == (False, False)
    with pytest.raises(InputError, match="--amp-dtype float16 has no effect"):
        run_training(image_folder, label_set, run, resume=True, amp_dtype="float16")


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def test_git_state_is_that_of_the_checkout_and_absent_outside_of_one(tmp_path: Path) -> None:
    code = tmp_path / "checkout" / "package" / "code.py"
    code.parent.mkdir(parents=True)
    code.write_text("a = 1\n")
    assert git_state(code) is None, "not in a checkout"
    git(tmp_path / "checkout", "init")
    assert git_state(code) is None, "an installed copy inside another checkout"
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-m", "first")
    commit = git(tmp_path / "checkout", "rev-parse", "HEAD")
    assert git_state(code) == {"commit": commit, "dirty": False}
    (tmp_path / "checkout" / "other.py").write_text("b = 2\n")
    assert git_state(code) == {"commit": commit, "dirty": True}


def test_machine_without_git_has_no_git_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(REPOSITORY / "train" / "run_dir" / "provenance.py") is None
