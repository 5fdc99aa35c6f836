"""The result of `relabel find-noise`: a row per image, as CSV or Parquet.

Shapes: N images.
"""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.noise.judge import Judgement
from relabel.images.classes import ClassNames
from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

COLUMNS = (
    "key",
    "is_label_issue",
    "label_score",
    "given_label",
    "predicted_label",
    "label_probability",
    "predicted_probability",
    *("x0", "y0", "x1", "y1"),
    "given_name",
    "predicted_name",
)
PART = 65_536  # rows turned into text at a time
ENDINGS = (".csv", ".parquet")


def columns_of(images: ImageSet, found: Judgement, names: ClassNames) -> dict[str, np.ndarray]:
    """The columns, most certain issue first. No suggestion is an empty name."""
    order = found.most_certain_first()
    of_class = np.array([*images.classes, ""], dtype=object)  # -1 is the last
    name_of_class = np.array([*map(names, images.classes), ""], dtype=object)
    given, predicted = images.targets[order], found.predicted[order]
    values = (
        np.array(images.keys, dtype=object)[order],
        found.is_label_issue[order],
        found.label_score[order],
        of_class[given],
        of_class[predicted],
        found.label_probability[order],
        found.predicted_probability[order],
        *found.predicted_box[order].T,
        name_of_class[given],
        name_of_class[predicted],
    )
    return dict(zip(COLUMNS, values, strict=True))


def as_csv(columns: dict[str, np.ndarray]) -> bytes:
    """UTF-8, numbers with six digits, unknown ones empty."""
    content = io.BytesIO()
    text = io.TextIOWrapper(content, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for first in range(0, len(columns["key"]), PART):
        writer.writerows(zip(*(as_text(column[first : first + PART]) for column in columns.values()), strict=True))
    return content.getvalue()


def as_text(column: np.ndarray) -> list[Any]:
    if column.dtype.kind != "f":
        return list(column.tolist())
    return ["" if number != number else f"{number:.6g}" for number in column.tolist()]


def as_parquet(columns: dict[str, np.ndarray]) -> bytes:
    """Unknown numbers and names are null."""
    arrow, parquet = pyarrow()
    arrays = {name: arrow.array(column, from_pandas=True) for name, column in columns.items()}
    for name in ("given_label", "predicted_label", "given_name", "predicted_name"):
        arrays[name] = arrow.array(columns[name], arrow.string(), mask=columns[name] == "").dictionary_encode()
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table(arrays), sink)
    return bytes(sink.getvalue())


def pyarrow() -> tuple[Any, Any]:
    """Raises InputError if it is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            "a .parquet file needs pyarrow: pip install pyarrow; or name an --output that ends in .csv"
        ) from error
    return pyarrow, parquet


def check_ending(path: Path) -> None:
    """Raises InputError if the name says neither format, or what writes it is not installed."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--output {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    if path.suffix.lower() == ".parquet":
        pyarrow()


def is_table(path: Path) -> bool:
    """Whether this command has written the file, by its columns."""
    if path.suffix.lower() == ".parquet":
        arrow, parquet = pyarrow()
        try:
            return tuple(parquet.read_schema(path).names) == COLUMNS
        except (OSError, arrow.ArrowException):
            return False
    with path.open("rb") as file:
        return file.readline(1000) == ",".join(COLUMNS).encode() + b"\n"
