"""Checkpoints in the reference's published form are evaluated as torchvision evaluates them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from tests.conftest import Relabel

CENTRE_CROP = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_reference_checkpoint_gives_torchvisions_predictions(
    image_folder: Path, tmp_path: Path, relabel_here: Relabel, prefix: str
) -> None:
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    paths = sorted(image_folder.rglob("*.JPEG"))
    images = torch.stack([CENTRE_CROP(Image.open(path)) for path in paths])
    with torch.no_grad():
        model(images)  # sets batch norm's statistics
        model.eval().fc.bias -= model(images).mean(0)  # so that all classes are predicted
        predicted = model(images).argmax(1).tolist()
    assert set(predicted) == {0, 1, 2}
    for path, number in zip(paths, predicted, strict=True):
        (tmp_path / "val" / str(number)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "val" / str(number))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["lr"] = np.float64(0.05) * np.cos(0.5)  # as the reference's schedule sets it
    published = {
        "epoch": 300,
        "arch": "resnet18",
        "state_dict": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "accuracy": 72.5,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(published, tmp_path / "rn18.pth", _use_new_zipfile_serialization=bool(prefix))  # old files are not zips
    options = ["--arch", "resnet18.tv_in1k", "--checkpoint", tmp_path / "rn18.pth", "--device", "cpu", "--workers", "0"]
    done = relabel_here("eval", tmp_path / "val", *options)
    assert done.returncode == 0, done.stderr
    assert ["val", "top-1", "9", "100.00"] in [line.split() for line in done.stdout.splitlines()], done.stdout
