"""Hugging Face data sets as a source of images.

    hfds/NAME                           a data set of the hub, or a folder: of data files, or written by save_to_disk
    hfds/NAME:SPLIT                     SPLIT defaults to "train"; a slice such as train[:10%] is one too
    hfds/NAME:SPLIT?image=A&label=B     the columns, if they are not called "image" and "label"
    hfds/NAME?class_map=FILE            names for class numbers, see relabel/images/class_lists.py

An image's key is CLASS/NAME by its file name. Where rows have none, NAME is the row's number in the whole split, so that an
image has the same key in every slice.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from relabel.images.class_lists import mapped_classes
from relabel.images.decoding import UnreadableImage
from relabel.images.source_options import options_of
from relabel.runtime.errors import InputError, first_line

HFDS = "hfds/"
FORM = f"{HFDS}NAME:SPLIT?image=COLUMN&label=COLUMN&class_map=FILE"
SPLIT = "train"
IMAGENET_NAME = re.compile(r"(.+)_(n\d{8})(\.\w+)")  # ImageNet's files: n01440764_10026_n01440764.JPEG, class last


def read_hf_dataset(source: str) -> tuple[tuple[str, ...], list[str], np.ndarray, Callable[[Any], Path | bytes], list[int]]:
    """The classes, and the key, location and class of every row, with the function that opens a location.

    Raises:
        InputError: there is no such data set, split or column, or no class names, or rows without a label, or keys that are
            not unique.
    """
    address, _, query = source.removeprefix(HFDS).partition("?")
    name, _, split = address.partition(":")
    split = split or SPLIT
    options = options_of(source, query, FORM)
    image, label = options.get("image", "image"), options.get("label", "label")
    try:
        import datasets

        dataset, lengths = (load_saved if saved_to_disk(name) else load)(name, split)
        missing = [column for column in (image, label) if column not in dataset.column_names]
        if missing:
            raise InputError(
                f"{source} has no column {' or '.join(missing)}, but {', '.join(dataset.column_names)}; name the columns:"
                f" {HFDS}{name}:{split}?image=COLUMN&label=COLUMN"
            )
        dataset = dataset.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        table = dataset.data  # memory-mapped: a column's chunks take no memory until they are read
        files = [path for chunk in table.column(image).chunks for path in chunk.field("path").to_pylist()]
        targets = table.column(label).to_pylist()
        rows = None if all(files) else rows_of_split(split, lengths)
    except ImportError as error:
        raise InputError(f"reading {source} needs the package datasets: pip install datasets") from error
    except InputError:
        raise
    except Exception as error:  # errors of the hub, the disk and the table have no common type
        raise InputError(f"cannot read {source}: {first_line(error)}") from error
    classes = tuple(getattr(dataset.features[label], "names", ()))
    if "class_map" in options:
        highest = max([len(classes) - 1, *(target for target in targets if isinstance(target, int))], default=0)
        classes = mapped_classes(options["class_map"], highest, f"{source}: class_map")
    if not classes:
        raise InputError(f"{source}: its column {label} has no class names; give them, one per line: ?class_map=FILE")
    unlabelled = sum(target is None or not 0 <= target < len(classes) for target in targets)
    if unlabelled:
        raise InputError(f"{source}: {unlabelled} of its {len(targets)} images have no label; choose another split")
    names = [Path(file).name if file else str(row) for file, row in zip(files, rows or files, strict=True)]
    imagenet_names = [IMAGENET_NAME.fullmatch(name) for name in names]
    if all(imagenet_names):  # its class indices follow the sorted WordNet ids
        synsets = {target: match[2] for target, match in zip(targets, imagenet_names, strict=True) if match}
        classes = tuple(synsets.get(i, name) for i, name in enumerate(classes))
        names = [match[1] + match[3] for match in imagenet_names if match]
    keys = [f"{classes[target].replace('/', '-')}/{name}" for target, name in zip(targets, names, strict=True)]
    repeated = len(keys) - len(set(keys))
    if repeated:
        raise InputError(f"{source}: {repeated} images have the same class and file name as another, so keys are not unique")
    return classes, keys, np.arange(len(keys)), functools.partial(read_row, dataset, image), targets


def saved_to_disk(name: str) -> bool:
    """Whether it is a folder that save_to_disk has written: of one data set, or of several splits."""
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


def load(name: str, split: str) -> tuple[Any, dict[str, int]]:
    """The rows of a split, and the lengths of all splits."""
    import datasets

    dataset = datasets.load_dataset(name, split=split)
    return dataset, {of: info.num_examples for of, info in (dataset.info.splits or {}).items()}


def load_saved(name: str, split: str) -> tuple[Any, dict[str, int]]:
    """As `load`, of what save_to_disk has written."""
    import datasets

    saved = datasets.load_from_disk(name)
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or SPLIT): saved}
    lengths = {of: len(rows) for of, rows in saved.items()}
    selected = [saved[of].select(range(first, end)) for of, first, end in absolute(split, lengths)]
    return datasets.concatenate_datasets(selected), lengths


def absolute(split: str, lengths: dict[str, int]) -> list[tuple[str, int, int]]:
    """The (split, first row, end) that an expression such as train[50%:]+test consists of."""
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return [(part.splitname, part.from_, part.to) for part in parts]


def rows_of_split(split: str, lengths: dict[str, int]) -> list[int]:
    """The number of each row in the whole split.

    Raises:
        InputError: the rows are of several splits, which have the same numbers.
    """
    parts = absolute(split, lengths)
    if len({of for of, _, _ in parts}) > 1:
        raise InputError(f"split {split}: the images have no file names, and row numbers are those of one split; name one")
    return [row for _, first, end in parts for row in range(first, end)]


def read_row(dataset: Any, image: str, row: Any) -> Path | bytes:
    """The content of an image file, or its path.

    Raises:
        UnreadableImage: the row has no image.
    """
    stored = dataset[int(row)][image] or {}
    if stored.get("bytes"):
        content: bytes = stored["bytes"]
        return content
    if not stored.get("path"):
        raise UnreadableImage(f"row {row} of the data set has no image")
    return Path(stored["path"])
