"""Small training runs for tests: images of three colours, a thin model, and processes that train."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from relabel.images.decoding import EncodedImage
from relabel.models.weights import load_torch_file
from tests import processes
from tests.conftest import REPOSITORY, free_port, model_options, wait_until
from tests.processes import Kill
from train.crops import Cut, RandomCrops
from train.loop import train
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe
from train.run_dir.metrics import read_metrics
from train.stop_signals import Interrupted

THIN: dict[str, Any] = {"stem_width": 8, "channels": (8, 8, 8, 16), "zero_init_last": False}
DROPPED = {**THIN, "drop_path_rate": 0.2}  # so that resuming must also restore the model's random numbers
GROUP_NORM = {**THIN, "norm_layer": "groupnorm1"}  # takes batches of one image
SETTINGS = ["image_size=16", "eval_size=16", "batch_size=8", "warmup_epochs=1"]


def recipe(name: str = "scenes-relabel", *more: str, epochs: int = 3) -> Recipe:
    return load_recipe(name, [*SETTINGS, f"epochs={epochs}", *more])


def train_images(images: Path, run: Path, settings: Recipe, arch: str = "resnet10t", **options: Any) -> None:
    """The one place where these tests call `train`: thin, on the CPU, decoding in this process, unless told otherwise."""
    defaults: dict[str, Any] = {"model_kwargs": THIN, "workers": 0, "device": "cpu"}
    train(images, run, arch, settings, TrainOptions(**(defaults | options)))


def run_training(data: Path, run: Path, settings: Recipe, **options: Any) -> None:
    """Train on the images and labels of the fixture `data`."""
    train_images(data / "train", run, settings, **({"labels": data / "labels"} | options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_torch_file(run / "weights.pth")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- interrupted in this process ------------------------------------------------------------------------------------------


@contextmanager
def before_each_image(do: Callable[[int], object]) -> Iterator[None]:
    """Call `do` with the place in the set of every training image that this process is about to read."""
    draw = RandomCrops.draw

    def watched(dataset: RandomCrops, image: EncodedImage, epoch: int, index: int) -> Cut:
        do(index)
        return draw(dataset, image, epoch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomCrops, "draw", watched)
        yield


@contextmanager
def interrupted_at_image(number: int) -> Iterator[None]:
    """Ctrl-C reaches the training within just before it reads its `number`-th image, which stops it after that step."""
    count = itertools.count(1)

    def interrupt(_: int) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGINT)

    with before_each_image(interrupt), pytest.raises(Interrupted, match="--resume continues"):
        yield


# --- the command line, in a process of its own ----------------------------------------------------------------------------


def command(data: Path, run: Path, *more: str) -> list[str]:
    """Python's arguments for `relabel train` on the fixture `data`."""
    options = model_options(DROPPED)
    settings = [f"--set={setting}" for setting in (*SETTINGS, "epochs=25")]
    where = ["--labels", str(data / "labels"), "--run-dir", str(run), "--arch", "resnet10t", "--recipe", "scenes-relabel"]
    how = ["--device", "cpu", "--workers", "1"]
    return ["-m", "pipeline", "train", str(data / "train"), *where, *options, *settings, *how, *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def stopped_by(number: int, arguments: list[str], run: Path, to_group: bool) -> tuple[int, str]:
    """Start Python with these arguments and send it a signal once an epoch is recorded; its exit code and stderr.

    Args:
        to_group: send it to all processes that it has started too, as a terminal and a cluster do.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or read_metrics(run), 120, f"the first epoch in {run}")
        assert process.poll() is None, "the run ended by itself"
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, stderr


# --- one or two training processes ----------------------------------------------------------------------------------------


def train_as_rank(rank: int, port: int, *arguments: Any, **options: Any) -> None:
    """Train as one of two processes, with the environment that torchrun gives it."""
    os.environ.update(processes.place(rank, port))
    run_training(*arguments, **options)


def start(count: int, *arguments: Any, kill: Kill | None = None, **options: Any) -> list[BaseProcess]:
    """Start one process that runs `run_training`, or two that train together; the first is the one to be killed."""
    if count == 1:
        return [processes.start(run_training, *arguments, kill=kill, **options)]
    port = free_port()
    return [
        processes.start(train_as_rank, rank, port, *arguments, kill=kill if rank == 0 else None, **options)
        for rank in range(count)
    ]


def kill_rest(started: list[BaseProcess]) -> list[int | None]:
    """Wait for the first process to end, and kill the others, as torchrun does; all exit codes."""
    processes.exit_codes(started[:1])
    for process in started[1:]:
        process.kill()
    return processes.exit_codes(started)
