"""The training loop on a few small images: it learns, resumes exactly, and rejects bad input at the start."""

import functools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import read_shard_lines, write_shard_lines
from relabel.labels.store import LabelStore
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.label_sets import write_label_set
from tests.processes import exit_codes
from tests.train.runs import (
    DROPPED,
    GROUP_NORM,
    assert_same_weights,
    interrupted_at_image,
    recipe,
    run_training,
    start,
    train_images,
    weights,
)
from train.evaluation.run import EvalOptions, evaluate_checkpoint
from train.recipe import Recipe
from train.run_dir.metrics import read_metrics


@pytest.mark.slow
def test_both_targets_learn_and_leave_all_files_of_a_run(data: Path, tmp_path: Path) -> None:
    for name in ("scenes-single", "scenes-relabel"):
        run = tmp_path / name
        run_training(data, run, recipe(name, epochs=30), val=data / "val")
        metrics = read_metrics(run)
        assert [m["epoch"] for m in metrics] == list(range(1, 31))
        assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[-1]["top1"] > 60  # chance is 33
        assert metrics[-1]["val"]["images"] == 9
        for file in ("weights.safetensors", "weights.pth", "last.pt"):
            result = evaluate_checkpoint(data / "val", EvalOptions(checkpoint=run / file, workers=0, device="cpu"))
            assert result is not None and result["top1"] == metrics[-1]["val"]["top1"]
        assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((run / "run.json").read_text())["recipe"]["target"] == recipe(name).target


def test_student_learns_the_label_maps_not_the_folders(data: Path, tmp_path: Path) -> None:
    folder = find_images(data / "train")
    shifted = torch.from_numpy((folder.targets + 1) % 3).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    maps = LabelMaps(torch.full(shifted.shape, 8.0), shifted, torch.zeros(33, 2, 3))
    write_label_set(tmp_path / "labels", folder.keys, maps, 3)
    run_training(data, tmp_path / "run", recipe(epochs=20), labels=tmp_path / "labels")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["loss"] < 0.9 and last["top1"] < 30  # it predicts the maps' class, which is never the folder's


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(data, tmp_path / name, recipe("scenes-relabel", f"seed={seed}"))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["fc.weight"], weights(tmp_path / "c")["fc.weight"])


@pytest.mark.parametrize("workers", [0, 1])
def test_label_set_too_large_for_memory_is_read_by_the_workers_and_gives_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    settings = recipe("scenes-relabel", "crops_per_image=2", epochs=2)
    with monkeypatch.context() as as_on_a_gpu:
        as_on_a_gpu.setattr(LabelStore, "to", functools.partialmethod(LabelStore.to, resident=True))
        run_training(data, tmp_path / "resident", settings)
    monkeypatch.setattr(LabelStore, "gather", None)  # never on the main thread
    run_training(data, tmp_path / "read", settings, workers=workers)
    assert_same_weights(tmp_path / "resident", tmp_path / "read")


@pytest.mark.slow
def test_float16_scales_the_loss_and_resumes_with_its_scale(data: Path, tmp_path: Path) -> None:
    options = {"model_kwargs": DROPPED, "amp": True, "amp_dtype": "float16"}
    run_training(data, tmp_path / "whole", recipe(epochs=9), **options)
    with interrupted_at_image(70):
        run_training(data, tmp_path / "parts", recipe(epochs=9), **options)
    state = load_torch_file(tmp_path / "parts" / "last.pt")
    assert state["scaler"]["scale"] > 1 and state["scaler"]["_growth_tracker"] > 0
    run_training(data, tmp_path / "parts", recipe(epochs=9), resume=True, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_several_crops_per_image_train_and_resume_exactly(data: Path, tmp_path: Path) -> None:
    settings = recipe("scenes-relabel", "crops_per_image=4", epochs=9)
    run_training(data, tmp_path / "whole", settings)
    with interrupted_at_image(20):  # 2 images of 4 crops in a batch
        run_training(data, tmp_path / "parts", settings)
    run_training(data, tmp_path / "parts", settings, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert [m["step"] for m in read_metrics(tmp_path / "whole")] == [4 * epoch for epoch in range(1, 10)]


@pytest.mark.slow
def test_two_gloo_processes_train_as_one_does_up_to_rounding(data: Path, tmp_path: Path) -> None:
    # Images and crops (test_crops), steps, learning rates and counts are the same to the last bit. Gradients are the mean of
    # the means of two halves, which rounds differently. The model has no batch norm, which would see half a batch in each
    settings = ("optimizer=sgd", "lr=0.05", "epochs=3")
    kwargs = {**GROUP_NORM, "drop_path_rate": 0}
    options: dict[str, Any] = {"val": data / "val", "model_kwargs": kwargs, "workers": 1}
    training = recipe("scenes-relabel", *settings)
    assert exit_codes(start(2, data, tmp_path / "two", training, **options)) == [0, 0]
    run_training(data, tmp_path / "one", training, **options)
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == 3 and one[-1]["val"]["images"] == 9
    for a, b in zip(one, two, strict=True):
        assert all(a.get(name) == b.get(name) for name in ("epoch", "step", "lr", "top1", "val"))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    untrained = timm.create_model("resnet10t", num_classes=3, **kwargs).state_dict()
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(value, weights(tmp_path / "two")[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(untrained["fc.weight"], weights(tmp_path / "one")["fc.weight"])


def test_image_without_a_label_map_stops_the_run_at_the_start(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copy(tmp_path / "train" / "red" / "0.JPEG", tmp_path / "train" / "red" / "new.JPEG")
    with pytest.raises(InputError, match=r"1 of 34 images .* no label map .*red/new\.JPEG"):
        train_images(tmp_path / "train", tmp_path / "run", recipe(), labels=data / "labels")
    assert not (tmp_path / "run").exists()


def test_images_that_annotate_could_not_read_are_left_out_with_a_message(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    (tmp_path / "train" / "red" / "torn.JPEG").write_text("no image")
    shutil.copytree(data / "labels", tmp_path / "labels")
    lines = read_shard_lines(tmp_path / "labels")
    whole = lines[0]
    lines[0] = type(whole)(whole.shard, whole.file, whole.rows, whole.sha256, ("red/torn.JPEG",))
    write_shard_lines(tmp_path / "labels", lines)
    with caplog.at_level(logging.INFO):
        train_images(tmp_path / "train", tmp_path / "run", recipe(), labels=tmp_path / "labels")
    assert "1 images are left out" in caplog.text


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (recipe(), {"labels": None}, "reads label maps; give a label set with --labels"),
        (recipe("scenes-single", "batch_size=64"), {}, "has 33 images, fewer than one batch of 64"),
        (recipe(), {"labels": Path("/nonexistent/labels")}, "is not a label set: missing manifest.json"),
        (recipe(), {"sync_bn": True}, "--sync-bn needs CUDA"),
        (recipe(), {"save_every": 0.0}, r"--save-every 0\.0: expected a positive number of minutes"),
        (recipe("scenes-relabel", "optimizer=sdg"), {}, "optimizer = 'sdg': .*list_optimizers"),
    ],
)
def test_run_that_cannot_start_gives_the_reason(
    data: Path, tmp_path: Path, settings: Recipe, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(data, tmp_path / "run", settings, **options)


@pytest.mark.parametrize(
    ("kwargs", "settings", "message"),
    [
        ({}, [], r"vit_tiny_patch16_224 does not accept images of image_size = 16 .*--model-kwargs img_size=16"),
        ({"img_size": 16}, ["eval_size=32"], r"does not accept images of eval_size = 32 .*; set eval_size to"),
    ],
)
def test_sizes_that_the_model_does_not_take_are_rejected_at_the_start(
    data: Path, tmp_path: Path, kwargs: dict[str, Any], settings: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_images(
            data / "train",
            tmp_path / "run",
            recipe("scenes-single", *settings),
            "vit_tiny_patch16_224",
            model_kwargs={"depth": 1, **kwargs},
        )
    assert not (tmp_path / "run").exists()


def test_validation_images_of_other_classes_are_rejected(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "val", tmp_path / "val")
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rot")
    with pytest.raises(InputError, match="expected red, found rot"):
        run_training(data, tmp_path / "run", recipe(), val=tmp_path / "val")


def test_run_directory_is_not_used_twice(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path, recipe())
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        run_training(data, tmp_path, recipe())
    with pytest.raises(InputError, match=r"holds a run with different settings \(recipe\.lr 0\.006, now 0\.5\)"):
        run_training(data, tmp_path, recipe("scenes-relabel", "lr=0.5"), resume=True)


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    run_training(data, tmp_path / "a", recipe())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run_training(data, tmp_path / "b", recipe(), resume=True)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b")


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named_in_one_line(data: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(data / "train", tmp_path / "train")
    torn = tmp_path / "train" / "red" / "0.JPEG"
    torn.write_bytes(torn.read_bytes()[:300])
    with pytest.raises(InputError) as caught:
        train_images(tmp_path / "train", tmp_path / "run", recipe("scenes-single"), workers=workers)
    assert str(caught.value).startswith(f"{torn}: ") and "\n" not in str(caught.value)


def test_batch_of_one_that_batch_norm_cannot_use_gets_a_message(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a batch of 1, .* Set a batch_size above 1, or a larger image_size"):
        run_training(data, tmp_path / "run", recipe("scenes-relabel", "batch_size=1"))
