"""The training loop on a few small images: it learns, resumes exactly, and refuses at the start what cannot end well."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.image_sources import find_images
from pipeline.manifest import read_shard_lines, write_shard_lines
from pipeline.shards import LabelMaps
from tests.label_sets import write_label_set
from train import checkpoint
from train.evaluation.run import evaluate_checkpoint
from train.loop import Interrupted, train
from train.metrics import read_metrics
from train.recipe import Recipe, load

REPOSITORY = Path(__file__).parents[2]
THIN: dict[str, Any] = {"stem_width": 8, "channels": (8, 8, 8, 16), "zero_init_last": False}
CLASSES = ("blue", "green", "red")
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


def test_interrupted_and_resumed_training_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=25)
    run_training(data, tmp_path / "whole", settings, model_kwargs=DROPPED)
    for stop, (epochs, extra_s) in enumerate([(2, 0.0), (6, 0.01), (9, 0.03)]):
        watcher = stop_in(tmp_path / "parts", epochs, extra_s)
        with pytest.raises(Interrupted, match="--resume goes on"):
            run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=stop > 0)
        watcher.join()
        assert not (tmp_path / "parts" / "weights.pth").exists()
    run_training(data, tmp_path / "parts", settings, model_kwargs=DROPPED, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    timeless = ("epoch", "step", "loss", "top1", "lr")
    of_parts, of_whole = read_metrics(tmp_path / "parts"), read_metrics(tmp_path / "whole")
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


def test_killed_and_resumed_training_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other process has: sums in another order differ in their last bit
    try:
        run_training(data, tmp_path / "whole", recipe(epochs=25), model_kwargs=DROPPED)
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
    assert_same_weights(tmp_path / "whole", run)
    assert [m["epoch"] for m in read_metrics(run)] == list(range(1, 26))


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


def test_two_gloo_processes_train_on_the_same_images_with_the_same_result(data: Path, tmp_path: Path) -> None:
    # Batch norm sees half a batch in each process, so weights differ; what must not: images, steps, rates and class counts
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, *command(data, tmp_path / "two", "--set", "epochs=3")],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    run_training(data, tmp_path / "one", recipe(), model_kwargs=DROPPED)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [(m["epoch"], m["step"], m["lr"]) for m in one] == [(m["epoch"], m["step"], m["lr"]) for m in two]
    assert weights(tmp_path / "two")["fc.weight"].isfinite().all()


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
    ],
)
def test_run_that_cannot_start_says_why(
    data: Path, tmp_path: Path, settings: Recipe, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(data, tmp_path / "run", settings, **options)


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
