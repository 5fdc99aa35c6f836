"""The Makefile's stages on a tiny image folder: each runs what it depends on, and a failed stage does not count as done."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.conftest import REPOSITORY, Finished

THIN = "--model-kwargs=stem_width=8 '--model-kwargs=channels=(8,8,8,16)'"

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / ".venv/installed").exists(), reason="the environment of make is not set up"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog", "eel"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, size=(24, 30, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.JPEG")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("resnet10t", num_classes=3, stem_width=8, channels=(8, 8, 8, 16))
        torch.save(model.state_dict(), tmp_path / f"annotator{seed}.pth")
    return tmp_path / "data"


def make(target: str, data: Path, annotator: int = 0, **options: str) -> Finished:
    home = data.parent
    variables: dict[str, object] = {
        "IMAGENET": data,
        "LABELS": home / f"labels{annotator}",
        "RUN": home / f"run{annotator}",
        "ANNOTATOR": "resnet10t",
        "ANNOTATOR_ARGS": f"{THIN} --num-classes 3 --input-size 64 --topk 2 --device cpu",
        "CHECKPOINT": home / f"annotator{annotator}.pth",
        "VERIFY_ARGS": "--min-agreement 0",
        "ARCH": "resnet10t",
        "ARCH_ARGS": f"{THIN} --device cpu",
        "EPOCHS": 2,
        "SET": "batch_size=5 image_size=32 eval_size=32 warmup_epochs=0",
        "WORKERS": 0,
    }
    variables |= options
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | {"OMP_NUM_THREADS": "1"}
    command = ["make", "-C", str(REPOSITORY), target, *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The time of the last change and the content of every file."""
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_failed_stage_does_not_count_as_done_all_ends_with_the_report_and_a_second_call_runs_none(data: Path) -> None:
    home, image = data.parent, data / "train" / "dog" / "0.JPEG"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    failed = make("verify", data)
    assert failed.returncode != 0
    assert "1 unreadable images" in failed.stderr and str(image) in failed.stderr
    assert "relabel verify" not in failed.stdout
    image.write_bytes(content)

    first = make("all", data)
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads((home / "run0" / "eval.json").read_text())["images"] == 6
    order = [first.stdout.index(f"relabel {stage} ") for stage in ("annotate", "verify", "train", "eval", "report")]
    assert order == sorted(order) and "OK" in first.stdout.splitlines()
    assert f"{home}/run0/report.html: 15 of 15 images" in first.stdout
    assert str(home / "run0") in (home / "run0" / "report.html").read_text()

    before = states(home)
    second = make("all", data)
    assert second.returncode == 0 and "relabel" not in second.stdout.replace(str(REPOSITORY), "")
    assert states(home) == before

    third = make("eval", data, VERIFY_ARGS="--min-agreement 0 --spot-check 2")  # other options: verify again, do not train
    assert third.returncode == 0, third.stdout + third.stderr
    assert "spot check" in third.stdout or "annotated again" in third.stdout
    assert "relabel train" not in third.stdout and "relabel annotate" not in third.stdout
    before = states(home)

    other = make("verify", data, annotator=1, GPUS="2")  # a different annotator makes a second label set, by two processes
    assert other.returncode == 0, other.stdout + other.stderr
    assert "--nproc-per-node 2 --no-python .venv/bin/relabel annotate" in other.stdout
    assert (home / "labels1" / "shard-00000.h5").read_bytes() != (home / "labels0" / "shard-00000.h5").read_bytes()
    assert {name: state for name, state in states(home).items() if "labels1" not in name} == before


def test_error_without_images_says_which_variable_to_set() -> None:
    variables = ["IMAGENET=", "TRAIN_IMAGES=", "LABELS=/nonexistent"]
    done = subprocess.run(
        ["make", "-C", str(REPOSITORY), "annotate", *variables], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and "IMAGENET=DIR" in done.stderr + done.stdout


def test_help_lists_every_target_and_variable() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    output = subprocess.run(["make", "-C", str(REPOSITORY), "help"], capture_output=True, text=True, timeout=60).stdout
    targets = re.search(r"^\.PHONY: (.*)$", text.replace("\\\n", ""), re.MULTILINE)
    assert targets is not None
    for name in set(targets[1].split()) - {"help", "FORCE"}:
        assert re.search(rf"\b{name}\b", output.split("Variables")[0]), name
    for line in text.splitlines():
        if " ?= " in f"{line} ":
            name = line.split(" ?=")[0]
            assert name in ("PYTHON", "DEMO") or f"{name}=" in output, name


# --- what a user gives is text --------------------------------------------------------------------------------------------

ODD = "in[1k] it's a `touch ran` $(touch ran) $$(touch ran) $5; #\"x*"


def dry(target: str, *variables: str) -> Finished:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "-C", str(REPOSITORY), "-n", target, *variables]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def words(done: Finished, stage: str) -> list[str]:
    """The arguments of a stage's command, as the shell would split the line that make prints."""
    line = next(line for line in done.stdout.splitlines() if f"relabel {stage} " in line)
    return shlex.split(line)[2:]


def test_paths_with_blanks_brackets_and_backticks_reach_every_command(tmp_path: Path) -> None:
    images = tmp_path / ODD
    (images / "val").mkdir(parents=True)
    shown = f"{tmp_path}/{ODD}.json"
    names = [f"{name}={tmp_path / name.lower()}" for name in ("LABELS", "RUN")]
    done = dry(
        "eval", f"IMAGENET={images}", *names, f"MULTILABELS={shown}", f"ANNOTATOR=local-dir:{ODD}", "EVAL_ARGS=--x 'y z'"
    )
    assert done.returncode == 0, done.stderr
    annotate, train, evaluate = (words(done, stage) for stage in ("annotate", "train", "eval"))
    assert annotate[0] == train[0] == f"{images}/train" and evaluate[0] == f"{images}/val"
    assert annotate[annotate.index("--model") + 1] == f"local-dir:{ODD}"
    assert train[train.index("--val") + 1] == f"{images}/val"
    assert train[train.index("--multilabels") + 1] == evaluate[evaluate.index("--multilabels") + 1] == shown
    assert evaluate[-2:] == ["--x", "y z"]
    assert not list(tmp_path.rglob("ran")) and not (REPOSITORY / "ran").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("lr=0.2  batch_size=256", ["lr=0.2", "batch_size=256"]),
        ("crop_scale=[0.25, 1] lr=0.2", ["crop_scale=[0.25, 1]", "lr=0.2"]),
        ("lr=0.2 target=it's lr=0.2", ["lr=0.2", "target=it's", "lr=0.2"]),
        ("lr", ["lr"]),
    ],
)
def test_settings_are_separated_by_blanks_outside_of_values(tmp_path: Path, given: str, expected: list[str]) -> None:
    done = dry("train", "IMAGENET=/images", f"RUN={tmp_path / 'run'}", "RECIPE=single", f"SET={given}")
    train = words(done, "train")
    assert [train[i + 1] for i, word in enumerate(train) if word == "--set"] == expected


def test_training_without_validation_images_is_said(tmp_path: Path) -> None:
    done = dry("train", f"IMAGENET={tmp_path}", f"RUN={tmp_path / 'run'}", "RECIPE=single")
    assert "training without validation images; IMAGENET has no val/" in done.stdout and "--val" not in words(done, "train")


def test_help_runs_nothing_that_a_variable_holds(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for text in (f"`touch {ran}`", f"'`touch {ran}`'", f"$(touch {ran})", f"$(shell touch {ran})", f"$$(touch {ran})"):
        for name in ("IMAGENET", "SET", "ANNOTATOR", "ARCH_ARGS"):
            done = subprocess.run(
                ["make", "-C", str(REPOSITORY), "help", f"{name}={text}", "LABELS=labels"], capture_output=True, text=True
            )
            assert not ran.exists(), (name, text)
            assert done.returncode == 2 if name == "ARCH_ARGS" else f"{name}={text}" in done.stdout


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("LABELS=a b", "make cannot handle this path"),
        ("RUN=in[1k]", "make cannot handle this path"),
        ("CHECKPOINT=`x`.pth", "make cannot handle this path"),
        ("EVAL_ARGS=--suite x; touch y", "expected options"),
        ("IMAGENET=a\nb", "expected a single line"),
    ],
)
def test_what_make_cannot_take_is_refused_in_a_line(variable: str, reason: str) -> None:
    done = dry("train", "IMAGENET=/images", variable)
    assert done.returncode == 2 and f"{variable}: {reason}" in done.stderr
