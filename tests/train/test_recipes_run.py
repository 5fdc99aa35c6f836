"""Every recipe has the loss that it should, resumes exactly, and sees the same images in one process as in two."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import MIRRORED, LabelRegions
from relabel.models.weights import load_torch_file, read_weights
from relabel.runtime.errors import InputError
from tests.conftest import THIN, Relabel, model_options, write_images
from tests.label_sets import write_label_set
from tests.processes import relabel_in_two
from tests.train.runs import THIN as STUDENT
from tests.train.runs import interrupted_at_image, train_images
from train.evaluation.run import EvalOptions, evaluate_checkpoint
from train.recipe import load_recipe, recipe_names
from train.run_dir.metrics import read_metrics

pytestmark = pytest.mark.slow

SIZES = ["image_size=16", "eval_size=16", "batch_size=4", "warmup_epochs=0"]
THIN_OPTIONS = [f"{name}={value}".replace(" ", "") for name, value in THIN.items()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nine images that the label set `undisturbed` was made from. Only to be read."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


# A model whose head has no weights, only these biases, predicts the same whatever crop it sees.
STUDENT_BIAS, TEACHER_BIAS = (0.5, -1.0, 2.0), (1.5, 0.25, -0.5)

# The same label map in every cell, so that every crop has it: two logits of each image, and the tail for the third class.
SCORES = [(2.0 + image, 1.0 - image / 2) for image in range(9)]
CLASSES = [(0, 2), (1, 0), (2, 1), (1, 2), (0, 1), (1, 0), (2, 0), (1, 2), (2, 1)]
TAILS = [-0.25 * image for image in range(9)]
FOLDERS = [0, 1, 1, 1, 1, 1, 2, 2, 2]  # of the nine images; six of the maps agree


def write_biases(path: Path, bias: tuple[float, ...], **kwargs: Any) -> Path:
    weights = timm.create_model("resnet10t", num_classes=3, **kwargs).state_dict()
    torch.save(weights | {"fc.weight": torch.zeros_like(weights["fc.weight"]), "fc.bias": torch.tensor(bias)}, path)
    return path


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def target_by_hand(target: str, image: int) -> list[float]:
    """The probabilities that a recipe with this target trains any crop of the image towards."""
    if target == "folder":
        return [float(c == FOLDERS[image]) for c in range(3)]
    if target == "teacher":
        return softmax(TEACHER_BIAS)
    logits = [TAILS[image]] * 3
    for c, score in zip(CLASSES[image], SCORES[image], strict=True):
        logits[c] = score
    return (
        softmax(logits)
        if target.endswith("multi") or target == "regions"
        else [float(logit == max(logits)) for logit in logits]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_with_nothing_but_sizes_overridden_has_the_loss_by_hand(
    name: str, images: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    """CutMix changes nothing in it: a target is mixed with that of one other image, and each image is mixed into one."""
    keys = find_images(images).keys
    maps = [torch.tensor(v).view(9, -1, 1, 1).expand(9, -1, 3, 5).contiguous() for v in (SCORES, CLASSES, TAILS)]
    recipe = load_recipe(name)
    stored: LabelMaps | LabelRegions = LabelMaps(maps[0], maps[1], maps[2].squeeze(1))
    if recipe.reads_regions:  # two of every image, one of them mirrored
        scores, classes, tail = (torch.tensor(v).view(9, 1, -1).expand(9, 2, -1) for v in (SCORES, CLASSES, TAILS))
        boxes = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.2, 0.4, 0.8, 1.0]]).expand(9, 2, 4)
        flags = torch.tensor([[0, MIRRORED]]).expand(9, 2)
        stored = LabelRegions(boxes, flags, scores, classes, tail[:, :, 0], torch.full((9,), 2))
    write_label_set(tmp_path / "labels", keys, stored, 3)
    options = ["--initial-weights", write_biases(tmp_path / "student.pth", STUDENT_BIAS, **STUDENT)]
    options += ["--labels", tmp_path / "labels"] if recipe.needs_labels else []
    if recipe.target == "teacher":
        teacher = write_biases(tmp_path / "teacher.pth", TEACHER_BIAS, **THIN)
        options += ["--teacher=resnet10t", f"--teacher-checkpoint={teacher}", "--teacher-input-size=32x56"]
        options += [f"--teacher-kwargs={pair}" for pair in THIN_OPTIONS]
    trained = [image for image in range(9) if not recipe.confirmed_only or CLASSES[image][0] == FOLDERS[image]]
    done = relabel_here(
        *("train", images, "--run-dir", tmp_path / "run", "--arch=resnet10t", "--recipe", name, *model_options(STUDENT)),
        *options,
        *(f"--set={setting}" for setting in [*SIZES, f"batch_size={len(trained)}", "epochs=2"]),  # one step per epoch
        *(["--set=cutmix_off_epochs=1"] if recipe.cutmix else []),
        *(["--set=crops_per_image=1"] if recipe.reads_regions else []),  # so that an epoch reads every image
        *("--workers=0", "--device=cpu", "--val", images),
    )
    assert done.returncode == 0, done.stderr
    first, second = read_metrics(tmp_path / "run")
    losses = []
    for image in trained:
        smoothed = [0.9 * p + 0.1 / 3 for p in target_by_hand(recipe.target, image)]
        target = smoothed if name == "label-smoothing" else target_by_hand(recipe.target, image)
        losses.append(-sum(p * math.log(q) for p, q in zip(target, softmax(STUDENT_BIAS), strict=True)))
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert first["top1"] == pytest.approx(100 * [FOLDERS[image] for image in trained].count(2) / len(trained))
    assert (first["epoch"], second["epoch"]) == (1, 2) and second["loss"] != first["loss"], "the weights have changed"
    assert ("3 images are left out: " in done.stdout) == recipe.confirmed_only


def run_training(images: Path, run: Path, recipe: str, settings: list[str], **options: Any) -> None:
    train_images(images, run, load_recipe(recipe, [*SIZES, *settings]), **options)


def state_of(path: Path, entry: str = "state_dict") -> dict[str, torch.Tensor]:
    """The tensors of weights.pth, or an entry of last.pt."""
    content = load_torch_file(path)
    return content if path.name == "weights.pth" else content[entry]


def test_recipe_that_starts_from_pretrained_weights_refuses_random_ones(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"give --pretrained with an --arch .*resnetv2_50x1_bit\.goog_in21k, or --initial"):
        run_training(images, tmp_path / "run", "relabel-cutmix-in21k", ["epochs=7"], labels=undisturbed)


def test_pretrained_weights_of_other_classes_get_a_head_for_the_classes_of_the_images(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    seven_classes = tmp_path / "seven.pth"
    torch.save(timm.create_model("resnet10t", num_classes=7, **STUDENT).state_dict(), seven_classes)
    settings = ["epochs=2", "cutmix_off_epochs=1"]
    options = {"labels": undisturbed, "initial_weights": seven_classes}
    run_training(images, tmp_path / "run", "relabel-cutmix-in21k", settings, **options)
    assert state_of(tmp_path / "run" / "weights.pth")["fc.weight"].shape == (3, 16)


def test_average_of_the_weights_is_what_is_evaluated_and_kept(images: Path, tmp_path: Path) -> None:
    plain = ["schedule=constant", "batch_size=9"]  # one step an epoch
    run_training(images, tmp_path / "first", "single", [*plain, "epochs=1"])
    run_training(images, tmp_path / "both", "single", [*plain, "epochs=2", "ema=0.9"], val=images)
    first, second = state_of(tmp_path / "first" / "weights.pth"), state_of(tmp_path / "both" / "last.pt")
    kept = state_of(tmp_path / "both" / "weights.pth")
    decay = 1 - 2 ** (-2 / 3)  # timm's warm-up of the decay, in its second step
    for name, average in kept.items():
        if average.is_floating_point():
            torch.testing.assert_close(average, decay * first[name] + (1 - decay) * second[name])
    assert not torch.equal(kept["conv1.0.weight"], second["conv1.0.weight"])
    for file in ("weights.pth", "last.pt"):
        result = evaluate_checkpoint(images, EvalOptions(checkpoint=tmp_path / "both" / file, workers=0, device="cpu"))
        assert result is not None and result["top1"] == read_metrics(tmp_path / "both")[-1]["val"]["top1"]
    found = read_weights(tmp_path / "both" / "last.pt")
    assert all(torch.equal(found[name], average) for name, average in kept.items())


EVERYTHING = ["epochs=25", "cutmix=0.7", "cutmix_target=regions", "ema=0.9", "label_smoothing=0.1", "folder_share=0.2"]


@pytest.mark.slow
def test_resumed_run_with_cutmix_jitter_and_average_is_the_uninterrupted_one(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_training(images, tmp_path / "whole", "relabel-cutmix", EVERYTHING, labels=undisturbed)
    with interrupted_at_image(27):  # within an epoch of two steps with 4 images each
        run_training(images, tmp_path / "parts", "relabel-cutmix", EVERYTHING, labels=undisturbed)
    run_training(images, tmp_path / "parts", "relabel-cutmix", EVERYTHING, labels=undisturbed, resume=True)
    for name, entry in (("last.pt", "state_dict"), ("last.pt", "state_dict_ema"), ("weights.pth", "")):
        whole, parts = (state_of(tmp_path / run / name, entry) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)


VIT: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}  # no batch norm


@pytest.mark.slow
def test_two_processes_train_a_vit_on_tokens_as_one_does(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    # sums over the batch are in another order, so the last bits differ; crops, colours, rectangles and pairs are the same
    settings = [*SIZES, "epochs=9", "batch_size=8", "optimizer=sgd", "lr=0.1", "token_weight=0.5", "ema=0.5"]
    settings.append("cutmix_target=regions")
    recipe = load_recipe("relabel-cutmix", settings)
    train_images(images, tmp_path / "one", recipe, "vit_tiny_patch16_224", labels=undisturbed, model_kwargs=VIT)
    command = ["train", images, "--run-dir", tmp_path / "two", "--arch=vit_tiny_patch16_224", "--recipe=relabel-cutmix"]
    command += [*model_options(VIT), *(f"--set={s}" for s in settings)]
    both = relabel_in_two(*command, "--labels", undisturbed, "--workers=0", "--device=cpu")
    assert [done.returncode for done in both] == [0, 0], both
    one, two = state_of(tmp_path / "one" / "weights.pth"), state_of(tmp_path / "two" / "weights.pth")
    assert one.keys() == two.keys() == timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT).state_dict().keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
    assert [m["top1"] for m in read_metrics(tmp_path / "one")] == [m["top1"] for m in read_metrics(tmp_path / "two")]
