"""--axes auto: an annotator tells which way round maps were stored, on real images, and says when it cannot."""

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
    """24 images of four colours each, so that their maps have a left and a right, a top and a bottom."""
    rng = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "images" / list(CLASS_SIZES)[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(rng.integers(0, 256, size=(2, 2, 3)).astype(np.uint8))
        colours.resize((60, 48), Image.Resampling.NEAREST).save(folder / f"{i}.JPEG")
    return tmp_path / "images"


@pytest.fixture
def judge(make_checkpoint: Callable[[int], Path]) -> list[str]:
    kwargs = model_options(THIN)
    size = ["--num-classes=3", "--input-size=48", "--device=cpu"]
    return ["--model=resnet10t", *kwargs, f"--checkpoint={make_checkpoint(1)}", *size]


@pytest.fixture
def maps(relabel_here: Relabel, quadrants: Path, judge: list[str], tmp_path: Path) -> Path:
    """The judge's own label set, 6x6 cells, as one .pt per image; `xy` holds them transposed."""
    done = relabel_here("annotate", quadrants, "--labels", tmp_path / "truth", *judge, "--topk=2", "--workers=0")
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
def test_annotator_finds_the_way_round_and_the_margin_is_said(
    relabel_here: Relabel, quadrants: Path, maps: Path, judge: list[str], axes: str
) -> None:
    labels = maps / "labels"
    (quadrants / "cat" / "0.JPEG").write_text("no image")  # is not asked
    finished = relabel_here("import-maps", maps / axes, "--labels", labels, "--axes=auto", "--images", quadrants, *judge)
    assert finished.returncode == 0, finished.stderr
    said = re.search(r"axes (\w\w): (\d+) of 23 images fit better so; .* (-\S+) as yx, (-\S+) as xy", finished.stdout)
    assert said and said[1] == axes and int(said[2]) > 20
    assert (float(said[3]) > float(said[4])) == (axes == "yx")
    here, there = LabelStore.open(labels), LabelStore.open(maps / "truth")
    rows = there.rows(there.keys)
    assert torch.equal(here.gather(rows).classes, there.gather(rows).classes)


def test_maps_that_fit_neither_way_are_not_guessed_at(
    relabel_here: Relabel, quadrants: Path, maps: Path, judge: list[str]
) -> None:
    for path in (maps / "yx").glob("*/*.pt"):
        scores, classes = torch.load(path, weights_only=True)
        torch.save(torch.stack([scores, torch.zeros_like(classes) + torch.arange(2.0).view(2, 1, 1)]), path)
    asked = ["import-maps", maps / "yx", "--labels", maps / "labels", "--axes=auto", "--images", quadrants]
    refused = relabel_here(*asked, *judge)
    assert refused.returncode == 1 and "--axes auto cannot tell" in refused.stderr
    assert not (maps / "labels").exists()


def test_auto_without_images_or_model_says_what_is_missing(relabel_here: Relabel, maps: Path) -> None:
    refused = relabel_here("import-maps", maps / "yx", "--labels", maps / "labels", "--axes=auto", "--num-classes=3")
    assert refused.returncode == 1 and "pass --images and --model" in refused.stderr


def test_set_half_imported_one_way_is_not_finished_the_other(relabel_here: Relabel, maps: Path) -> None:
    options = ["import-maps", maps / "yx", "--labels", maps / "labels", "--num-classes=3"]
    assert relabel_here(*options, "--axes=yx").returncode == 0
    refused = relabel_here(*options, "--axes=xy")
    assert refused.returncode == 1 and "axes yx" in refused.stderr and "axes xy" in refused.stderr
