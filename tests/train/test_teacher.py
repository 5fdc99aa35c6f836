"""A teacher sees each crop at its own size and with its own mean and deviation; and who may teach whom."""

from pathlib import Path

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


def save_weights(path: Path, classes: tuple[str, ...], card: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=len(classes), **THIN).eval()
    preprocessing = Preprocessing(40, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    checkpoint.save_weights(path, model.state_dict(), ModelCard("resnet10t", THIN, classes, preprocessing) if card else None)
    return model


def test_teacher_of_a_run_of_ours_sees_crops_as_it_was_evaluated(folder: ImageSet, tmp_path: Path) -> None:
    model = save_weights(tmp_path / "weights.pth", folder.classes, card=True)
    teacher = load_teacher(TeacherChoice(checkpoint=tmp_path / "weights.pth"), RECIPE, folder, CPU, autocast_dtype=None)
    assert teacher is not None and teacher.input_size == (40, 40)
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    resized = F.interpolate(images / 255, (40, 40), mode="bicubic", antialias=True)
    mean = torch.tensor(model.pretrained_cfg["mean"]).view(3, 1, 1)  # the model's own, as the student's are
    std = torch.tensor(model.pretrained_cfg["std"]).view(3, 1, 1)
    torch.testing.assert_close(teacher(images), model((resized - mean) / std), atol=1e-4, rtol=1e-4)
    assert not teacher(images).requires_grad


def test_named_teacher_sees_crops_at_the_size_asked_for_or_its_own(folder: ImageSet, tmp_path: Path) -> None:
    save_weights(tmp_path / "bare.pth", folder.classes, card=False)
    named = TeacherChoice("resnet10t", tmp_path / "bare.pth", THIN)
    assert load_teacher(named, RECIPE, folder, CPU, None).input_size == (176, 176)
    asked = TeacherChoice("resnet10t", tmp_path / "bare.pth", THIN, (32, 48))
    teacher = load_teacher(asked, RECIPE, folder, CPU, None)
    assert teacher is not None and teacher.input_size == (32, 48)
    assert teacher(torch.zeros(2, 3, 24, 24, dtype=torch.uint8)).shape == (2, 3)


def test_teacher_that_cannot_teach_says_why(folder: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="name it with --teacher, or give --teacher-checkpoint"):
        load_teacher(None, RECIPE, folder, CPU, None)
    with pytest.raises(InputError, match="--teacher: the recipe's target is 'folder', which asks none"):
        load_teacher(TeacherChoice("resnet10t"), load_recipe("single"), folder, CPU, None)
    save_weights(path, folder.classes, card=False)
    with pytest.raises(InputError, match="does not say which model it is of; name it with --teacher"):
        load_teacher(TeacherChoice(checkpoint=path), RECIPE, folder, CPU, None)
    save_weights(path, ("cat", "dog", "fox"), card=True)
    with pytest.raises(InputError, match="expected fox, found eel"):
        load_teacher(TeacherChoice(checkpoint=path), RECIPE, folder, CPU, None)
    save_weights(path, ("cat", "dog"), card=False)
    with pytest.raises(InputError, match="it has 2 classes"):
        load_teacher(TeacherChoice("resnet10t", path, THIN), RECIPE, folder, CPU, None)


def test_named_teacher_of_1000_classes_knows_imagenets(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    names = tuple(f"own{i:03}" for i in range(1000))
    save_weights(path, names, card=False)
    named = TeacherChoice("resnet10t", path, THIN)
    by_number = named_images(tuple(map(str, range(1000))), ("0/a.JPEG",), [0])
    assert load_teacher(named, RECIPE, by_number, CPU, None) is not None
    with pytest.raises(InputError, match="the classes of the teacher resnet10t: .*expected n01440764, found own000"):
        load_teacher(named, RECIPE, named_images(names, ("own000/a.JPEG",), [0]), CPU, None)
