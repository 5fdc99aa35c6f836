"""A loss that is not finite: which step and which images, exactly, and what is left to go on from."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.conftest import REPOSITORY, THIN, model_options
from tests.label_sets import write_label_set
from train.loop import train
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe
from train.seeds import seed_of

SETTINGS = ["image_size=16", "eval_size=16", "warmup_epochs=0", "optimizer=sgd", "schedule=constant", "epochs=3"]


def run_training(images: Path, run: Path, recipe: Recipe, **options: Any) -> None:
    train(images, run, "resnet10t", recipe, TrainOptions(model_kwargs=THIN, workers=0, device="cpu", **options))


def poisoned(folder: ImageSet, key: str, labels: Path) -> Path:
    """A label set in which one image's map holds an infinite score, so that the loss of its batch is not finite."""
    classes = torch.from_numpy(folder.targets).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    scores = torch.full(classes.shape, 4.0)
    scores[folder.keys.index(key)] = torch.inf
    write_label_set(labels, folder.keys, LabelMaps(scores, classes, torch.zeros(len(folder), 2, 3)), 3)
    return labels


@pytest.mark.parametrize("key", ["cat/cat_0.JPEG", "dog/dog_1.JPEG", "dog/dog_4.JPEG", "eel/eel_2.JPEG"])
def test_first_batch_whose_loss_is_not_finite_is_named_though_the_look_comes_later(
    image_folder: Path, tmp_path: Path, key: str
) -> None:
    labels = poisoned(find_images(image_folder), key, tmp_path / "labels")
    recipe = load_recipe("scenes-relabel", [*SETTINGS, "batch_size=2", "lr=0.01"])  # 4 steps per epoch, one look
    with pytest.raises(InputError, match=r"the loss is not finite in step \d+ \(epoch \d, lr 0\.01\)") as caught:
        run_training(image_folder, tmp_path / "run", recipe, labels=labels)
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert key in found["keys"] and len(found["keys"]) == 2
    assert all(named in str(caught.value) for named in found["keys"])
    assert f"in step {found['step']} (epoch {found['epoch']}," in str(caught.value)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed_of(0, found["epoch"] - 1))).tolist()
    assert order.index(find_images(image_folder).keys.index(key)) // 2 == (found["step"] - 1) % 4


def test_of_several_processes_only_the_one_with_the_bad_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    labels = poisoned(find_images(image_folder), "dog/dog_3.JPEG", tmp_path / "labels")
    settings = [f"--set={setting}" for setting in (*SETTINGS, "batch_size=4", "lr=0.01")]
    kwargs = model_options(THIN)
    where = ["--labels", labels, "--run-dir", tmp_path / "run", "--arch", "resnet10t", "--recipe", "scenes-relabel"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pipeline", "train"]
    done = subprocess.run(
        [sys.executable, *launch, image_folder, *where, *kwargs, *settings, "--device=cpu", "--workers=0"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "the loss is not finite in step" in done.stderr, done.stderr
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert "dog/dog_3.JPEG" in found["keys"] and len(found["keys"]) == 2, "its share of the batch"


def test_large_rate_stops_the_run_and_leaves_the_last_good_state(image_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        "scenes-single", [*SETTINGS, "batch_size=8", "lr=1e30"]
    )  # one step per epoch; the first loss is finite
    with pytest.raises(InputError, match=r"in step 2 \(epoch 2, lr 1e\+30\), on .* and 4 more, all in .*last\.pt holds"):
        run_training(image_folder, tmp_path / "run", recipe)
    state = load_torch_file(tmp_path / "run" / "last.pt")
    assert state["step"] == 1 and all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert not (tmp_path / "run" / "weights.pth").exists()


def test_file_that_could_not_be_written_is_not_referred_to(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "diverged.json").mkdir(parents=True)
    recipe = load_recipe("scenes-single", [*SETTINGS, "batch_size=8", "lr=1e30"])
    with pytest.raises(InputError, match=r"in step 2 .* and 4 more, which could not be written to .*diverged\.json \("):
        run_training(image_folder, tmp_path / "run", recipe)


def test_weights_that_overflow_in_the_last_step_before_saving_are_not_saved(image_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("scenes-single", [*SETTINGS, "batch_size=8", "lr=1e30", "weight_decay=1e12"])
    with pytest.raises(InputError, match=r"weights are not finite after step 1 \(lr 1e\+30\).* Nothing was saved yet"):
        run_training(image_folder, tmp_path / "run", recipe)
    assert not (tmp_path / "run" / "last.pt").exists()
