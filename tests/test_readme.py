"""What the README shows runs."""

import re
from pathlib import Path

import torch
from torch import nn

from benchmarks.results import TABLES
from relabel.labels.maps import LabelMaps
from tests.label_sets import write_label_set

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_five_lines_for_ones_own_loop_train_towards_the_label_maps(tmp_path: Path) -> None:
    block = re.search(r"five lines: begin -->\n```python\n(.*?)```", README, re.S)
    assert block is not None
    keys = ["cat/a.JPEG", "dog/b.JPEG"]
    classes = torch.tensor([0, 1]).view(2, 1, 1, 1).expand(2, 1, 2, 3)
    write_label_set(tmp_path / "mine", keys, LabelMaps(torch.full(classes.shape, 5.0), classes, torch.zeros(2, 2, 3)), 3)
    code = block[1].replace("labels/mine", str(tmp_path / "mine"))
    names = {
        "torch": torch,
        "device": "cpu",
        "keys": keys[::-1],
        "boxes": torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.1, 0.2, 0.9, 0.8]]),
        "model": nn.Sequential(nn.Flatten(), nn.Linear(12, 3)),
        "crops": torch.rand(2, 3, 2, 2),
    }
    exec(code, names)
    by_hand = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]).softmax(1)
    torch.testing.assert_close(names["logits"].softmax(1), by_hand)
    names["loss"].backward()


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        if not target.startswith("https://"):
            assert (Path(__file__).parents[1] / target).is_file(), target


def test_every_table_of_make_results_is_there() -> None:
    assert re.findall("<!-- make results, (.*): begin -->", README) == list(TABLES)
    for name in TABLES:
        begin, end = f"<!-- make results, {name}: begin -->", f"<!-- make results, {name}: end -->"
        assert README.split(begin)[1].split(end)[0].count("\n|") > 2, f"no table of {name}"
    assert "_TEXT" not in README
