"""The images as other projects find them: by their number in torchvision's ImageFolder, or by the stems of their names."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

FEW = 3  # names listed in a message
DEEPEST = 3  # folders between the one that the user names and the class folders


def image_folder_order(image_set: ImageSet) -> np.ndarray:
    """(n,) the index in the image set of each image of ImageFolder: classes sorted by name, and files within a class.

    This is neither the order of keys, in which "a-b/..." comes before "a/...", nor that of numbers: 10 comes before 2.

    Raises:
        InputError: ImageFolder would leave out one of the images.
    """
    left_out = [key for key in image_set.keys if not key.lower().endswith(IMG_EXTENSIONS)]
    if left_out:
        raise InputError(
            f"{image_set.source}: {left_out[0]} has an ending that torchvision's ImageFolder leaves out ({len(left_out)}"
            " such images), so the store numbers the images in another way; pass the images that the store was made from"
        )
    starts: dict[str, int] = {}  # the keys of a class follow one another, and are sorted by name
    for index, key in enumerate(image_set.keys):
        starts.setdefault(key.rpartition("/")[0], index)
    bounds = [*starts.values(), len(image_set)]
    of_class = {name: np.arange(*bounds[i : i + 2], dtype=np.int64) for i, name in enumerate(starts)}
    return np.concatenate([of_class[name] for name in sorted(of_class)])


def stem_of(key: str) -> str:
    """CLASS/NAME without the name's endings, as FKD and TokenLabeling cut it: up to the name's first dot."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/{name.split('.')[0]}"


def check_stems(image_set: ImageSet, ending: str) -> None:
    """Raises InputError if two images would have the same file."""
    if len(set(map(stem_of, image_set.keys))) == len(image_set):
        return
    first: dict[str, str] = {}
    for key in image_set.keys:
        other = first.setdefault(stem_of(key), key)
        if other != key:
            raise InputError(
                f"{image_set.source}: {other} and {key} would both have the labels {stem_of(key)}{ending}; this format cuts"
                " a name at its first dot"
            )


def folder_of_classes(source: Path, image_set: ImageSet, ending: str) -> Path:
    """The folder at or below `source` that has CLASS/NAME + `ending` for every image, and no others.

    Raises:
        InputError: there is no such folder, or files are missing or left over.
    """
    check_stems(image_set, ending)
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; expected one with CLASS/NAME{ending} for every image")
    sample = [f"{stem_of(image_set.keys[i])}{ending}" for i in {0, len(image_set) // 2, len(image_set) - 1}]
    level = [source]
    for _ in range(DEEPEST):
        found = [root for root in level if any((root / file).is_file() for file in sample)]
        if found:
            check_files(found[0], image_set, ending)
            return found[0]
        level = [Path(entry.path) for root in level for entry in sorted_entries(root) if entry.is_dir()]
    raise InputError(
        f"{source} has no {sample[0]}, at any depth; expected CLASS/NAME{ending} for every image of {image_set.source}"
    )


def sorted_entries(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def check_files(root: Path, image_set: ImageSet, ending: str) -> None:
    expected: dict[str, set[str]] = {}
    for key in image_set.keys:
        path = PurePosixPath(stem_of(key))
        expected.setdefault(str(path.parent), set()).add(f"{path.name}{ending}")
    missing: list[str] = []
    surplus: list[str] = []
    for folder, names in expected.items():
        place = root / folder
        found = {entry.name for entry in sorted_entries(place)} if place.is_dir() else set()
        missing += [f"{folder}/{name}" for name in sorted(names - found)]
        surplus += [f"{folder}/{name}" for name in sorted(found - names) if name.endswith(ending)]
    report(f"{root}", image_set, missing, surplus)


def report(store: str, image_set: ImageSet, missing: Sequence[str], surplus: Sequence[str]) -> None:
    """Raises InputError if the store lacks labels of some images, or has labels of others."""
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the {len(image_set)} images have no labels there (first: {listed(missing)})")
    if surplus:
        problems.append(f"{len(surplus)} labels there have no image (first: {listed(surplus)})")
    if problems:
        raise InputError(
            f"{store} and {image_set.source}: {'; '.join(problems)}. Pass the images that the store was made from,"
            " all of them"
        )


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW])
