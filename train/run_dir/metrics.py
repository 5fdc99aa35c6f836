"""A run's metrics.jsonl, a line per epoch, and the curves drawn from it."""

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from relabel.runtime.typed import parse_json, typed

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CURVES = "curves.png"
MAX_MARKERS = 40  # with more evaluations than this, a curve is drawn without dots


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The epochs recorded so far; a torn last line is left out.

    Raises:
        InputError: a line is damaged.
    """
    path = run / METRICS
    if not path.exists():
        return []
    epochs = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            epochs.append(check_metrics(parse_json(line)))
        except ValueError as error:
            raise InputError(
                f"{path} line {number} is damaged ({error}); restore the file, or delete it: curves need it"
            ) from error
    return epochs


def check_metrics(metrics: Any, *more: str) -> dict[str, Any]:
    """The metrics of an epoch as they were read.

    Args:
        more: numbers that they need besides those that are drawn.
    Raises:
        ValueError: they are not what a run records.
    """
    fields: dict[str, Any] = typed(metrics, dict[str, Any])
    for name, kind in {"epoch": int, **dict.fromkeys(("loss", "top1", "lr", *more), float)}.items():
        if name not in fields:
            raise ValueError(f"{name} is missing")
        typed(fields[name], kind)
    typed(fields.get("val", {}), dict[str, float])
    return fields


def append_metrics(run: Path, metrics: dict[str, Any]) -> None:
    """Add an epoch.

    Raises:
        InputError: the disk is full or read-only.
    """
    try:
        with (run / METRICS).open("a") as file:
            file.write(json.dumps(metrics) + "\n")
    except OSError as error:
        raise metrics_error(run / METRICS, error) from error


def truncate_metrics(run: Path, epochs: int) -> None:
    """Keep only the first epochs; a resumed run writes the others again."""
    lines = "".join(json.dumps(line) + "\n" for line in read_metrics(run) if line["epoch"] <= epochs)
    atomic_write(run / METRICS, lines.encode())


def metrics_error(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path}: {error.strerror}. Checkpoint saved; free disk space and run again with --resume"
    )


def draw_curves(run: Path) -> None:
    """curves.png: loss, accuracies and learning rate over the epochs. Without matplotlib, a warning: training goes on.

    Raises:
        InputError: the disk is full or read-only.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        logger.warning(f"{run / CURVES} is not drawn, because matplotlib is not installed; {METRICS} has the numbers")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    epochs = read_metrics(run)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
    x = [e["epoch"] for e in epochs]
    marker = "o" if len(x) < 2 else None  # a single point draws no line
    left.plot(x, [e["loss"] for e in epochs], marker=marker)
    middle.plot(x, [e["top1"] for e in epochs], marker=marker, label="training crops, top-1")
    for name, title in (("top1", "top-1"), ("top5", "top-5"), ("multilabel_accuracy", "multi-label accuracy")):
        points = [(e["epoch"], e["val"][name]) for e in epochs if name in e.get("val", {})]
        if points:
            middle.plot(
                *zip(*points, strict=True), marker="o" if len(points) < MAX_MARKERS else None, label=f"validation, {title}"
            )
    right.plot(x, [e["lr"] for e in epochs], marker=marker)
    for axes, label in ((left, "training loss"), (middle, "percent"), (right, "learning rate")):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)  # hides no curve
    # As plain text: a pair of dollar signs is not a formula, and bytes that are not UTF-8 have no glyph
    figure.suptitle(os.fsencode(run).decode(errors="replace"), parse_math=False)
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, dpi=110)
    except (ValueError, OverflowError) as error:  # numbers near the largest float64: somebody has changed them
        logger.warning(f"{run / CURVES} is not drawn: {run / METRICS} has numbers that no axis can show ({error})")
        return
    finally:
        plt.close(figure)
    try:
        atomic_write(run / CURVES, drawn.getvalue())
    except OSError as error:
        raise metrics_error(run / CURVES, error) from error
