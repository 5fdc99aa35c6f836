"""Validation images are matched with the training images' classes by name."""

import json
import shutil
from pathlib import Path

import pytest

from relabel.runtime.errors import InputError
from tests.conftest import Relabel, model_options, write_images
from tests.train.runs import THIN, recipe
from train.options import TrainOptions
from train.run_dir.metrics import read_metrics
from train.training_set import TrainingSet, open_training_set


def opened(images: Path, val: Path, multilabels: Path | None = None) -> TrainingSet:
    options = TrainOptions(val=val, multilabels=multilabels)
    return open_training_set(images, recipe("scenes-single"), options, world=1)


@pytest.mark.parametrize("absent", ["removed", "empty"])
def test_class_without_validation_images_keeps_its_number(image_folder: Path, tmp_path: Path, absent: str) -> None:
    val = write_images(tmp_path / "val")
    shutil.rmtree(val / "dog")
    if absent == "empty":
        (val / "dog").mkdir()
    (tmp_path / "shown.json").write_text(
        json.dumps(
            {"images": {key: {"classes": ["dog"]} for key in ("cat/cat_0.JPEG", *(f"eel/eel_{i}.JPEG" for i in range(3)))}}
        )
    )
    data = opened(image_folder, val, tmp_path / "shown.json")
    assert data.val is not None and data.multilabels is not None
    assert (data.val.classes, data.val.targets.tolist()) == (("cat", "dog", "eel"), [0, 2, 2, 2])
    assert data.multilabels.classes.tolist() == [[False, True, False]] * 4


def test_validation_images_of_another_class_are_rejected(image_folder: Path, tmp_path: Path) -> None:
    val = write_images(tmp_path / "val")
    (val / "dog").rename(val / "fox")
    with pytest.raises(InputError, match=r"not have the classes of the training images in .*expected dog, found eel"):
        opened(image_folder, val)


def test_student_is_validated_on_some_of_its_classes(relabel_here: Relabel, image_folder: Path, tmp_path: Path) -> None:
    val = write_images(tmp_path / "val")
    shutil.rmtree(val / "cat")
    settings = ["image_size=16", "eval_size=16", "batch_size=3", "warmup_epochs=0", "epochs=1"]
    options = ["--recipe=scenes-single", "--arch=resnet10t", *model_options(THIN), *(f"--set={s}" for s in settings)]
    where = [image_folder, "--val", val, "--run-dir", tmp_path / "run"]
    finished = relabel_here("train", *where, *options, "--workers=0", "--device=cpu")
    assert finished.returncode == 0, finished.stderr
    assert "1 of 3 classes have no validation images" in finished.stdout
    metrics = read_metrics(tmp_path / "run")[-1]
    assert "top1" in str(metrics) and "among_folders" not in str(metrics)
