"""annotate and train on tiny inputs, as the processes that a user starts, and the files that they leave without a fault."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from relabel.runtime.files import LOCK
from train.run_dir.metrics import METRICS, read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = ("blue", "green", "red")
IMAGES, SHARD_SIZE = 32, 8
THIN = {"stem_width": 8, "channels": (8, 8, 8, 16), "output_stride": 8}
ONE = [sys.executable, "-m", "pipeline"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]
SETTINGS = ["image_size=16", "eval_size=16", "batch_size=4", "warmup_epochs=0"]
EPOCHS = 8
PATIENCE_S = 120  # for processes to end; what takes longer hangs
DIFFERS = ("wall_s", "images_per_s")  # between two equal runs

Contents = dict[str, object]


class Violation(Exception):
    """What happened instead of what was promised."""


@dataclass(frozen=True)
class Stage:
    """A command of relabel that is run in a folder of its own, where it writes the folder `output`."""

    name: str
    launcher: list[str]
    arguments: list[str]
    resume: list[str]  # more arguments, to continue
    output: str
    contents: Callable[[Path], Contents]

    def command(self, again: bool = False) -> list[str]:
        return [*self.launcher, *self.arguments, *(self.resume if again else [])]


def write_inputs(root: Path) -> None:
    """Images with noise around a colour, and random weights of the annotator."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        name = CLASSES[number % len(CLASSES)]
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 80, size=(24, 30, 3))
        pixels[:, :, number % len(CLASSES)] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name / f"{number}.JPEG")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=len(CLASSES), **THIN).state_dict(), root / "annotator.pth")


def annotate_stage(root: Path, launcher: list[str]) -> Stage:
    where = ["annotate", str(root / "images"), "--labels=labels", f"--checkpoint={root / 'annotator.pth'}"]
    model = ["--model=resnet10t", *model_options(), "--num-classes=3", "--input-size=64x112", "--topk=2"]
    how = ["--batch-size=2", f"--shard-size={SHARD_SIZE}", "--workers=0", "--device=cpu"]
    return Stage(f"annotate, {described(launcher)}", launcher, [*where, *model, *how], [], "labels", files)


def train_stage(root: Path, launcher: list[str], epochs: int = EPOCHS, labels: Path | None = None) -> Stage:
    """The state is also saved within epochs: --save-every is in minutes."""
    labels = labels or undisturbed_labels(root)
    where = ["train", str(root / "images"), f"--labels={labels}", "--run-dir=run", "--save-every=1e-9"]
    model = ["--arch=resnet10t", *model_options(), "--model-kwargs=drop_path_rate=0.2", "--recipe=scenes-relabel"]
    how = [*(f"--set={setting}" for setting in (*SETTINGS, f"epochs={epochs}")), "--workers=0", "--device=cpu"]
    return Stage(f"train, {described(launcher)}", launcher, [*where, *model, *how], ["--resume"], "run", outcome)


def model_options() -> list[str]:
    return [f"--model-kwargs={name}={value}".replace(" ", "") for name, value in THIN.items()]


def described(launcher: list[str]) -> str:
    return "one process" if launcher is ONE else "two processes"


def files(folder: Path) -> Contents:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def outcome(run: Path) -> Contents:
    """The names of a run's files, its weights, and its metrics without the times."""
    metrics = [{name: value for name, value in epoch.items() if name not in DIFFERS} for epoch in read_metrics(run)]
    weights = (run / "weights.pth").read_bytes() if (run / "weights.pth").exists() else None
    return {"names": sorted(files(run)), "weights.pth": weights, METRICS: metrics}


def undisturbed(stage: Stage, root: Path) -> tuple[Contents, float]:
    """What the stage leaves without a fault, and the seconds from its first file to its end."""
    folder = undisturbed_folder(root, stage)
    if folder.exists():
        return stage.contents(folder / stage.output), 0.0
    folder.mkdir()
    process = start(stage.command(), folder)
    began = wait_for_output(process, folder / stage.output)
    finish(process, "the undisturbed run")
    return stage.contents(folder / stage.output), time.monotonic() - began


def undisturbed_folder(root: Path, stage: Stage) -> Path:
    return root / f"undisturbed {stage.name}"


def undisturbed_labels(root: Path) -> Path:
    return undisturbed_folder(root, annotate_stage(root, ONE)) / "labels"


def check_same(stage: Stage, output: Path, whole: Contents) -> None:
    left = stage.contents(output)
    if left != whole:
        differ = [name for name in {**whole, **left} if left.get(name) != whole.get(name)]
        raise Violation(f"{', '.join(differ)} differ from the undisturbed run's")


# --- processes ------------------------------------------------------------------------------------------------------------


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: "subprocess.Popen[bytes]", what: str) -> None:
    """Raises Violation if it does not succeed."""
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise Violation(f"{what} had not ended after {PATIENCE_S} s") from error
    if code != 0:
        raise Violation(f"{what} ended with exit code {code}")


def wait_for_output(process: "subprocess.Popen[bytes]", output: Path) -> float:
    """Wait for the first file, or for the end; returns the time."""
    while process.poll() is None and not (output.exists() and any(output.iterdir())):
        time.sleep(0.002)
    return time.monotonic()
