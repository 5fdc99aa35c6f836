"""docs/own-data.md: its commands, in order, on real images, with a small network in the place of ResNet-50."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.conftest import CLASS_SIZES, THIN, Relabel, model_options, randomise, write_images

DOCUMENT = Path(__file__).parents[1] / "docs" / "own-data.md"
KWARGS = model_options(THIN)
SIZES = ["--input-size=64"]
SHORT = [f"--set={s}" for s in ("epochs=2", "batch_size=4", "warmup_epochs=0", "image_size=32", "eval_size=32")]


def commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(r"^    (relabel .*)$", DOCUMENT.read_text(), re.M)]


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the document speaks of: photos, a classifier, and names of its outputs in another order than the folders."""
    for split in ("train", "val"):
        write_images(tmp_path / "photos" / split)
    (tmp_path / "names.txt").write_text("eel\ndog\ncat\n")
    classifier = timm.create_model("resnet10t", num_classes=len(CLASS_SIZES), **THIN)
    torch.save(randomise(classifier, 0, (64, 64)).state_dict(), tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_does_what_the_document_says(relabel_here: Relabel, own_data: Path) -> None:
    ran = []
    for stage, *arguments in commands():
        given = ["resnet10t" if a == "resnet50" else a for a in arguments]
        if "--classes" in given:  # the document's second way: another label set in the place of the first
            Path("labels/mine").rename("labels/by-order")
        more = {"annotate": [*KWARGS, *SIZES], "verify": ["--min-agreement=0"], "train": [*KWARGS, *SHORT], "eval": []}[
            stage
        ]
        finished = relabel_here(stage, *given, *more, *(["--workers=0"] if stage != "verify" else []), "--device=cpu")
        assert finished.returncode == 0, finished.stderr
        ran.append(stage)
    assert ran == ["annotate", "annotate", "verify", "train", "eval"]
    assert Image.open("runs/mine/curves.png").size[0] > 0
