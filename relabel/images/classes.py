"""Classes: what a class folder is called in messages, and whether a folder has the classes that a model knows."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError


class ClassNames:
    """`names("n01440764")` is "tench (n01440764)"; a folder that nobody has another name for is called by its own."""

    def __init__(self, file: Path | None = None) -> None:
        """Args:
            file: a line per class, FOLDER NAME, apart by a tab or else by the first space; instead of WordNet's lemmas.
        Raises:
            InputError: the file is missing, or a line is not of this form, or names a folder again.
        """
        self.given = read_class_names(file) if file is not None else None

    def __call__(self, folder: str) -> str:
        name = self.given.get(folder) if self.given is not None else lemma(folder)
        return folder if name is None else f"{name} ({folder})"


def read_class_names(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {file}: {error}") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        folder, *name = line.split("\t" if "\t" in line else None, maxsplit=1)
        if not name or not name[0].strip():
            raise InputError(f"{file} line {number} is {line!r}; expected FOLDER NAME, such as n01440764 tench")
        if folder in names:
            raise InputError(f"{file} line {number} names the folder {folder} again; expected one line per class")
        names[folder] = name[0].strip()
    return names


def lemma(wordnet_id: str) -> str | None:
    """timm's first lemma; None of what is no WordNet id that it knows."""
    try:
        return str(wordnet().label_name_to_description(wordnet_id)).split(",")[0]
    except KeyError:
        return None


@functools.cache
def wordnet() -> ImageNetInfo:
    """timm's names for ImageNet-1k, read once."""
    return ImageNetInfo("imagenet-1k")


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k, in the order of every model trained on it."""
    return tuple(wordnet().label_names())


def numbered_as_imagenet(image_set: ImageSet) -> bool:
    """Whether the class folders are named 0 ... 999, which are ImageNet's classes, as in ImageNetV2."""
    return image_set.classes == tuple(map(str, range(len(imagenet_classes()))))


def class_indices(image_set: ImageSet, classes: tuple[str, ...], whose: str, *, subset: bool = False) -> np.ndarray:
    """(classes of the folder,) int64 place of each class folder among the model's classes.

    Folders named 0 ... 999, as in ImageNetV2, are ImageNet's classes by number.

    Args:
        classes: the model's, in its order.
        whose: the model, for the message.
        subset: the folder may have some of the classes only.
    Raises:
        InputError: the folder has other classes; the first three that differ are named.
    """
    if classes == imagenet_classes() and numbered_as_imagenet(image_set):
        return np.arange(len(classes))
    numbers = {name: i for i, name in enumerate(classes)}
    if not subset:
        check_classes(image_set, classes, whose)
    unknown = [name for name in image_set.classes if name not in numbers]
    if unknown:
        raise InputError(
            f"{image_set.source}: {len(unknown)} of {len(image_set.classes)} class folders are no classes of {whose}"
            f" ({', '.join(unknown[:3])})"
        )
    return np.array([numbers[name] for name in image_set.classes])


def class_mismatch(known: Sequence[str] | int, found: Sequence[str]) -> str | None:
    """How two ordered lists of classes differ, with the first three names that do; None if they do not.

    Args:
        known: the classes of a model or a label set; their number, if their names are not known.
        found: the classes of the images.
    """
    count = known if isinstance(known, int) else len(known)
    names = found if isinstance(known, int) else known
    if count != len(found):
        differing = [f"{name} is unknown" for name in found if name not in set(names)]
        differing += [f"{name} has no folder" for name in names if name not in set(found)]
        named = f": {'; '.join(differing[:3])}" if differing else ""
        return f"expected {count} classes, found {len(found)}{named}"
    differing = [f"expected {a}, found {b}" for a, b in zip(names, found, strict=True) if a != b]
    return f"other class names, or another order: {'; '.join(differing[:3])}" if differing else None


def check_classes(image_set: ImageSet, classes: Sequence[str], whose: str) -> None:
    """Raises InputError where the class folders are not the classes that a model was trained with, in the same order."""
    mismatch = class_mismatch(classes, image_set.classes)
    if mismatch is not None:
        raise InputError(f"{image_set.source} does not have the classes of {whose}: {mismatch}")
