"""The models that can be evaluated, and what is said of those that cannot."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.models.card import ModelCard
from relabel.runtime.errors import InputError
from tests.slow_loop import PREPROCESSING, THIN, save_run
from train.evaluation.eval_model import load_eval_model
from train.run_dir import checkpoint


@pytest.fixture
def folder(image_folder: Path) -> ImageSet:
    return find_images(image_folder)


def test_checkpoint_of_torchvisions_names_within_ddp_loads_by_arch(folder: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=3).eval()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    published = {"epoch": 300, "arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor(78.9), "optimizer": {}}
    torch.save(published, tmp_path / "relabel.pth.tar")
    subject = load_eval_model(tmp_path / "relabel.pth.tar", "resnet18", None, folder)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(subject.classifier(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert (subject.classes, subject.loss) == (("cat", "dog", "eel"), "ce")
    with pytest.raises(InputError, match=r"relabel\.pth\.tar does not say which model it is of; name it with --arch"):
        load_eval_model(tmp_path / "relabel.pth.tar", None, None, folder)


def test_run_says_its_own_arch_classes_view_and_loss(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    card = ModelCard("resnet10t", THIN, ("cat", "dog", "eel"), PREPROCESSING, "bce")
    checkpoint.save_weights(tmp_path / "weights.pth", classifier.state_dict(), card)
    subject = load_eval_model(tmp_path / "weights.pth", None, None, folder)
    assert (subject.arch, subject.classes, subject.preprocessing, subject.loss) == (
        "resnet10t",
        card.classes,
        PREPROCESSING,
        "bce",
    )
    other = load_eval_model(tmp_path / "weights.pth", "resnet50", None, folder, size=32, crop=0.5)
    assert (other.arch, other.preprocessing.size, other.preprocessing.crop) == ("resnet10t", 32, 0.5), "a run knows better"


def test_safetensors_load_by_arch(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    safetensors.torch.save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_eval_model(tmp_path / "weights.safetensors", "resnet10t", THIN, folder).classifier.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in classifier.state_dict().items())


def test_run_of_other_classes_is_refused_with_those_that_differ(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    weights = save_run(tmp_path / "weights.pth", classifier, ("cow", "dog", "emu"))
    with pytest.raises(InputError, match=r"classes of .*weights\.pth: .*expected cow, found cat; expected emu, found eel"):
        load_eval_model(weights, None, None, folder)
