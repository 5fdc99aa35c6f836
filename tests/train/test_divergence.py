"""A loss that is not finite: exactly which step and images the error names, and what is left to resume from."""

import json
import math
from pathlib import Path

import pytest
import torch

from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.conftest import THIN, model_options
from tests.label_sets import write_label_set
from tests.processes import relabel_in_two
from tests.train.runs import before_each_image, train_images
from train.recipe import load_recipe

SETTINGS = ["image_size=16", "eval_size=16", "warmup_epochs=0", "optimizer=sgd", "schedule=constant", "epochs=3"]


def with_infinite_score(folder: ImageSet, key: str, labels: Path) -> Path:
    """Write a label set in which one image's map has an infinite score, so that the loss of its batch is not finite."""
    classes = torch.from_numpy(folder.targets).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    scores = torch.full(classes.shape, 4.0)
    scores[folder.keys.index(key)] = torch.inf
    write_label_set(labels, folder.keys, LabelMaps(scores, classes, torch.zeros(len(folder), 2, 3)), 3)
    return labels


@pytest.mark.parametrize("key", ["cat/cat_0.JPEG", "dog/dog_1.JPEG", "dog/dog_4.JPEG", "eel/eel_2.JPEG"])
def test_first_batch_whose_loss_is_not_finite_is_named_although_losses_are_checked_later(
    image_folder: Path, tmp_path: Path, key: str
) -> None:
    labels = with_infinite_score(find_images(image_folder), key, tmp_path / "labels")
    recipe = load_recipe("scenes-relabel", [*SETTINGS, "batch_size=2", "lr=0.01"])  # 4 steps per epoch, then one check
    keys, read = find_images(image_folder).keys, []
    with (
        before_each_image(lambda index: read.append(keys[index])),
        pytest.raises(InputError, match=r"the loss is not finite in step \d+ \(epoch \d, lr 0\.01\)") as caught,
    ):
        train_images(image_folder, tmp_path / "run", recipe, labels=labels, model_kwargs=THIN)
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    batches = [read[i : i + 2] for i in range(0, len(read), 2)]  # of each step, as the run read its images
    step = next(number for number, batch in enumerate(batches, start=1) if key in batch)
    assert len(batches) == 4 * math.ceil(step / 4), "the run goes on to the check at the end of the epoch"
    assert found == {"step": step, "epoch": math.ceil(step / 4), "lr": 0.01, "keys": batches[step - 1]}
    assert all(named in str(caught.value) for named in found["keys"])
    assert f"in step {step} (epoch {math.ceil(step / 4)}," in str(caught.value)
    assert f"The label map of {key} in {labels} is not finite; `relabel verify {labels}`" in str(caught.value)


@pytest.mark.slow
def test_of_several_processes_only_the_one_with_the_bad_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    labels = with_infinite_score(find_images(image_folder), "dog/dog_3.JPEG", tmp_path / "labels")
    settings = [f"--set={setting}" for setting in (*SETTINGS, "batch_size=4", "lr=0.01")]
    kwargs = model_options(THIN)
    where = ["--labels", labels, "--run-dir", tmp_path / "run", "--arch", "resnet10t", "--recipe", "scenes-relabel"]
    both = relabel_in_two("train", image_folder, *where, *kwargs, *settings, "--device=cpu", "--workers=0")
    assert [done.returncode for done in both] == [1, 1]
    assert any("the loss is not finite in step" in done.stderr for done in both), both
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert "dog/dog_3.JPEG" in found["keys"] and len(found["keys"]) == 2, "its share of the batch"


def test_large_rate_stops_the_run_and_leaves_the_last_good_state(image_folder: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "batch_size=8", "lr=1e30"]  # one step per epoch; the first loss is finite
    recipe = load_recipe("scenes-single", settings)
    with pytest.raises(InputError, match=r"in step 2 \(epoch 2, lr 1e\+30\), on .* and 4 more, all in .*last\.pt holds"):
        train_images(image_folder, tmp_path / "run", recipe, model_kwargs=THIN)
    state = load_torch_file(tmp_path / "run" / "last.pt")
    assert state["step"] == 1 and all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert not (tmp_path / "run" / "weights.pth").exists()


def test_initial_weights_that_give_no_finite_loss_are_named(
    image_folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    weights = torch.load(tiny_checkpoint, weights_only=True)
    weights["fc.weight"].fill_(3e38)
    torch.save(weights, tmp_path / "large.pth")
    recipe = load_recipe("scenes-single", [*SETTINGS, "batch_size=8"])
    with pytest.raises(InputError, match=r"in step 1 .*the first step, so the lr is not the reason: .* in .*large\.pth may"):
        train_images(image_folder, tmp_path / "run", recipe, model_kwargs=THIN, initial_weights=tmp_path / "large.pth")


def test_error_does_not_refer_to_a_file_that_could_not_be_written(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "diverged.json").mkdir(parents=True)
    recipe = load_recipe("scenes-single", [*SETTINGS, "batch_size=8", "lr=1e30"])
    with pytest.raises(InputError, match=r"in step 2 .* and 4 more, which could not be written to .*diverged\.json \("):
        train_images(image_folder, tmp_path / "run", recipe, model_kwargs=THIN)


def test_weights_that_overflow_in_the_last_step_before_saving_are_not_saved(image_folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe("scenes-single", [*SETTINGS, "batch_size=8", "lr=1e30", "weight_decay=1e12"])
    with pytest.raises(InputError, match=r"weights are not finite after step 1 \(lr 1e\+30\).* Nothing was saved yet"):
        train_images(image_folder, tmp_path / "run", recipe, model_kwargs=THIN)
    assert not (tmp_path / "run" / "last.pt").exists()
