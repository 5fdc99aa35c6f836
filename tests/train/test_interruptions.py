"""What can go wrong while a model is trained, with real processes and real files.

Afterwards what was saved is whole, and the resumed run gives the weights of one that nothing disturbed.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.demo.networks import REPOSITORY
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.conftest import free_port
from tests.train.runs import (
    DROPPED,
    FORK,
    GROUP_NORM,
    assert_same_weights,
    command,
    environment,
    exit_codes,
    recipe,
    run_training,
    said_after,
    start,
    start_two,
    stop_in,
    train_as_rank,
)
from train.run_dir.metrics import read_metrics
from train.stop_signals import Interrupted


def test_interrupted_and_resumed_training_is_the_uninterrupted_one(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=25)
    for stop, (epochs, extra_s) in enumerate([(2, 0.0), (6, 0.01), (9, 0.03)]):
        watcher = stop_in(tmp_path / "parts", epochs, extra_s)
        with pytest.raises(Interrupted, match="--resume continues"):
            run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=stop > 0)
        watcher.join()
        assert not (tmp_path / "parts" / "weights.pth").exists()
    run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, tmp_path / "parts")
    timeless = ("epoch", "step", "loss", "top1", "lr")
    of_parts, of_whole = read_metrics(tmp_path / "parts"), read_metrics(uninterrupted)
    assert [[m[k] for k in timeless] for m in of_parts] == [[m[k] for k in timeless] for m in of_whole]


def test_killed_and_resumed_training_is_the_uninterrupted_one(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other process has: sums in another order differ in their last bit
    try:
        run = tmp_path / "killed"
        process = subprocess.Popen([sys.executable, *command(data, run)], cwd=REPOSITORY, env=environment())
        while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 3:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert not (run / "weights.pth").exists()
        run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert_same_weights(uninterrupted, run)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, 26))


def killed_in_mid_checkpoint(run: Path, process: Any, epochs: int) -> bool:
    """SIGKILL the process while it writes a checkpoint, after so many epochs; whether it was still writing."""
    while process.is_alive():
        if (run / "metrics.jsonl").exists() and len(read_metrics(run)) >= epochs and list(run.glob(".last.pt.*.tmp")):
            process.kill()
        else:
            time.sleep(0.0005)
    process.join()
    return bool(list(run.glob(".last.pt.*.tmp")))


def test_killed_in_mid_checkpoint_time_and_again_and_resumed_is_the_uninterrupted_one(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    torn = 0
    for attempt in range(12):
        epochs = len(read_metrics(run)) + 1 if run.exists() else 2
        process = FORK.Process(
            target=run_training,
            args=(data, run, recipe(epochs=25)),
            kwargs={"model_kwargs": DROPPED, "resume": True},
        )
        process.start()
        torn += killed_in_mid_checkpoint(run, process, epochs)
        assert load_torch_file(run / "last.pt")["step"] >= 4 * min(attempt, 1)  # what there is is whole
        if torn == 3:
            break
    assert torn == 3, "no process was killed while it wrote"
    assert not (run / "weights.pth").exists()
    run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, run)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, 26))
    assert not list(run.glob(".*.tmp"))


def test_two_processes_killed_and_resumed_are_two_that_were_not(data: Path, tmp_path: Path) -> None:
    settings, options = recipe(epochs=4), {"model_kwargs": DROPPED, "resume": True}
    for process in start_two(data, tmp_path / "whole", settings, **options):
        process.join()
    run = tmp_path / "parts"
    two = start_two(data, run, settings, **options)
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 2:
        assert all(process.is_alive() for process in two)
        time.sleep(0.002)
    for process in two:
        process.kill()
        process.join()
    assert not (run / "weights.pth").exists()
    for process in start_two(data, run, settings, **options):
        process.join()
        assert process.exitcode == 0
    assert_same_weights(tmp_path / "whole", run)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_within_an_epoch_goes_on_from_what_was_saved_in_it(data: Path, tmp_path: Path, processes: int) -> None:
    settings = recipe("scenes-relabel", "batch_size=2", "ema=0.9", "loss=bce", epochs=12)
    steps, options = 16, {"model_kwargs": GROUP_NORM, "save_every": 1e-9}  # of an epoch; it looks, and saves, every 20
    assert exit_codes(start(processes, data, tmp_path / "whole", settings, **options)) == [0] * processes
    run = tmp_path / "killed"

    def saved_within_an_epoch() -> bool:
        return (run / "last.pt").exists() and load_torch_file(run / "last.pt")["step"] % steps != 0

    for _ in range(8):  # it may have gone on to the epoch's end before the signal came
        started = start(processes, data, run, settings, **options, resume=True)
        while not saved_within_an_epoch():
            assert all(process.is_alive() for process in started)
        for process in started:
            process.kill()
            process.join()
        if saved_within_an_epoch():
            break
    assert saved_within_an_epoch() and not (run / "weights.pth").exists()
    assert exit_codes(start(processes, data, run, settings, **options, resume=True)) == [0] * processes
    assert_same_weights(tmp_path / "whole", run)
    assert [m["loss"] for m in read_metrics(run)] == [m["loss"] for m in read_metrics(tmp_path / "whole")]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_that_fails_costs_nothing_of_what_was_learnt(data: Path, tmp_path: Path, processes: int) -> None:
    settings = recipe("scenes-relabel", "eval_epochs=1", epochs=2)

    def codes(run: Path, val: Path, resume: bool = False) -> list[int]:
        return exit_codes(start(processes, data, run, settings, val=val, model_kwargs=DROPPED, resume=resume))

    assert codes(tmp_path / "whole", data / "val") == [0] * processes
    torn = shutil.copytree(data / "val", tmp_path / "val") / "red" / "1.JPEG"
    torn.write_bytes(torn.read_bytes()[:300])
    run = tmp_path / "run"
    assert codes(run, tmp_path / "val") == [1] * processes
    assert load_torch_file(run / "last.pt")["step"] == 4 and read_metrics(run) == [], "learnt and not yet evaluated"
    shutil.copy(data / "val" / "red" / "1.JPEG", torn)
    assert codes(run, tmp_path / "val", resume=True) == [0] * processes
    assert_same_weights(tmp_path / "whole", run)
    of_run, of_whole = read_metrics(run), read_metrics(tmp_path / "whole")
    assert [(m["epoch"], m["loss"], m["val"]) for m in of_run] == [(m["epoch"], m["loss"], m["val"]) for m in of_whole]


def test_full_disk_stops_the_run_and_a_freed_one_lets_it_go_on_as_if_nothing_had_been(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]],
) -> None:
    run = tmp_path / "full"
    watcher = stop_in(run, 2, 0.0)
    with pytest.raises(Interrupted):
        run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED)
    watcher.join()
    before = (run / "last.pt").read_bytes()
    with (
        file_size_limit(len(before) // 2),
        pytest.raises(InputError, match=r"still holds the previous one\. Free disk space"),
    ):
        run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert (run / "last.pt").read_bytes() == before
    run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, run)


def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, stderr = said_after(signal.SIGINT, command(data, run), run, to_group=False)
    assert code == 130
    assert "the same command with --resume continues" in stderr and "Traceback" not in stderr
    assert load_torch_file(run / "last.pt")["step"] > 0


def test_sigterm_to_the_whole_process_group_saves_the_state_though_decoding_workers_are_in_it(
    data: Path, tmp_path: Path
) -> None:
    """As torchrun passes it on where a cluster takes the machine back."""
    run = tmp_path / "run"
    code, stderr = said_after(signal.SIGTERM, [*command(data, run), "--workers=2"], run, to_group=True)
    assert code == 130, stderr
    assert "the same command with --resume continues" in stderr and "a decoding process died" not in stderr
    assert load_torch_file(run / "last.pt")["step"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_torchrun_and_all_its_processes_saves_the_state(data: Path, tmp_path: Path, number: int) -> None:
    """As a terminal sends it, or a cluster; torchrun then sends a SIGTERM of its own to those that have one already."""
    run = tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code, stderr = said_after(number, [*launch, *command(data, run)], run, to_group=True)
    assert code != 0 and "the same command with --resume continues" in stderr, stderr
    assert 4 <= load_torch_file(run / "last.pt")["step"] < 100 and not (run / "weights.pth").exists()


def test_processes_that_find_different_states_are_told_to_share_a_folder(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path / "of_0", recipe())
    port = free_port()
    two = [
        FORK.Process(
            target=train_as_rank, args=(rank, port, data, tmp_path / f"of_{rank}", recipe()), kwargs={"resume": True}
        )
        for rank in (0, 1)
    ]
    for process in two:
        process.start()
    assert exit_codes(two) == [1, 1]
    assert not (tmp_path / "of_1").exists()
