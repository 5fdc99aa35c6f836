"""--axes auto finds out with an annotator whether maps were stored transposed, and stops if it cannot decide."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relabel.labels.store import LabelStore
from tests.conftest import CLASS_SIZES, THIN, Relabel, model_options


@pytest.fixture
def quadrants(tmp_path: Path) -> Path:
    """24 images of four coloured quadrants each, so that left differs from right and top from bottom in their maps."""
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "images" / list(CLASS_SIZES)[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(rng.integers(0, 256, size=(2, 2, 3)).astype(np.uint8))
        colours.resize((60, 48), Image.Resampling.NEAREST).save(folder / f"{i}.JPEG")
    return tmp_path / "images"


@pytest.fixture
def annotator(make_checkpoint: Callable[[int], Path]) -> list[str]:
    kwargs = model_options(THIN)
    size = ["--num-classes=3", "--input-size=48", "--device=cpu"]
    return ["--model=resnet10t", *kwargs, f"--checkpoint={make_checkpoint(1)}", *size]


@pytest.fixture
def maps(relabel_here: Relabel, quadrants: Path, annotator: list[str], tmp_path: Path) -> Path:
    """The annotator's own label set, 6x6 cells, as one .pt per image; the folder `xy` holds them transposed."""
    done = relabel_here("annotate", quadrants, "--labels", tmp_path / "truth", *annotator, "--topk=2", "--workers=0")
    assert done.returncode == 0, done.stderr
    store = LabelStore.open(tmp_path / "truth")
    for key in store.keys:
        stored = store.gather(store.rows([key]))
        together = torch.stack([stored.scores[0].float(), stored.classes[0].float()])
        for axes, tensor in (("yx", together), ("xy", together.transpose(2, 3).contiguous())):
            path = (tmp_path / axes / key).with_suffix(".pt")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(tensor, path)
    return tmp_path


@pytest.mark.parametrize("axes", ["yx", "xy"])
def test_axis_order_is_found_and_the_margin_is_logged(
    relabel_here: Relabel, quadrants: Path, maps: Path, annotator: list[str], axes: str
) -> None:
    labels = maps / "labels"
    (quadrants / "cat" / "0.JPEG").write_text("no image")  # is skipped
    auto = [] if axes == "xy" else ["--axes=auto"]  # with a model it is the default
    command = ["import-labels", maps / axes, "--labels", labels, *auto, "--images", quadrants]
    finished = relabel_here(*command, *annotator)
    assert finished.returncode == 0, finished.stderr
    pattern = r"axes (\w\w): fits better for (\d+) of 23 images; .* (-\S+) as yx, (-\S+) as xy"
    verdict = re.search(pattern, finished.stdout)
    assert verdict and verdict[1] == axes and int(verdict[2]) > 20
    assert (float(verdict[3]) > float(verdict[4])) == (axes == "yx")
    here, there = LabelStore.open(labels), LabelStore.open(maps / "truth")
    rows = there.rows(there.keys)
    assert torch.equal(here.gather(rows).classes, there.gather(rows).classes)


def test_maps_that_fit_neither_axis_order_are_rejected(
    relabel_here: Relabel, quadrants: Path, maps: Path, annotator: list[str]
) -> None:
    for path in (maps / "yx").glob("*/*.pt"):
        scores, classes = torch.load(path, weights_only=True)
        torch.save(torch.stack([scores, torch.zeros_like(classes) + torch.arange(2.0).view(2, 1, 1)]), path)
    command = ["import-labels", maps / "yx", "--labels", maps / "labels", "--axes=auto", "--images", quadrants]
    failed = relabel_here(*command, *annotator)
    assert failed.returncode == 1 and "--axes auto cannot decide" in failed.stderr
    assert not (maps / "labels").exists()


def test_auto_without_images_or_model_says_what_is_missing(relabel_here: Relabel, maps: Path) -> None:
    failed = relabel_here("import-labels", maps / "yx", "--labels", maps / "labels", "--axes=auto", "--num-classes=3")
    assert failed.returncode == 1 and "pass --images and --model" in failed.stderr


def test_import_with_one_axis_order_cannot_be_continued_with_the_other(relabel_here: Relabel, maps: Path) -> None:
    options = ["import-labels", maps / "yx", "--labels", maps / "labels", "--num-classes=3"]
    assert relabel_here(*options, "--axes=yx").returncode == 0
    failed = relabel_here(*options, "--axes=xy")
    assert failed.returncode == 1 and "axes yx" in failed.stderr and "axes xy" in failed.stderr
