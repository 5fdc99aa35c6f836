"""The library and the program work in a folder that has a train.py, a pipeline.py and an annotate/ of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relabel.labels.maps import LabelMaps
from tests.conftest import write_images
from tests.label_sets import write_label_set

PROGRAMS = Path(sys.executable).parent  # where pip puts `relabel` and `torchrun`
SCRIPT = """
import torch
from relabel import LabelMaps, LabelStore, label_pool

store = LabelStore.open("labels").to("cpu")
maps = store.gather(store.rows(["cat/cat_0.JPEG"]))
assert isinstance(maps, LabelMaps)
print(label_pool(maps, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), num_classes=3).argmax(1).tolist())
"""
TINY = [
    *("--arch=resnet10t", "--model-kwargs=stem_width=8", "--model-kwargs=channels=(8,8,8,16)", "--recipe=scenes-relabel"),
    *("--set=epochs=1", "--set=warmup_epochs=0", "--set=batch_size=4", "--set=image_size=16", "--set=eval_size=16"),
    *("--labels=labels", "--device=cpu", "--workers=1"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and a label set, beside Python files with the names of our packages."""
    classes = torch.tensor([0] + 5 * [1] + 3 * [2]).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    keys = [f"{name}/{name}_{i}.JPEG" for name, count in (("cat", 1), ("dog", 5), ("eel", 3)) for i in range(count)]
    write_images(tmp_path / "images")
    write_label_set(tmp_path / "labels", keys, LabelMaps(torch.full(classes.shape, 4.0), classes, torch.zeros(9, 2, 3)), 3)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "pipeline.py").write_text("raise ImportError('somebody imports pipeline.py of the current folder')\n")
    (tmp_path / "annotate").mkdir()
    (tmp_path / "annotate" / "__init__.py").write_text(
        "raise ImportError('somebody imports the current folder's annotate')\n"
    )
    return tmp_path


def run(folder: Path, *command: object) -> str:
    finished = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_a_script_called_train_py_uses_the_library(folder: Path) -> None:
    assert run(folder, sys.executable, "train.py") == "[0]\n"


@pytest.mark.slow
def test_the_command_trains_beside_files_with_the_names_of_our_packages(folder: Path) -> None:
    assert "weights: run/" in run(folder, PROGRAMS / "relabel", "train", "images", "--run-dir=run", *TINY)


@pytest.mark.slow
def test_torchrun_starts_the_command_beside_files_with_the_names_of_our_packages(folder: Path) -> None:
    torchrun = [PROGRAMS / "torchrun", "--standalone", "--nproc-per-node=2", "--no-python", PROGRAMS / "relabel"]
    assert "weights: run/" in run(folder, *torchrun, "train", "images", "--run-dir=run", *TINY)
