"""The images that the training tests share, and a run without interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from tests.label_sets import write_label_set
from tests.train.runs import DROPPED, recipe, run_training

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 noisy images of three colours in train/, 9 in val/, and a 2x3 label map of each training image's colour."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 11), ("val", 3)):
        for channel, name in enumerate(CLASSES[::-1]):  # red is channel 0
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 80, size=(24, 30, 3))
                pixels[:, :, channel] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.JPEG")
    folder = find_images(root / "train")
    classes = torch.from_numpy(folder.targets).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    write_label_set(
        root / "labels", folder.keys, LabelMaps(torch.full(classes.shape, 4.0), classes, torch.zeros(33, 2, 3)), 3
    )
    return root


@pytest.fixture(scope="session")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_training(data, run, recipe(epochs=8), model_kwargs=DROPPED)
    return run
