"""A teacher sees crops at its own size, mean and standard deviation; unusable teachers are rejected."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from relabel.images.image_set import ImageSet
from relabel.models.card import ModelCard
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.errors import InputError
from tests.label_sets import named_images
from train.recipe import load_recipe
from train.run_dir import checkpoint
from train.teacher import TeacherChoice, load_teacher

THIN = {"stem_width": 8, "channels": (8, 8, 8, 16)}
CPU = torch.device("cpu")
RECIPE = load_recipe("distillation")


@pytest.fixture
def folder() -> ImageSet:
    return named_images(("cat", "dog", "eel"), ("cat/a.JPEG",), [0])


def save_weights(path: Path, classes: tuple[str, ...], card: bool) -> Any:
    """Save random weights of a thin model, and return timm's model."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=len(classes), **THIN).eval()
    preprocessing = Preprocessing(40, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    checkpoint.save_weights(path, model.state_dict(), ModelCard("resnet10t", THIN, classes, preprocessing) if card else None)
    return model


def test_teacher_from_a_relabel_checkpoint_sees_crops_at_its_evaluation_size(folder: ImageSet, tmp_path: Path) -> None:
    model = save_weights(tmp_path / "weights.pth", folder.classes, card=True)
    teacher = load_teacher(TeacherChoice(checkpoint=tmp_path / "weights.pth"), RECIPE, folder, CPU, autocast_dtype=None)
    assert teacher is not None and teacher.input_size == (40, 40)
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    resized = F.interpolate(images / 255, (40, 40), mode="bicubic", antialias=True)
    mean = torch.tensor(model.pretrained_cfg["mean"]).view(3, 1, 1)  # the model's own, as for the student
    std = torch.tensor(model.pretrained_cfg["std"]).view(3, 1, 1)
    torch.testing.assert_close(teacher(images), model((resized - mean) / std), atol=1e-4, rtol=1e-4)
    assert not teacher(images).requires_grad


def test_named_teacher_sees_crops_at_the_given_size_or_its_own(folder: ImageSet, tmp_path: Path) -> None:
    save_weights(tmp_path / "bare.pth", folder.classes, card=False)
    named = TeacherChoice("resnet10t", tmp_path / "bare.pth", THIN)
    teacher = load_teacher(named, RECIPE, folder, CPU, None)
    assert teacher is not None and teacher.input_size == (176, 176)
    resized = TeacherChoice("resnet10t", tmp_path / "bare.pth", THIN, (32, 48))
    teacher = load_teacher(resized, RECIPE, folder, CPU, None)
    assert teacher is not None and teacher.input_size == (32, 48)
    assert teacher(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).shape == (2, 3)


def test_unusable_teacher_is_rejected_with_the_reason(folder: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="name it with --teacher, or give --teacher-checkpoint"):
        load_teacher(None, RECIPE, folder, CPU, None)
    with pytest.raises(InputError, match="--teacher: the recipe's target is 'folder', which uses no teacher"):
        load_teacher(TeacherChoice("resnet10t"), load_recipe("single"), folder, CPU, None)
    save_weights(path, folder.classes, card=False)
    with pytest.raises(InputError, match="does not record which model it is; name the model with --teacher"):
        load_teacher(TeacherChoice(checkpoint=path), RECIPE, folder, CPU, None)
    save_weights(path, ("cat", "dog", "fox"), card=True)
    with pytest.raises(InputError, match="expected fox, found eel"):
        load_teacher(TeacherChoice(checkpoint=path), RECIPE, folder, CPU, None)
    save_weights(path, ("cat", "dog"), card=False)
    with pytest.raises(InputError, match="it has 2 classes"):
        load_teacher(TeacherChoice("resnet10t", path, THIN), RECIPE, folder, CPU, None)


def test_named_teacher_with_1000_classes_has_imagenets(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    names = tuple(f"own{i:03}" for i in range(1000))
    save_weights(path, names, card=False)
    named = TeacherChoice("resnet10t", path, THIN)
    by_number = named_images(tuple(map(str, range(1000))), ("0/a.JPEG",), [0])
    assert load_teacher(named, RECIPE, by_number, CPU, None) is not None
    message = r"not have the classes of the teacher resnet10t: .*expected n01440764, found own000"
    with pytest.raises(InputError, match=message):
        load_teacher(named, RECIPE, named_images(names, ("own000/a.JPEG",), [0]), CPU, None)
