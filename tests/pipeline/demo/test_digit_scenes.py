"""The embedded digit scenes: same seed same bytes, correct boxes, nothing shared between the splits."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.digit_scenes import CLASSES, SIDE, bundled, place_digits, split_glyphs, write_scenes
from relabel.images.decoding import read_rgb
from relabel.images.sources import find_images
from relabel.runtime.errors import InputError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(folder, 200, 100, 100, seed=0)
    return folder


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return whole.hexdigest()


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(scenes: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", 200, 100, 100, seed=0)
    write_scenes(tmp_path / "other", 200, 100, 100, seed=1)
    assert digest(tmp_path / "again") == digest(scenes) != digest(tmp_path / "other")


def test_scenes_are_jpegs_in_imagenets_layout(scenes: Path) -> None:
    for split, count in (("train", 200), ("val", 100), ("annotator/train", 100)):
        folder = find_images(scenes / split)
        assert folder.classes == CLASSES and len(folder) == count
        assert (scenes / split / folder.keys[0]).read_bytes().startswith(b"\xff\xd8")
        assert folder.read(0).size == (SIDE, SIDE)


def test_folder_names_one_of_the_objects_and_all_are_of_different_classes(scenes: Path) -> None:
    counts = []
    for split in ("train", "val"):
        for key, image in json.loads((scenes / f"{split}.json").read_text())["images"].items():
            assert key.split("/")[0] in image["classes"]
            assert len(set(image["classes"])) == len(image["classes"]) == len(image["boxes"])
            counts.append(len(image["classes"]))
    assert set(counts) == {1, 2, 3}
    annotator_scenes = json.loads((scenes / "annotator" / "train.json").read_text())["images"].values()
    assert {len(image["classes"]) for image in annotator_scenes} == {1}


def test_boxes_have_the_stated_size_lie_within_the_scene_and_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        squares = [(d.left, d.top, d.left + d.side, d.top + d.side) for d in place_digits(3, rng)]
        covered = np.zeros((SIDE, SIDE), dtype=int)
        for x0, y0, x1, y1 in squares:
            assert 18 <= x1 - x0 == y1 - y0 <= 40 and min(x0, y0) >= 0 and max(x1, y1) <= SIDE
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1


def test_digits_lie_in_their_boxes(scenes: Path) -> None:
    # Ink is further from mid-grey than any background (whose contrast is halved), except where JPEG blurs it
    inked = {True: 0, False: 0}
    pixels_of = {True: 0, False: 0}
    for key, image in json.loads((scenes / "train.json").read_text())["images"].items():
        pixels = np.asarray(read_rgb(scenes / "train" / key)).astype(int)
        ink = (pixels.min(2) > 205) | (pixels.max(2) < 50)
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        for x0, y0, x1, y1 in np.array(image["boxes"]) * SIDE:
            inside[round(y0) : round(y1), round(x0) : round(x1)] = True
        for where in (True, False):
            inked[where] += int(ink[inside == where].sum())
            pixels_of[where] += int((inside == where).sum())
    assert inked[True] / pixels_of[True] > 0.05
    assert inked[False] / pixels_of[False] < 0.001


def test_splits_share_no_glyph() -> None:
    _, glyphs = bundled()
    pools = split_glyphs(glyphs, np.random.default_rng([0, 0]))
    for c in range(len(CLASSES)):
        parts = [len(pools[split][c]) for split in ("annotator", "train", "val")]
        assert sum(parts) == len(glyphs[c]) and min(parts) > 30
        identities = [id(g) for split in pools for g in pools[split][c]]
        assert len(set(identities)) == len(glyphs[c])


def test_folder_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="is not empty"):
        write_scenes(tmp_path, 200, 100, 100, seed=0)
    assert (tmp_path / "mine").read_text() == "precious"


def test_too_few_scenes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="50 val images; expected at least 100"):
        write_scenes(tmp_path / "data", 200, 50, 100, seed=0)
