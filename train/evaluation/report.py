"""The result of `relabel eval` as one table for the terminal, a line for each data set and measure."""

from typing import Any

TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "real": "ReaL",
    "multilabel_accuracy": "multi-label accuracy",
    "multilabel_accuracy_by_class": "multi-label accuracy, mean over classes",
    "multilabel_map": "multi-label mAP",
    "mce": "mCE (AlexNet 100)",
    "corruption_error": "mean corruption error",
    "multilabel_corruption_error": "mean corruption error, multi-label",
}
HEADER = ("data set", "measure", "images", "percent")
HEADER_OF_TWO = ("first", "second", "first - second", "95% interval", "differ?")


def data_sets_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every data set's summary, by the name it has in the table."""
    sets: dict[str, dict[str, Any]] = {str(result["data"]): result}
    if "fgsm" in result:
        sets[f"{result['data']}, FGSM {result['fgsm']['epsilon'] * 255:.3g}/255"] = result["fgsm"]
    return {**sets, **result.get("suite", {})}


def table(result: dict[str, Any]) -> str:
    """The lines of the result, and what is absent. With two models, their difference too."""
    other = result.get("compared_with")
    header = HEADER if other is None else (*HEADER[:3], *HEADER_OF_TWO)
    rows: list[tuple[str, ...]] = []
    for (name, summary), second in zip(data_sets_of(result).items(), data_sets_of(other or result).values(), strict=True):
        for measure, title in TITLES.items():
            if measure in summary:
                images = str(summary.get(f"{measure}_images", summary["images"]))
                row = (name, title, images, f"{summary[measure]:.2f}")
                difference = summary.get("differences", {}).get(measure)
                rows.append(row if other is None else (*row, f"{second[measure]:.2f}", *cells_of(difference)))
        for corruption, error in summary.get("corruption_errors", {}).items():
            row = (name, f"  error under {corruption}", str(summary["images"]), f"{error:.2f}")
            more = () if other is None else (f"{second['corruption_errors'][corruption]:.2f}", "", "", "")
            rows.append((*row, *more))
    lines = [f"{'model':<10}{result['arch']}, weights {result['checkpoint']}"]
    if other is not None:
        lines[0] = lines[0].replace("model ", "first ", 1)
        lines.append(f"{'second':<10}{other['arch']}, weights {other['checkpoint']}")
    lines += ["", *aligned([header, *rows])]
    for name, summary in data_sets_of(result).items():
        if summary.get("missing"):
            lines.append(f"{name}: absent: {', '.join(summary['missing'])}")
    if result.get("absent"):
        lines.append(f"absent: {', '.join(result['absent'])}")
    for which in ("lowest", "highest"):
        if result.get(f"{which}_top1"):
            named = ", ".join(f"{entry['name']} {entry['top1']:.0f}%" for entry in result[f"{which}_top1"])
            lines.append(f"{which} top-1: {named}")
    return "\n".join(lines)


def cells_of(difference: dict[str, Any] | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", "not tested: no mean over images"
    interval = f"{difference['low']:+.2f} to {difference['high']:+.2f}"
    return f"{difference['difference']:+.2f}", interval, "yes" if difference["excludes_zero"] else "no"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Two columns of text on the left, numbers on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i < 2 or i > 6 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
