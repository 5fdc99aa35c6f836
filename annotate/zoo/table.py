"""The table of timm's published classifiers as annotators: annotators.csv, written by `python -m annotate.zoo.survey`."""

import csv
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from relabel.runtime.errors import InputError

TABLE = Path(__file__).with_name("annotators.csv")

# The annotators that Yun et al. (2021, arXiv 2101.05022) compared, by their timm names, with their ImageNet top-1 from
# timm's results/results-imagenet.csv at commit 0173a13. The timm package includes no results, so other models have none.
PAPER = {
    "tf_efficientnet_b1.ns_jft_in1k": 81.394,
    "tf_efficientnet_b3.ns_jft_in1k": 84.056,
    "tf_efficientnet_b5.ns_jft_in1k": 86.088,
    "tf_efficientnet_b7.ns_jft_in1k": 86.840,
    "tf_efficientnet_b8.ap_in1k": 85.364,
    "tf_efficientnet_l2.ns_jft_in1k": 88.352,
    "tf_efficientnet_l2.ns_jft_in1k_475": 88.234,
    "resnext101_32x32d.fb_wsl_ig1b_ft_in1k": 85.098,
}
SUPPORTED = ("exact", "nonlinear", "dense", "token")  # kinds that `relabel annotate` accepts; token only with --class-token


@dataclass(frozen=True)
class Annotator:
    """A row of the table: a classifier's label maps at its native input size, or why it cannot annotate."""

    model: str  # timm name, tag included
    kind: str  # see annotate/convert.py; "" where there is no map at all
    input_size: str  # ROWSxCOLUMNS of pixels
    grid: str  # ROWSxCOLUMNS of cells; "" where there is no map
    parameters: int
    classes: int
    refusal: str  # why it cannot annotate, or for kind token, why it needs --class-token; "" otherwise

    @property
    def taken(self) -> bool:
        return self.kind in SUPPORTED


def load_table() -> list[Annotator]:
    """The rows of every tag that timm publishes weights for."""
    with TABLE.open(newline="") as file:
        next(file)  # the timm version
        return [
            Annotator(**{**row, "parameters": int(row["parameters"]), "classes": int(row["classes"])})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def matching(pattern: str) -> list[Annotator]:
    """The rows whose model name, with or without its tag, matches a pattern with * and ?.

    Raises:
        InputError: no row matches.
    """
    found = [row for row in load_table() if fnmatchcase(row.model, pattern) or fnmatchcase(row.model.split(".")[0], pattern)]
    if not found:
        raise InputError(
            f"timm {surveyed_timm()} has no published weights for a model named {pattern!r}; use * and ? as wildcards, as in"
            " 'tf_efficientnet*', or --probe to measure any architecture"
        )
    return found


def surveyed_timm() -> str:
    """The timm version that the table was measured with."""
    with TABLE.open() as file:
        return file.readline().split()[-1]


def table_lines(rows: Iterable[Annotator]) -> list[str]:
    """A header, then a line per row; the paper's annotators are marked. Models that cannot annotate show the reason."""
    lines = [f"  {'model':<52} {'kind':<9} {'pixels':>9} {'cells':>7} {'params':>9} {'classes':>7} {'top-1':>6}"]
    for row in rows:
        mark, top1 = ("*", f"{PAPER[row.model]:.2f}") if row.model in PAPER else (" ", "-")
        figures = f"{row.input_size:>9} {row.grid:>7} {row.parameters / 1e6:>8.1f}M {row.classes:>7} {top1:>6}"
        lines.append(
            f"{mark} {row.model:<52} " + (f"{row.kind:<9} {figures}" if row.taken else f"cannot annotate: {row.refusal}")
        )
    return lines


def table_notes(rows: list[Annotator], hidden: int) -> list[str]:
    """Notes to print below the table."""
    taken = [row for row in rows if row.taken]
    notes = [
        f"{len(taken)} annotator{'s' * (len(taken) != 1)}; for most, relabel annotate --input-size changes pixels and cells"
    ]
    if any(row.model in PAPER for row in taken):
        notes.append("* compared in the paper; ImageNet top-1 from timm's repository, as the package includes no results")
    if any(row.kind == "token" for row in taken):
        notes.append("token: only with annotate --class-token, as its patch tokens were never trained to predict classes")
    if hidden:
        notes.append(f"{hidden} more cannot annotate; --refused lists them with the reasons")
    surveyed, installed = surveyed_timm(), importlib.metadata.version("timm")
    if surveyed != installed:
        notes.append(
            f"measured with timm {surveyed}, but {installed} is installed; --probe measures a model with that version"
        )
    return notes
