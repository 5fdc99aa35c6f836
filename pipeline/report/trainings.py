"""What run directories tell of their trainings: results, curves, settings and versions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relabel.runtime.errors import InputError
from relabel.runtime.typed import parse_json, typed
from train.evaluation.report import PREFIX, TITLES, data_sets
from train.run_dir.metrics import read_metrics
from train.run_dir.provenance import RUN_FILE

RESULT = "eval.json"  # as make names it
MAX_POINTS = 300  # of a curve
CURVES = {  # title: whether it is a validation measure, and its name
    "training loss, nats": (False, "loss"),
    "top-1 of training crops, percent": (False, "top1"),
    "validation top-1, percent": (True, "top1"),
    "validation, multi-label accuracy, percent": (True, "multilabel_accuracy"),
    "learning rate": (False, "lr"),
}
DIGESTS = ("image_digest", "val_digest", "label_digest", "map_digest", "starts", "labels", "maps")


@dataclass(frozen=True)
class Training:
    """A run directory.

    Attributes:
        settings: of run.json, one level deep: "recipe.epochs" and such, as text.
        epochs: as metrics.jsonl has them.
        result: as `relabel eval` wrote it; None if it has not been evaluated.
    """

    name: str
    settings: dict[str, str]
    versions: dict[str, str]
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None


@dataclass(frozen=True)
class Curve:
    """One measure over the epochs.

    Attributes:
        lines: (number of the run, points as (epoch, value)).
        low, high: smallest and largest value; last: the last epoch.
    """

    title: str
    lines: list[tuple[int, list[tuple[float, float]]]]
    low: float
    high: float
    last: int


def read_training(run: Path) -> Training:
    """Read a run directory.

    Raises:
        InputError: it is none, or one of its files is damaged.
    """
    path = run / RUN_FILE
    if not path.is_file():
        raise InputError(f"--run {run} is not a run directory: missing {RUN_FILE}; expected what `relabel train` made")
    fields = read_object(path)
    try:
        starts = typed(fields.get("starts", []), list[dict[str, Any]])
        last = starts[-1] if starts else {}
        versions = {name: str(version) for name, version in typed(last.get("versions", {}), dict[str, Any]).items()}
    except ValueError as error:
        raise damaged(path, error) from error
    versions |= {name: str(last[name]) for name in ("time", "device", "cpu_cores", "processes", "precision") if name in last}
    if isinstance(last.get("git"), dict):
        changed = " with changes" if last["git"].get("dirty") else ""
        versions["commit"] = f"{last['git'].get('commit')}{changed}"
    settings = {name: value for name, value in fields.items() if name not in DIGESTS}
    result = read_object(run / RESULT) if (run / RESULT).is_file() else None
    if result is not None:
        check_result(run / RESULT, result)
    return Training(str(run), flat(settings), versions, read_metrics(run), result)


def read_object(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = typed(parse_json(path.read_bytes()), dict[str, Any])
    except ValueError as error:
        raise damaged(path, error) from error
    return fields


def damaged(path: Path, error: ValueError) -> InputError:
    return InputError(f"{path} is damaged ({error}); restore it, or leave this --run out")


def check_result(path: Path, result: dict[str, Any]) -> None:
    """Raises InputError if it is not what `relabel eval` writes for a model."""
    try:
        typed({name: result.get(name) for name in ("data", "arch", "checkpoint")}, dict[str, str])
        for _, summary in data_sets(result):
            typed(summary["images"], int)
            typed({name: value for name, value in summary.items() if is_measure(name)}, dict[str, float])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a result of `relabel eval` ({error!r}); evaluate again, or delete it") from error


def is_measure(name: str) -> bool:
    return name in TITLES or name.startswith(PREFIX)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Tables within the settings as names with dots."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = "none" if value is None else str(value)
    return found


def results(trainings: Sequence[Training]) -> list[tuple[str, str, list[float | None]]]:
    """(data set, measure, percent of each run) of everything that was evaluated."""
    rows: dict[tuple[str, str], list[float | None]] = {}
    for number, training in enumerate(trainings):
        for data_set, summary in data_sets(training.result) if training.result is not None else []:
            for measure in filter(is_measure, summary):
                title = TITLES.get(measure, f"error under {measure.removeprefix(PREFIX)}")
                images = summary.get(f"{measure}_images", summary["images"])
                name = (f"{data_set}, {images:,} images", title)
                rows.setdefault(name, [None] * len(trainings))[number] = float(summary[measure])
    return [(data_set, title, values) for (data_set, title), values in rows.items()]


def versions_table(trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """(package or condition, value of each run)."""
    names = dict.fromkeys(name for training in trainings for name in training.versions)
    return [(name, [training.versions.get(name, "not recorded") for training in trainings]) for name in names]


def settings_table(trainings: Sequence[Training], *, differing: bool) -> list[tuple[str, list[str]]]:
    """(setting, value of each run), of the settings in which the runs differ or of the others."""
    names = dict.fromkeys(name for training in trainings for name in training.settings)
    rows = [(name, [training.settings.get(name, "not recorded") for training in trainings]) for name in names]
    return [(name, values) for name, values in rows if (len(set(values)) > 1) == differing]


def curves(trainings: Sequence[Training]) -> list[Curve]:
    """Those of CURVES that any of the runs recorded."""
    drawn = []
    for title, (validation, name) in CURVES.items():
        lines = []
        for number, training in enumerate(trainings):
            recorded = [(e["epoch"], e.get("val", {}) if validation else e) for e in training.epochs]
            points = [(float(epoch), float(values[name])) for epoch, values in recorded if name in values]
            finite = [point for point in points if math.isfinite(point[1])]
            if finite:
                step = -(-len(finite) // MAX_POINTS)
                lines.append((number, finite[::-1][::step][::-1]))  # with the last one
        values = [value for _, points in lines for _, value in points]
        if values:
            last = max(int(point[0]) for _, points in lines for point in points)
            drawn.append(Curve(title, lines, min(values), max(values), last))
    return drawn
