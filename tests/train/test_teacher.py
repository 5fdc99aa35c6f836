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
    expected = model((resized - 0.5) / 0.5)  # as the card says, not as timm's settings of the model do
    torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)
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


def test_named_teacher_with_a_card_is_the_one_that_the_card_describes(folder: ImageSet, tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pth", folder.classes, card=True)
    named = TeacherChoice("resnet10t.c3_in1k", tmp_path / "weights.pth")  # the card has the arguments
    teacher = load_teacher(named, RECIPE, folder, CPU, None)
    assert teacher is not None and (teacher.input_size, teacher.mean) == ((40, 40), (0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"--teacher resnet18: .*weights.pth records that it is a checkpoint of resnet10t"):
        load_teacher(TeacherChoice("resnet18", tmp_path / "weights.pth"), RECIPE, folder, CPU, None)
    (tmp_path / "names.txt").write_text("dog\ncat\neel\n")
    contradicted = TeacherChoice(None, tmp_path / "weights.pth", classes=str(tmp_path / "names.txt"))
    with pytest.raises(InputError, match=r"--teacher-classes .*records other classes or another order .*leave --teacher-cl"):
        load_teacher(contradicted, RECIPE, folder, CPU, None)
    others = named_images(("ant", "bee", "fly"), ("ant/a.JPEG",), [0])
    with pytest.raises(InputError, match=r"expected cat, found ant"):
        load_teacher(named, RECIPE, others, CPU, None)


@pytest.mark.parametrize("card", [False, True])
def test_teachers_outputs_are_matched_with_the_images_by_name(folder: ImageSet, tmp_path: Path, card: bool) -> None:
    names = ("eel", "bat", "dog", "cat")
    model = save_weights(tmp_path / "weights.pth", names, card)
    (tmp_path / "names.txt").write_text("\n".join(names))
    choice = TeacherChoice("resnet10t", tmp_path / "weights.pth", THIN, (24, 24), str(tmp_path / "names.txt"))
    teacher = load_teacher(choice, RECIPE, folder, CPU, None)
    assert teacher is not None
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (teacher.mean, teacher.std))
    expected = model((images / 255 - mean) / std)[:, [3, 2, 0]]
    torch.testing.assert_close(teacher(images), expected, atol=1e-4, rtol=1e-4)


def test_teacher_without_names_is_warned_of_if_its_order_may_be_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = ("class1", "class2", "class10")
    save_weights(tmp_path / "weights.pth", classes, card=False)
    choice = TeacherChoice("resnet10t", tmp_path / "weights.pth", THIN)
    folder = named_images(classes, ("class1/a.JPEG",), [0])
    load_teacher(choice, RECIPE, folder, CPU, None)
    assert "the teacher resnet10t does not record its classes" in caplog.text
    assert "(class2 comes before class10)" in caplog.text and "with --teacher-classes FILE" in caplog.text


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
