"""The models that can be evaluated, and the errors for those that cannot."""

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


def test_ddp_checkpoint_with_torchvisions_names_loads_by_arch(folder: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=3).eval()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    published = {"epoch": 300, "arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor(78.9), "optimizer": {}}
    torch.save(published, tmp_path / "relabel.pth.tar")
    model = load_eval_model(tmp_path / "relabel.pth.tar", "resnet18", None, folder)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.classifier(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert (model.classes, model.loss) == (("cat", "dog", "eel"), "ce")
    with pytest.raises(InputError, match=r"relabel\.pth\.tar does not record which model it is; name the model with --arch"):
        load_eval_model(tmp_path / "relabel.pth.tar", None, None, folder)


def test_relabel_checkpoint_gives_its_own_arch_classes_preprocessing_and_loss(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    card = ModelCard("resnet10t", THIN, ("cat", "dog", "eel"), PREPROCESSING, "bce")
    checkpoint.save_weights(tmp_path / "weights.pth", classifier.state_dict(), card)
    model = load_eval_model(tmp_path / "weights.pth", None, None, folder)
    assert (model.arch, model.classes, model.preprocessing, model.loss) == (
        "resnet10t",
        card.classes,
        PREPROCESSING,
        "bce",
    )
    other = load_eval_model(tmp_path / "weights.pth", "resnet50", None, folder, size=32, crop=0.5)
    assert (other.arch, other.preprocessing.size, other.preprocessing.crop) == ("resnet10t", 32, 0.5), (
        "the model card wins over --arch"
    )


def test_safetensors_load_by_arch(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    safetensors.torch.save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_eval_model(tmp_path / "weights.safetensors", "resnet10t", THIN, folder).classifier.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in classifier.state_dict().items())


def test_relabel_checkpoint_of_other_classes_is_rejected_with_those_that_differ(folder: ImageSet, tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN)
    weights = save_run(tmp_path / "weights.pth", classifier, ("cow", "dog", "emu"))
    with pytest.raises(
        InputError, match=r"not have the classes of .*weights\.pth: .*expected cow, found cat; expected emu, found eel"
    ):
        load_eval_model(weights, None, None, folder)
