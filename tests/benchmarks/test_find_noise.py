"""How `make results TABLES=noise` moves scenes, and what it counts."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cleanlab")

from benchmarks.find_noise import WRONG_SHARE, Found, Moved, move, score


def test_scenes_are_moved_to_digits_that_they_do_not_show(tmp_path: Path) -> None:
    scenes = {f"{i % 10}/{i:03}.JPEG": {"classes": [str(i % 10), str((i + 3) % 10)]} for i in range(60)}
    for digit in range(10):
        (tmp_path / "data" / "train" / str(digit)).mkdir(parents=True)
    for key in scenes:
        (tmp_path / "data" / "train" / key).write_text(key)
    (tmp_path / "data" / "train.json").write_text(json.dumps({"images": scenes}))
    move(tmp_path, np.random.default_rng(0))
    moved = json.loads((tmp_path / "moved.json").read_text())
    assert len(moved) == 60 * WRONG_SHARE
    assert len(list((tmp_path / "data" / "train").rglob("*.JPEG"))) == 60
    for key, of_scene in moved.items():
        before = (tmp_path / "data" / "train" / key).read_text()
        assert before.split("/") == [of_scene["original"], key.split("/")[1]]
        assert of_scene["shown"] == scenes[before]["classes"]
        assert key.split("/")[0] not in of_scene["shown"]


def test_false_alarms_are_counted_down_to_where_enough_are_found() -> None:
    # 20 moved scenes: 95% of them are 19. Two good ones lie before the nineteenth, three more before the last.
    moved: Moved = {f"m{i}": {"original": "1", "shown": ["1", "2"]} for i in range(20)}
    keys = [*list(moved)[:10], "a", "b", *list(moved)[10:19], "c", "d", "e", "m19"]
    issue = np.array([True] * 12 + [False] * 13)  # ten of the moved, and two others
    suggested = ["1"] * 5 + ["2"] * 11 + ["7"] * 9  # of the moved: 5 original, 9 shown beside them, 6 neither
    assert score(keys, issue, suggested, moved) == Found(50.0, 2, 2, 100 * 14 / 20, 25.0)
