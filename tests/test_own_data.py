"""docs/own-data.md: its commands, in order, on real images, with a small network instead of ResNet-50."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tests.conftest import CLASS_SIZES, THIN, Relabel, model_options, randomise, write_images

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[1] / "docs" / "own-data.md"
SHORT = [f"--set={s}" for s in ("epochs=2", "batch_size=4", "warmup_epochs=0", "image_size=32", "eval_size=32")]
MORE_OPTIONS = {
    "annotate": [*model_options(THIN), "--input-size=64", "--workers=0", "--device=cpu"],
    "verify": ["--min-agreement=0", "--device=cpu"],
    "report": [],
    "find-noise": [],
    "train": [*model_options(THIN), *SHORT, "--workers=0", "--device=cpu"],
    "eval": ["--workers=0", "--device=cpu"],
}


def commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(r"^    (relabel .*)$", DOCUMENT.read_text(), re.M)]


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The document's files: photos, a classifier, and the names of its outputs, in another order than the folders."""
    for split in ("train", "val"):
        write_images(tmp_path / "photos" / split)
    (tmp_path / "names.txt").write_text("eel\ndog\ncat\n")
    classifier = timm.create_model("resnet10t", num_classes=len(CLASS_SIZES), **THIN)
    torch.save(randomise(classifier, 0, (64, 64)).state_dict(), tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_document_runs(relabel_here: Relabel, own_data: Path) -> None:
    stages = []
    for stage, *arguments in commands():
        options = ["resnet10t" if a == "resnet50" else a for a in arguments]
        if "--classes" in options:  # the document's second way of annotating writes to the same folder as its first
            Path("labels/mine").rename("labels/by-order")
        finished = relabel_here(stage, *options, *MORE_OPTIONS[stage])
        assert finished.returncode == 0, finished.stderr
        stages.append(stage)
    assert stages == ["annotate", "annotate", "verify", "report", "find-noise", "train", "eval"]
    assert Path("report.html").stat().st_size > 0
    assert Image.open("runs/mine/curves.png").size[0] > 0
