"""README.md and docs/: what they show runs, what they name exists, and copied figures agree."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from torch import nn

from benchmarks.results import TABLES, TARGETS
from pipeline.cli.app import app
from relabel.labels.maps import LabelMaps
from tests.conftest import REPOSITORY
from tests.label_sets import write_label_set

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXT = {str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in PAGES}
README, RESULTS = TEXT["README.md"], TEXT["docs/results.md"]
OPTIONS = {  # of each command
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}


def table_rows(text: str) -> dict[str, list[str]]:
    """The figures of each row of a markdown table, by the row's name; its header is a row too."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows if not name.startswith("--")}


def results_table(name: str) -> dict[str, list[str]]:
    begin, end = f"<!-- make results, {name}: begin -->", f"<!-- make results, {name}: end -->"
    assert RESULTS.count(begin) == RESULTS.count(end) == 1
    return table_rows(RESULTS.split(begin)[1].split(end)[0])


def commands_in(text: str) -> list[list[str]]:
    """The arguments of every `relabel` command, in blocks and within lines."""
    shown = re.findall(r"^    (?:.*--no-python )?relabel ([a-z].*)$", text, re.M)
    shown += re.findall(r"`(?:[^`]*--no-python )?relabel ([a-z][^`]*)`", text)
    return [shlex.split(arguments, comments=True) for arguments in shown]


def test_five_lines_for_ones_own_loop_train_on_the_label_maps(tmp_path: Path) -> None:
    block = re.search(r"five lines: begin -->\n```python\n(.*?)```", README, re.S)
    assert block is not None
    keys = ["cat/a.JPEG", "dog/b.JPEG"]
    classes = torch.tensor([0, 1]).view(2, 1, 1, 1).expand(2, 1, 2, 3)
    write_label_set(tmp_path / "mine", keys, LabelMaps(torch.full(classes.shape, 5.0), classes, torch.zeros(2, 2, 3)), 3)
    code = block[1].replace("labels/mine", str(tmp_path / "mine"))
    names: dict[str, Any] = {
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


@pytest.mark.parametrize("page", TEXT)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", TEXT[page]):
        target, _, heading = "".join(link).partition("#")
        if target.startswith("https:"):
            continue
        path = ((REPOSITORY / page).parent / target).resolve() if target else REPOSITORY / page
        assert path.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, heading


def test_the_readme_is_short_and_lists_every_page_of_the_documentation() -> None:
    assert README.count("\n") <= 130
    listed = set(re.findall(r"^\| \[(.*?)\]", README, re.M))
    assert listed == TEXT.keys() - {"README.md"}


@pytest.mark.parametrize("page", TEXT)
def test_every_relabel_command_and_option_of_a_page_exists(page: str) -> None:
    for command, *arguments in commands_in(TEXT[page]):
        assert command in OPTIONS, f"relabel {command}"
        options = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        assert options <= OPTIONS[command], f"relabel {command}: {options - OPTIONS[command]}"
    mentioned = set(re.findall(r"`(--[a-z-]+)[ `]", TEXT[page]))
    assert mentioned <= set().union(*OPTIONS.values())


def test_the_pages_show_commands() -> None:
    """Else the test of commands and options would find nothing to check."""
    shown = {command for text in TEXT.values() for command, *_ in commands_in(text)}
    assert shown >= {"annotate", "verify", "compare", "train", "eval", "export", "recipes", "import-labels", "export-labels"}


@pytest.mark.parametrize("page", TEXT)
def test_every_make_target_and_variable_of_a_page_exists(page: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    shown = re.findall(r"(?:^    |`)make ([a-z][^`#\n]*)", TEXT[page], re.M)
    assert shown or page not in ("README.md", "CONTRIBUTING.md")
    for words in map(str.split, shown):
        variables = {word.split("=")[0] for word in words if "=" in word}
        assert variables <= set(re.findall(r"^([A-Z_]+) \?=", makefile, re.M))
        for target in (word for word in words if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"


def test_every_table_of_make_results_is_in_the_results() -> None:
    assert re.findall("<!-- make results, (.*): begin -->", RESULTS) == list(TABLES)
    assert list(results_table("targets"))[1:] == [arm.name for arm in TARGETS]
    for name in TABLES:
        header, *rows = results_table(name).values()
        assert len(rows) > 1, f"no table of {name}"
        assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d|[\d,]+ ± \d+|[\d,]+(\.\d+)?", figure) for row in rows for figure in row)
        assert {len(row) for row in rows} == {len(header)}
        assert name in ("fidelity", "regions") or all("±" in figure for row in rows for figure in row)


def test_the_table_of_the_readme_is_part_of_the_results() -> None:
    copied = table_rows(README.split("## What it brings")[1].split("\n## ")[0])
    assert len(copied) == 4, "a header and three rows"
    measured = results_table("targets")
    assert copied == {name: measured[name] for name in copied}


def test_the_commands_of_the_readme_for_own_images_are_those_that_are_tested() -> None:
    shown = re.findall(r"^    (relabel .*)$", README.split("## Your own images")[1].split("\n## ")[0], re.M)
    assert len(shown) == 4
    own_data = re.findall(r"^    (relabel .*)$", TEXT["docs/own-data.md"], re.M)
    assert set(shown) <= set(own_data), "tests/test_own_data.py runs the commands of docs/own-data.md"
