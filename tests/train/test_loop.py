"""The training loop on a few small images: it learns, resumes exactly, and refuses at the start what cannot end well."""

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.image_sources import find_images
from pipeline.manifest import read_shard_lines, write_shard_lines
from pipeline.shards import LabelMaps, LabelStore
from tests.conftest import free_port
from tests.label_sets import write_label_set
from train import checkpoint
from train.evaluation.run import evaluate_checkpoint
from train.loop import Interrupted, train
from train.metrics import read_metrics
from train.recipe import Recipe, load

REPOSITORY = Path(__file__).parents[2]
THIN: dict[str, Any] = {"stem_width": 8, "channels": (8, 8, 8, 16), "zero_init_last": False}
CLASSES = ("blue", "green", "red")
FORK = multiprocessing.get_context("forkserver")  # imports torch once for all processes of these tests
FORK.set_forkserver_preload([__name__])
SETTINGS = ["image_size=16", "eval_size=16", "batch_size=8", "warmup_epochs=1"]


def recipe(name: str = "scenes-relabel", *more: str, epochs: int = 3) -> Recipe:
    return load(name, [*SETTINGS, f"epochs={epochs}", *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 noisy images of three colours in train/, 9 in val/, and a 2x3 label map of each training image's colour."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 11), ("val", 3)):
        for channel, name in enumerate(CLASSES[::-1]):  # red is channel 0
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 80, size=(24, 30, 3))
                pixels[:, :, channel] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.JPEG")
    folder = find_images(root / "train")
    classes = torch.from_numpy(folder.targets).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    write_label_set(
        root / "labels", folder.keys, LabelMaps(torch.full(classes.shape, 4.0), classes, torch.zeros(33, 2, 3)), 3
    )
    return root


def run_training(data: Path, run: Path, settings: Recipe, **options: Any) -> None:
    defaults: dict[str, Any] = {"labels": data / "labels", "model_kwargs": THIN, "workers": 0, "device": "cpu"}
    train(data / "train", run, "resnet10t", settings, **(defaults | options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "weights.pth")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_both_targets_learn_and_leave_what_they_promise(data: Path, tmp_path: Path) -> None:
    for name in ("scenes-single", "scenes-relabel"):
        run = tmp_path / name
        run_training(data, run, recipe(name, epochs=30), val=data / "val")
        metrics = read_metrics(run)
        assert [m["epoch"] for m in metrics] == list(range(1, 31))
        assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[-1]["top1"] > 60  # chance is 33
        assert metrics[-1]["val"]["images"] == 9
        for file in ("weights.safetensors", "weights.pth", "last.pt"):
            result = evaluate_checkpoint(data / "val", checkpoint=run / file, workers=0, device="cpu")
            assert result is not None and result["top1"] == metrics[-1]["val"]["top1"]
        assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((run / "run.json").read_text())["recipe"]["target"] == recipe(name).target


def test_label_maps_and_not_folders_are_what_is_learnt(data: Path, tmp_path: Path) -> None:
    folder = find_images(data / "train")
    shifted = torch.from_numpy((folder.targets + 1) % 3).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    maps = LabelMaps(torch.full(shifted.shape, 8.0), shifted, torch.zeros(33, 2, 3))
    write_label_set(tmp_path / "labels", folder.keys, maps, 3)
    run_training(data, tmp_path / "run", recipe(epochs=20), labels=tmp_path / "labels")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["loss"] < 0.9 and last["top1"] < 30  # it says what the maps say, which is never the folder's class


def test_same_seed_same_weights_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(data, tmp_path / name, recipe("scenes-relabel", f"seed={seed}"))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["fc.weight"], weights(tmp_path / "c")["fc.weight"])


@pytest.mark.parametrize("workers", [0, 1])
def test_label_set_that_does_not_fit_is_read_by_the_workers_for_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    settings = recipe("scenes-relabel", "crops_per_image=2", epochs=2)
    with monkeypatch.context() as as_on_a_gpu:
        as_on_a_gpu.setattr(LabelStore, "to", functools.partialmethod(LabelStore.to, resident=True))
        run_training(data, tmp_path / "resident", settings)
    monkeypatch.setattr(LabelStore, "gather", None)  # never on the main thread
    run_training(data, tmp_path / "read", settings, workers=workers)
    assert_same_weights(tmp_path / "resident", tmp_path / "read")


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


DROPPED = {**THIN, "drop_path_rate": 0.2}  # so that resuming must also restore the model's random numbers


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED)
    return run


def test_interrupted_and_resumed_training_is_the_uninterrupted_one(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=25)
    for stop, (epochs, extra_s) in enumerate([(2, 0.0), (6, 0.01), (9, 0.03)]):
        watcher = stop_in(tmp_path / "parts", epochs, extra_s)
        with pytest.raises(Interrupted, match="--resume goes on"):
            run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=stop > 0)
        watcher.join()
        assert not (tmp_path / "parts" / "weights.pth").exists()
    run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, tmp_path / "parts")
    timeless = ("epoch", "step", "loss", "top1", "lr")
    of_parts, of_whole = read_metrics(tmp_path / "parts"), read_metrics(uninterrupted)
    assert [[m[k] for k in timeless] for m in of_parts] == [[m[k] for k in timeless] for m in of_whole]


def command(data: Path, run: Path, *more: str) -> list[str]:
    options = [f"--model-kwargs={key}={value}".replace(" ", "") for key, value in DROPPED.items()]
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
        assert checkpoint.load(run / "last.pt")["step"] >= 4 * min(attempt, 1)  # what there is is whole
        if torn == 3:
            break
    assert torn == 3, "no process was killed while it wrote"
    assert not (run / "weights.pth").exists()
    run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, run)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, 26))
    assert not list(run.glob(".*.tmp"))


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
        pytest.raises(InputError, match=r"still holds the one before it\. Free the disk"),
    ):
        run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert (run / "last.pt").read_bytes() == before
    run_training(data, run, recipe(epochs=25), model_kwargs=DROPPED, resume=True)
    assert_same_weights(uninterrupted, run)


def test_float16_scales_the_loss_and_resumes_with_its_scale(data: Path, tmp_path: Path) -> None:
    options = {"model_kwargs": DROPPED, "amp": True, "amp_dtype": "float16"}
    run_training(data, tmp_path / "whole", recipe(epochs=9), **options)
    watcher = stop_in(tmp_path / "parts", 2, 0.0)
    with pytest.raises(Interrupted):
        run_training(data, tmp_path / "parts", recipe(epochs=9), **options)
    watcher.join()
    state = checkpoint.load(tmp_path / "parts" / "last.pt")
    assert state["scaler"]["scale"] > 1 and state["scaler"]["_growth_tracker"] > 0
    run_training(data, tmp_path / "parts", recipe(epochs=9), resume=True, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_several_crops_an_image_train_and_resume_exactly(data: Path, tmp_path: Path) -> None:
    settings = recipe("scenes-relabel", "crops_per_image=4", epochs=9)
    run_training(data, tmp_path / "whole", settings)
    watcher = stop_in(tmp_path / "parts", 2, 0.01)
    with pytest.raises(Interrupted):
        run_training(data, tmp_path / "parts", settings)
    watcher.join()
    run_training(data, tmp_path / "parts", settings, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert [m["step"] for m in read_metrics(tmp_path / "whole")] == [4 * epoch for epoch in range(1, 10)]


def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *command(data, run)], cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "the same command with --resume goes on" in stderr and "Traceback" not in stderr
    assert checkpoint.load(run / "last.pt")["step"] > 0


def test_sigterm_to_the_whole_process_group_saves_the_state_though_decoding_workers_are_in_it(
    data: Path, tmp_path: Path
) -> None:
    """As torchrun passes it on where a cluster takes the machine back."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *command(data, run), "--workers=2"],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "the same command with --resume goes on" in stderr and "a decoding process died" not in stderr
    assert checkpoint.load(run / "last.pt")["step"] > 0


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


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_within_an_epoch_goes_on_from_what_was_saved_in_it(data: Path, tmp_path: Path, processes: int) -> None:
    settings = recipe("scenes-relabel", "batch_size=4", "ema=0.9", epochs=9)  # 8 steps an epoch, a look at the 20th
    steps, options = 8, {"model_kwargs": DROPPED, "save_every": 1e-9}
    assert exit_codes(start(processes, data, tmp_path / "whole", settings, **options)) == [0] * processes
    run = tmp_path / "killed"
    started = start(processes, data, run, settings, **options)
    while not (run / "last.pt").exists() or checkpoint.load(run / "last.pt")["step"] % steps == 0:
        assert all(process.is_alive() for process in started)
    for process in started:
        process.kill()
        process.join()
    assert checkpoint.load(run / "last.pt")["step"] % steps != 0 and not (run / "weights.pth").exists()
    assert exit_codes(start(processes, data, run, settings, **options, resume=True)) == [0] * processes
    assert_same_weights(tmp_path / "whole", run)
    assert [m["loss"] for m in read_metrics(run)] == [m["loss"] for m in read_metrics(tmp_path / "whole")]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_that_fails_costs_nothing_of_what_was_learnt(data: Path, tmp_path: Path, processes: int) -> None:
    settings = recipe("scenes-relabel", "eval_epochs=1")

    def codes(run: Path, val: Path, resume: bool = False) -> list[int]:
        return exit_codes(start(processes, data, run, settings, val=val, model_kwargs=DROPPED, resume=resume))

    assert codes(tmp_path / "whole", data / "val") == [0] * processes
    torn = shutil.copytree(data / "val", tmp_path / "val") / "red" / "1.JPEG"
    torn.write_bytes(torn.read_bytes()[:300])
    run = tmp_path / "run"
    assert codes(run, tmp_path / "val") == [1] * processes
    assert checkpoint.load(run / "last.pt")["step"] == 4 and read_metrics(run) == [], "learnt and not yet evaluated"
    shutil.copy(data / "val" / "red" / "1.JPEG", torn)
    assert codes(run, tmp_path / "val", resume=True) == [0] * processes
    assert_same_weights(tmp_path / "whole", run)
    of_run, of_whole = read_metrics(run), read_metrics(tmp_path / "whole")
    assert [(m["epoch"], m["loss"], m["val"]) for m in of_run] == [(m["epoch"], m["loss"], m["val"]) for m in of_whole]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_torchrun_and_all_its_processes_saves_the_state(data: Path, tmp_path: Path, number: int) -> None:
    """As a terminal sends it, or a cluster; torchrun then sends a SIGTERM of its own to those that have one already."""
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launch, *command(data, run)],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0 and "the same command with --resume goes on" in stderr, stderr
    assert 4 <= checkpoint.load(run / "last.pt")["step"] < 100 and not (run / "weights.pth").exists()


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


def test_two_gloo_processes_are_one_but_for_rounding(data: Path, tmp_path: Path) -> None:
    # To the last bit the same: images and crops (test_crops), steps, rates, and what is counted. Gradients are the mean of
    # two halves' means, which rounds otherwise; and batch norm, which sees half a batch in each, is left out here
    settings = ("optimizer=sgd", "lr=0.05", "epochs=3")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--val", str(data / "val"), "--model-kwargs=norm_layer=groupnorm1", "--model-kwargs=drop_path_rate=0"]
    done = subprocess.run(
        [*launch, *command(data, tmp_path / "two", *options, *(f"--set={setting}" for setting in settings))],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kwargs = {**THIN, "drop_path_rate": 0, "norm_layer": "groupnorm1"}
    run_training(data, tmp_path / "one", recipe("scenes-relabel", *settings), val=data / "val", model_kwargs=kwargs)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == 3 and one[-1]["val"]["images"] == 9
    for a, b in zip(one, two, strict=True):
        assert all(a.get(name) == b.get(name) for name in ("epoch", "step", "lr", "top1", "val"))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    start = timm.create_model("resnet10t", num_classes=3, **kwargs).state_dict()
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(value, weights(tmp_path / "two")[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(start["fc.weight"], weights(tmp_path / "one")["fc.weight"])


def test_image_without_a_label_map_stops_the_run_at_the_start(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copy(tmp_path / "train" / "red" / "0.JPEG", tmp_path / "train" / "red" / "new.JPEG")
    with pytest.raises(InputError, match=r"1 of 34 images .* no label map .*red/new\.JPEG"):
        train(tmp_path / "train", tmp_path / "run", "resnet10t", recipe(), labels=data / "labels", model_kwargs=THIN)
    assert not (tmp_path / "run").exists()


def test_images_that_annotate_could_not_read_are_left_out_and_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    (tmp_path / "train" / "red" / "torn.JPEG").write_text("no image")
    shutil.copytree(data / "labels", tmp_path / "labels")
    lines = read_shard_lines(tmp_path / "labels")
    whole = lines[0]
    lines[0] = type(whole)(whole.shard, whole.file, whole.rows, whole.sha256, ("red/torn.JPEG",))
    write_shard_lines(tmp_path / "labels", lines)
    options = {"labels": tmp_path / "labels", "model_kwargs": THIN, "workers": 0, "device": "cpu"}
    train(tmp_path / "train", tmp_path / "run", "resnet10t", recipe(), **options)  # type: ignore[arg-type]
    assert "1 images are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (recipe(), {"labels": None}, "reads label maps; name their folder with --labels"),
        (recipe("scenes-single", "batch_size=64"), {}, "has 33 images, fewer than one batch of 64"),
        (recipe(), {"labels": Path("/nonexistent/labels")}, "is no label set"),
        (recipe(), {"sync_bn": True}, "--sync-bn needs CUDA"),
        (recipe(), {"save_every": 0.0}, r"--save-every 0\.0: expected a positive number of minutes"),
        (recipe("scenes-relabel", "optimizer=sdg"), {}, "optimizer = 'sdg': .*list_optimizers"),
    ],
)
def test_run_that_cannot_start_says_why(
    data: Path, tmp_path: Path, settings: Recipe, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(data, tmp_path / "run", settings, **options)


@pytest.mark.parametrize(
    ("kwargs", "settings", "message"),
    [
        ({}, [], r"vit_tiny_patch16_224 takes no images of image_size = 16 .*--model-kwargs img_size=16"),
        ({"img_size": 16}, ["eval_size=32"], r"takes no images of eval_size = 32 .*; set eval_size to"),
    ],
)
def test_sizes_that_the_model_does_not_take_are_refused_at_the_start(
    data: Path, tmp_path: Path, kwargs: dict[str, Any], settings: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(
            data / "train",
            tmp_path / "run",
            "vit_tiny_patch16_224",
            recipe("scenes-single", *settings),
            model_kwargs={"depth": 1, **kwargs},
            device="cpu",
        )
    assert not (tmp_path / "run").exists()


def test_validation_images_of_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "val", tmp_path / "val")
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rot")
    with pytest.raises(InputError, match="rot is not red"):
        run_training(data, tmp_path / "run", recipe(), val=tmp_path / "val")


def test_run_folder_is_not_taken_twice(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path, recipe())
    with pytest.raises(InputError, match="holds a run already; go on with it by --resume"):
        run_training(data, tmp_path, recipe())
    with pytest.raises(InputError, match=r"other settings \(recipe\.lr 0\.006, now 0\.5\)"):
        run_training(data, tmp_path, recipe("scenes-relabel", "lr=0.5"), resume=True)


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path / "a", recipe())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run_training(data, tmp_path / "b", recipe(), resume=True)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_cannot_be_read_is_named_in_one_line(data: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    torn = tmp_path / "train" / "red" / "0.JPEG"
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(InputError) as caught:
        train(tmp_path / "train", tmp_path / "run", "resnet10t", recipe("scenes-single"), model_kwargs=THIN, workers=workers)
    assert str(caught.value).startswith(f"{torn}: ") and "\n" not in str(caught.value)
