"""Metrics for TensorBoard: every epoch once, even in a resumed run; and the error if the package is missing."""

import sys
from pathlib import Path

import pytest

from relabel.runtime.errors import InputError
from tests.train.runs import train_images
from train.recipe import load_recipe
from train.run_dir.metrics import CURVES, read_metrics
from train.run_dir.tensorboard import FOLDER, open_writer, write_epoch


def test_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match="pip install tensorboard"):
        train_images(tmp_path / "nowhere", tmp_path / "run", load_recipe("scenes-single"), tensorboard=True)
    assert not (tmp_path / "run").exists()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / FOLDER)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_epoch_of_metrics_jsonl(image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = load_recipe("scenes-single", ["image_size=16", "eval_size=16", "batch_size=4", "epochs=3", "warmup_epochs=1"])
    (tmp_path / CURVES).mkdir()  # blocks the last file that is written for an epoch, so the run stops after the last epoch
    with pytest.raises(InputError, match=r"cannot write .*curves\.png"):
        train_images(image_folder, tmp_path, recipe, val=image_folder, tensorboard=True)
    (tmp_path / CURVES).rmdir()
    train_images(image_folder, tmp_path, recipe, val=image_folder, tensorboard=True, resume=True)
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")
    logged, metrics = scalars(tmp_path), read_metrics(tmp_path)
    epochs, losses = zip(*logged["loss"], strict=True)
    assert list(epochs) == [m["epoch"] for m in metrics] == [1, 2, 3]
    assert list(losses) == pytest.approx([m["loss"] for m in metrics])
    ((epoch, top1),) = logged["val/top1"]
    assert epoch == 3 and top1 == pytest.approx(metrics[-1]["val"]["top1"])


def test_epoch_that_a_resumed_run_trains_again_replaces_the_first(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for epochs, losses in ((0, [3.0, 2.0, 9.0]), (2, [1.0])):
        writer = open_writer(tmp_path, epochs)
        for epoch, loss in enumerate(losses, start=epochs + 1):
            write_epoch(writer, {"epoch": epoch, "loss": loss})
        writer.close()
    assert scalars(tmp_path)["loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
