"""The result of `relabel eval` as one table for the terminal, a line for each data set and measure."""

from pathlib import Path
from typing import Any

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "top1_among_folders": "top-1 among the folders' classes",
    "top5_among_folders": "top-5 among the folders' classes",
    "real": "ReaL",
    "multilabel_accuracy": "multi-label accuracy",
    "multilabel_accuracy_by_class": "multi-label accuracy, mean over classes",
    "multilabel_map": "multi-label mAP",
    "mce": "mCE (AlexNet 100)",
    "corruption_error": "mean corruption error",
    "corruption_error_among_folders": "mean corruption error among the folders' classes",
    "multilabel_corruption_error": "mean corruption error, multi-label",
}
PREFIX = "error_"  # of a measure, before the name of one corruption
HEADER = ["data set", "measure", "images", "percent"]
HEADER_OF_TWO = [*HEADER[:3], "first", "second", "first - second", "95% interval", "differ?"]


def table(result: dict[str, Any]) -> str:
    """All that was measured, and what is absent. For two models, also their difference."""
    other = result.get("compared_with")
    rows = [HEADER if other is None else HEADER_OF_TWO]
    for (name, summary), (_, second) in zip(data_sets(result), data_sets(other or result), strict=True):
        for measure, value in summary.items():
            if measure not in TITLES and not measure.startswith(PREFIX):
                continue
            title = TITLES.get(measure, f"  under {measure.removeprefix(PREFIX)}")
            row = [name, title, str(summary.get(f"{measure}_images", summary["images"])), f"{value:.2f}"]
            if other is not None:
                row += [
                    f"{second[measure]:.2f}" if measure in second else "",
                    *difference_cells(summary["differences"].get(measure)),
                ]
            rows.append(row)
    models = [("model", result)] if other is None else [("first", result), ("second", other)]
    lines = [f"{which:<8}{model['arch']}, weights {model['checkpoint']}" for which, model in models]
    lines += [f"{'images':<8}{result['data']}", "", *align(rows), ""]
    for name, summary in data_sets(result):
        if summary.get("missing"):
            lines.append(f"absent from {name}: {', '.join(summary['missing'])}")
    if result.get("absent"):
        lines.append(f"absent: {', '.join(result['absent'])}")
    for which in ("lowest", "highest"):
        if result[f"{which}_top1"]:
            named = ", ".join(f"{entry['name']} {entry['top1']:.0f}%" for entry in result[f"{which}_top1"])
            lines.append(f"{which} top-1: {named}")
    return "\n".join(lines)


def data_sets(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name in the table, summary) of every data set."""
    images = Path(result["data"]).resolve().name
    sets = [(images, result)]
    if "fgsm" in result:
        sets.append((f"{images}, FGSM {255 * result['fgsm']['epsilon']:.3g}/255", result["fgsm"]))
    return [*sets, *result.get("suite", {}).items()]


def difference_cells(difference: dict[str, Any] | None) -> list[str]:
    if difference is None:  # not a mean over images
        return ["", "", "not tested"]
    interval = f"{difference['low']:+.2f} to {difference['high']:+.2f}"
    return [f"{difference['difference']:+.2f}", interval, "yes" if difference["excludes_zero"] else "no"]


def align(rows: list[list[str]]) -> list[str]:
    """Align data set, measure and verdict to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust, str.ljust, *[str.rjust] * 5, str.ljust]
    return ["  ".join(side(cell, w) for side, cell, w in zip(sides, row, widths, strict=False)).rstrip() for row in rows]
