"""Small runs for tests: three colours to tell apart, and processes that train."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from relabel.models.weights import load_torch_file
from tests.conftest import REPOSITORY, free_port, model_options
from train.loop import train
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe
from train.run_dir.metrics import read_metrics

THIN: dict[str, Any] = {"stem_width": 8, "channels": (8, 8, 8, 16), "zero_init_last": False}
DROPPED = {**THIN, "drop_path_rate": 0.2}  # so that resuming must also restore the model's random numbers
GROUP_NORM = {**THIN, "norm_layer": "groupnorm1"}  # takes batches of one image
SETTINGS = ["image_size=16", "eval_size=16", "batch_size=8", "warmup_epochs=1"]
FORK = multiprocessing.get_context("forkserver")  # imports once what all processes of these tests need
FORK.set_forkserver_preload([__name__, "matplotlib.pyplot"])


def recipe(name: str = "scenes-relabel", *more: str, epochs: int = 3) -> Recipe:
    return load_recipe(name, [*SETTINGS, f"epochs={epochs}", *more])


def run_training(data: Path, run: Path, settings: Recipe, **options: Any) -> None:
    defaults: dict[str, Any] = {"labels": data / "labels", "model_kwargs": THIN, "workers": 0, "device": "cpu"}
    train(data / "train", run, "resnet10t", settings, TrainOptions(**(defaults | options)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_torch_file(run / "weights.pth")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def stop_in(run: Path, epochs: int, extra_s: float) -> threading.Thread:
    """Send this process SIGINT, as Ctrl-C does, soon after an epoch was recorded."""

    def watch() -> None:
        while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < epochs:
            time.sleep(0.002)
        time.sleep(extra_s)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def command(data: Path, run: Path, *more: str) -> list[str]:
    options = model_options(DROPPED)
    settings = [f"--set={setting}" for setting in (*SETTINGS, "epochs=25")]
    where = ["--labels", str(data / "labels"), "--run-dir", str(run), "--arch", "resnet10t", "--recipe", "scenes-relabel"]
    return [
        "-m",
        "pipeline",
        "train",
        str(data / "train"),
        *where,
        *options,
        *settings,
        "--device",
        "cpu",
        "--workers",
        "1",
        *more,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def said_after(number: int, arguments: list[str], run: Path, to_group: bool) -> tuple[int, str]:
    """Start Python with these arguments, send it a signal when an epoch is recorded; its exit code and what it says.

    Args:
        to_group: to all processes that it has started too, as a terminal and a cluster do.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None
        time.sleep(0.002)
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def train_as_rank(rank: int, port: int, *arguments: Any, **options: Any) -> None:
    """What torchrun tells each of two processes."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in places.items()})
    run_training(*arguments, **options)


def start_two(*arguments: Any, **options: Any) -> list[Any]:
    port = free_port()
    two = [FORK.Process(target=train_as_rank, args=(rank, port, *arguments), kwargs=options) for rank in (0, 1)]
    for process in two:
        process.start()
    return two


def start(processes: int, *arguments: Any, **options: Any) -> list[Any]:
    if processes == 2:
        return start_two(*arguments, **options)
    one = FORK.Process(target=run_training, args=arguments, kwargs=options)
    one.start()
    return [one]


def exit_codes(started: list[Any]) -> list[int]:
    for process in started:
        process.join()
    return [process.exitcode for process in started]
