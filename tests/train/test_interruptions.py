"""Training that is interrupted or killed: what is on the disk is complete, and resuming gives the undisturbed run's result.

Kills come at a write that the test counts to (tests/processes.py); two real signals to real command lines come on top.
"""

import contextlib
import itertools
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from relabel.runtime.files import LOCK
from tests import processes
from tests.conftest import TORCHRUN, free_port
from tests.processes import MOMENTS, Kill, Moment, exit_codes
from tests.train.runs import (
    DROPPED,
    GROUP_NORM,
    assert_same_weights,
    command,
    interrupted_at_image,
    kill_rest,
    recipe,
    run_training,
    start,
    stopped_by,
    train_as_rank,
)
from train.recipe import Recipe
from train.run_dir.metrics import read_metrics

pytestmark = pytest.mark.slow

KILLED = -signal.SIGKILL

# 33 images in batches of 2: an epoch has 16 steps. The loop may save every 20 steps and does, so it also saves in mid-epoch
IN_MID_EPOCH: dict[str, Any] = {"model_kwargs": GROUP_NORM | {"drop_path_rate": 0.2}, "save_every": 1e-9}


def saves_in_mid_epoch(*more: str, epochs: int = 2) -> Recipe:
    return recipe("scenes-relabel", "batch_size=2", "ema=0.9", "eval_epochs=1", *more, epochs=epochs)


def plain(value: Any) -> Any:
    """Tensors within dictionaries and lists as their bytes, so that == compares them."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def outcome(run: Path) -> dict[str, object]:
    """The files of a finished run by name, without what differs from run to run: times, speeds, and the list of starts."""
    description = json.loads((run / "run.json").read_text())
    del description["starts"]
    metrics = [{k: v for k, v in epoch.items() if k not in ("wall_s", "images_per_s")} for epoch in read_metrics(run)]
    state = load_torch_file(run / "last.pt")
    del state["metrics"]  # the last epoch's, with its times
    with safe_open(run / "weights.safetensors", "pt") as file:  # the order of its metadata is a matter of chance
        weights = file.metadata(), plain(load_file(run / "weights.safetensors"))
    content: dict[str, object] = {path.name: path.read_bytes() for path in run.iterdir()}
    content |= {"run.json": description, "metrics.jsonl": metrics, "last.pt": plain(state)}
    return content | {"weights.safetensors": weights}


def assert_complete(run: Path) -> None:
    """Whatever has its final name can be read."""
    if (run / "run.json").exists():
        json.loads((run / "run.json").read_text())
    for name in {"last.pt", "weights.pth"} & {path.name for path in run.glob("*")}:
        load_torch_file(run / name)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, len(read_metrics(run)) + 1))


def test_interrupted_and_resumed_training_is_the_uninterrupted_one(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    parts, settings = tmp_path / "parts", recipe(epochs=8)
    stopped_at = 0
    for number in (75, 1, 36):  # within an epoch of 4 steps with 8 images each, at once, and at the end of an epoch
        with interrupted_at_image(number):
            run_training(data, parts, settings, model_kwargs=DROPPED, resume=stopped_at > 0)
        stopped_at += (number + 7) // 8
        assert load_torch_file(parts / "last.pt")["step"] == stopped_at
        assert not (parts / "weights.pth").exists()
    run_training(data, parts, settings, model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, parts)
    timeless = ("epoch", "step", "loss", "top1", "lr")
    of_parts, of_whole = read_metrics(parts), read_metrics(uninterrupted)
    assert [[m[k] for k in timeless] for m in of_parts] == [[m[k] for k in timeless] for m in of_whole]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_killed_at_any_write_and_resumed_is_the_undisturbed_one(data: Path, tmp_path: Path, moment: Moment) -> None:
    run = tmp_path / "run"  # curves.png names the folder, so every run is in the same one
    train: dict[str, Any] = {"val": data / "val", **IN_MID_EPOCH}
    run_training(data, run, saves_in_mid_epoch(), **train)
    undisturbed = outcome(run)
    for number in itertools.count(1):
        shutil.rmtree(run)
        (code,) = exit_codes(start(1, data, run, saves_in_mid_epoch(), kill=Kill(run, moment, number), **train))
        if code == 0:
            break
        assert code == KILLED
        assert_complete(run)
        run_training(data, run, saves_in_mid_epoch(), **train, resume=True)
        assert outcome(run) == undisturbed, f"killed {moment}: number {number}"
    assert number > 9, "two epochs write at least run.json, metrics.jsonl, 3 last.pt, 2 curves.png and 2 files of weights"


def test_every_file_of_a_run_gets_its_name_when_it_is_complete(data: Path, tmp_path: Path) -> None:
    """Or is appended to line by line; so that killing at every write and rename leaves nothing out."""
    run, named = tmp_path / "run", set()
    replace = Path.replace

    def noted_replace(path: Path, target: Path) -> Path:
        named.add(target.name)
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", noted_replace)
        run_training(data, run, recipe(epochs=2), val=data / "val")
    assert {path.name for path in run.iterdir()} == named | {LOCK}
    assert named == {"run.json", "metrics.jsonl", "last.pt", "curves.png", "weights.safetensors", "weights.pth"}


@pytest.fixture(scope="module")
def of_two_processes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nothing disturbed."""
    run = tmp_path_factory.mktemp("two") / "run"
    assert exit_codes(start(2, data, run, recipe(epochs=3), model_kwargs=DROPPED)) == [0, 0]
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "file"),
    [
        ("half-way through a write", 1, "run.json"),
        ("half-way through a write", 2, "last.pt"),
        ("after a rename", 1, "last.pt"),
        ("before a rename", 1, "weights.pth"),
    ],
)
def test_two_processes_killed_at_a_write_and_resumed_are_two_that_were_not(
    data: Path, of_two_processes: Path, tmp_path: Path, moment: Moment, number: int, file: str
) -> None:
    run, settings = tmp_path / "run", recipe(epochs=3)
    options: dict[str, Any] = {"model_kwargs": DROPPED}
    started = start(2, data, run, settings, kill=Kill(run, moment, number, file), **options)
    assert kill_rest(started)[0] == KILLED
    assert_complete(run)
    assert not (run / "weights.pth").exists()
    assert exit_codes(start(2, data, run, settings, **options, resume=True)) == [0, 0]
    assert_same_weights(of_two_processes, run)
    timeless = ("epoch", "step", "loss", "top1", "lr")
    of_run, of_whole = read_metrics(run), read_metrics(of_two_processes)
    assert [[m[k] for k in timeless] for m in of_run] == [[m[k] for k in timeless] for m in of_whole]


@pytest.mark.slow
def test_killed_in_mid_checkpoint_three_times_and_resumed_is_the_uninterrupted_one(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run, settings, options = tmp_path / "run", recipe(epochs=8), {"model_kwargs": DROPPED}
    for attempt in range(3):
        kill = Kill(run, "half-way through a write", 2, "last.pt")
        assert exit_codes(start(1, data, run, settings, kill=kill, **options, resume=True)) == [KILLED]
        assert len(list(run.glob(".last.pt.*.tmp"))) == 1, "the half of the checkpoint that was being written"
        assert load_torch_file(run / "last.pt")["step"] == 4 * (attempt + 1), "the epoch before"
    assert not (run / "weights.pth").exists()
    run_training(data, run, settings, **options, resume=True)
    assert_same_weights(uninterrupted, run)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, 9))
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_within_an_epoch_resumes_from_what_was_saved_in_it(data: Path, tmp_path: Path, count: int) -> None:
    settings = saves_in_mid_epoch("loss=bce")
    assert exit_codes(start(count, data, tmp_path / "whole", settings, **IN_MID_EPOCH)) == [0] * count
    run = tmp_path / "killed"
    kill = Kill(run, "after a rename", 2, "last.pt")  # the first follows step 16, the end of an epoch
    assert kill_rest(start(count, data, run, settings, kill=kill, **IN_MID_EPOCH))[0] == KILLED
    assert load_torch_file(run / "last.pt")["step"] == 20 and not (run / "weights.pth").exists()
    assert exit_codes(start(count, data, run, settings, **IN_MID_EPOCH, resume=True)) == [0] * count
    assert_same_weights(tmp_path / "whole", run)
    assert [m["loss"] for m in read_metrics(run)] == [m["loss"] for m in read_metrics(tmp_path / "whole")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_failed_evaluation_loses_no_training(data: Path, tmp_path: Path, count: int) -> None:
    settings = recipe("scenes-relabel", "eval_epochs=1", epochs=2)

    def codes(run: Path, val: Path, resume: bool = False) -> list[int | None]:
        return exit_codes(start(count, data, run, settings, val=val, model_kwargs=DROPPED, resume=resume))

    assert codes(tmp_path / "whole", data / "val") == [0] * count
    torn = shutil.copytree(data / "val", tmp_path / "val") / "red" / "1.JPEG"
    torn.write_bytes(torn.read_bytes()[:300])
    run = tmp_path / "run"
    assert codes(run, tmp_path / "val") == [1] * count
    assert load_torch_file(run / "last.pt")["step"] == 4 and read_metrics(run) == [], "trained and not yet evaluated"
    shutil.copy(data / "val" / "red" / "1.JPEG", torn)
    assert codes(run, tmp_path / "val", resume=True) == [0] * count
    assert_same_weights(tmp_path / "whole", run)
    of_run, of_whole = read_metrics(run), read_metrics(tmp_path / "whole")
    assert [(m["epoch"], m["loss"], m["val"]) for m in of_run] == [(m["epoch"], m["loss"], m["val"]) for m in of_whole]


def test_full_disk_stops_the_run_and_with_space_it_resumes_to_the_same_result(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]],
) -> None:
    run = tmp_path / "full"
    with interrupted_at_image(75):  # in mid-epoch
        run_training(data, run, recipe(epochs=8), model_kwargs=DROPPED)
    before = (run / "last.pt").read_bytes()
    with (
        file_size_limit(len(before) // 2),
        pytest.raises(InputError, match=r"still holds the previous one\. Free disk space"),
    ):
        run_training(data, run, recipe(epochs=8), model_kwargs=DROPPED, resume=True)
    assert (run / "last.pt").read_bytes() == before
    run_training(data, run, recipe(epochs=8), model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, run)


# --- real signals to real command lines, which never get to the end of their epochs ---------------------------------------

ENDLESS = "--set=epochs=5000"  # of 4 steps


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_resume_and_exits_130(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, stderr = stopped_by(signal.SIGINT, command(data, run, ENDLESS), run, to_group=False)
    assert code == 130
    assert "the same command with --resume continues" in stderr and "Traceback" not in stderr
    assert load_torch_file(run / "last.pt")["step"] > 0


@pytest.mark.slow
def test_sigterm_to_the_whole_process_group_with_its_decoding_workers_saves_the_state(data: Path, tmp_path: Path) -> None:
    """As torchrun passes it on where a cluster takes the machine back."""
    run = tmp_path / "run"
    code, stderr = stopped_by(signal.SIGTERM, command(data, run, ENDLESS, "--workers=2"), run, to_group=True)
    assert code == 130, stderr
    assert "the same command with --resume continues" in stderr and "a decoding process died" not in stderr
    assert load_torch_file(run / "last.pt")["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_torchrun_and_all_its_processes_saves_the_state(data: Path, tmp_path: Path, number: int) -> None:
    """As a terminal or a cluster sends it; torchrun then sends its own SIGTERM to processes that already have one."""
    run = tmp_path / "run"
    code, stderr = stopped_by(number, [*TORCHRUN[1:], *command(data, run, ENDLESS)], run, to_group=True)
    assert code != 0 and "the same command with --resume continues" in stderr, stderr
    assert 4 <= load_torch_file(run / "last.pt")["step"] < 20000 and not (run / "weights.pth").exists()


def test_processes_that_find_different_states_are_told_to_share_a_folder(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path / "of_0", recipe())
    port = free_port()
    two = [
        processes.start(train_as_rank, rank, port, data, tmp_path / f"of_{rank}", recipe(), resume=True) for rank in (0, 1)
    ]
    assert exit_codes(two) == [1, 1]
    assert not (tmp_path / "of_1").exists()
