"""Classes: readable names for class folders, the names of a model's outputs, and how the two are matched."""

import dataclasses
import functools
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo, infer_imagenet_subset

from relabel.images.image_set import ImageSet
from relabel.images.sources import sort_classes
from relabel.runtime.errors import InputError

TIMM_CLASSES = "timm"

logger = logging.getLogger(__name__)


class ClassNames:
    """`names("n01440764")` is "tench (n01440764)"; a folder without a known name is called by its folder name."""

    def __init__(self, file: Path | None = None) -> None:
        """Args:
            file: one line per class, FOLDER NAME, separated by a tab, else by the first space; if None, WordNet's lemmas.
        Raises:
            InputError: the file is missing, a line has another form, or a folder has two names.
        """
        self._file = file
        self._from_file = read_class_names(file) if file is not None else None

    def __call__(self, folder: str) -> str:
        name = self._from_file.get(same_spelling(folder)) if self._from_file is not None else lemma(folder)
        return folder if name is None else f"{name} ({folder})"

    def check_complete(self, folders: Sequence[str]) -> None:
        """Raises InputError if a file of names was given, and misses one of these."""
        missing = [f for f in folders if self._from_file is not None and same_spelling(f) not in self._from_file]
        if missing:
            raise InputError(
                f"--class-names {self._file}: {len(missing)} of {len(folders)} classes have no name (first: {missing[0]});"
                " expected a line FOLDER NAME for each"
            )


def same_spelling(name: str) -> str:
    """The name with each accented letter as one character (NFC): é can also be two, as in the file names of macOS."""
    return unicodedata.normalize("NFC", name)


def read_class_names(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # utf-8-sig: Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {file}: {error}") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        folder, *name = line.split("\t" if "\t" in line else None, maxsplit=1)
        if not name or not name[0].strip():
            raise InputError(f"{file} line {number} is {line!r}; expected FOLDER NAME, such as n01440764 tench")
        folder = same_spelling(folder)
        if folder in names:
            raise InputError(f"{file} line {number} names the folder {folder} again; expected one line per class")
        names[folder] = name[0].strip()
    return names


def lemma(wordnet_id: str) -> str | None:
    """The first lemma that timm lists for a WordNet id; None for any other name."""
    try:
        return str(wordnet().label_name_to_description(wordnet_id)).split(",")[0]
    except KeyError:
        return None


@functools.cache
def wordnet() -> ImageNetInfo:
    """timm's class names of ImageNet-1k, read once."""
    return ImageNetInfo("imagenet-1k")


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k, in the order of every model that is trained on it."""
    return tuple(wordnet().label_names())


def numbered_as_imagenet(image_set: ImageSet) -> bool:
    """Whether the class folders are named 0 ... 999, the class indices of ImageNet, as in ImageNetV2."""
    return image_set.classes == tuple(map(str, range(len(imagenet_classes()))))


def output_names(choice: str, num_outputs: int, option: str = "--classes") -> tuple[str, ...]:
    """The class names of a classifier's outputs, in their order and in one spelling of accented letters (`same_spelling`).

    Args:
        choice: a text file with one class name per output; or "timm", for the WordNet ids that timm provides for
            ImageNet-1k, -12k, -21k and -22k classifiers.
        option: of the command line, for messages.
    Raises:
        InputError: the file is missing, has more or fewer lines than outputs, or lists a name twice.
    """
    names = timm_class_names(num_outputs, option) if choice == TIMM_CLASSES else read_output_names(Path(choice), option)
    if len(names) != num_outputs:
        raise InputError(f"{option} {choice}: {len(names)} names, but the classifier has {num_outputs} outputs")
    names = [same_spelling(name) for name in names]
    output = {name: i for i, name in enumerate(names)}
    if len(output) < len(names):
        repeated = next(name for i, name in enumerate(names) if output[name] != i)
        raise InputError(f"{option} {choice}: {repeated} is listed twice; expected each name once")
    return tuple(names)


def check_recorded_classes(classes: tuple[str, ...], names: str | None, owner: str, option: str) -> None:
    """Raise InputError if names that were given contradict the classes that a relabel checkpoint records."""
    if names is not None and output_names(names, len(classes), option) != tuple(map(same_spelling, classes)):
        raise InputError(
            f"{option} {names}: {owner} records other classes or another order (first: {classes[0]}); leave {option} out"
        )


def read_output_names(path: Path, option: str) -> list[str]:
    """One name per line; text after a tab is a comment."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # utf-8-sig: Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: {error}; expected a text file of class names, or {TIMM_CLASSES}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise InputError(f"{option} {path}: line {empty[0]} is empty; expected one name per output of the classifier")
    return [line.split("\t")[0].strip() for line in lines]


def timm_class_names(num_outputs: int, option: str) -> list[str]:
    subset = infer_imagenet_subset({"num_classes": num_outputs})
    if subset is None:
        raise InputError(f"{option} {TIMM_CLASSES}: timm has no names for a classifier of {num_outputs} classes")
    names: list[str] = ImageNetInfo(subset).label_names()
    return names


def listing_advice(option: str) -> str:
    return f"list its classes with {option} FILE, one name per line"


def warn_of_plain_order(image_set: ImageSet, owner: str, advice: str) -> None:
    """Say so if another program would have sorted the class folders otherwise: torchvision's ImageFolder, for example.

    Args:
        owner: what has outputs in the order of the folders, without a proof that they are in this order.
        advice: what to do if it was in plain order.
    """
    ours, plain = image_set.classes, tuple(sorted(image_set.classes))
    if ours == plain or ours != sort_classes(ours):  # a data set that has an order of its own
        return
    here, there = next(pair for pair in zip(ours, plain, strict=True) if pair[0] != pair[1])
    logger.warning(
        f"{owner} does not record its classes. They are taken to be in the order of the folders in {image_set.source}"
        f" sorted by number and regardless of case ({here} comes before {there}). Plain sorting, as of torchvision's"
        f" ImageFolder, puts {there} first. If it was made in that order, {advice}"
    )


def class_indices(image_set: ImageSet, classes: tuple[str, ...], owner: str, *, numbered: bool = False) -> np.ndarray:
    """(number of class folders,) int64: the index of each class folder among a model's classes, which may be more.

    Folders named 0 ... 999, as in ImageNetV2, are taken for ImageNet's class indices.

    Args:
        classes: the model's, in its order.
        owner: what to call the model in the message.
        numbered: the images are ImageNetV2's, of which some class folders may be absent.
    Raises:
        InputError: a folder is none of the classes; the message names the first three.
    """
    index = {same_spelling(name): i for i, name in enumerate(classes)}
    if classes == imagenet_classes() and (numbered or numbered_as_imagenet(image_set)):
        index |= {str(i): i for i in range(len(classes))}
    unknown = [name for name in image_set.classes if same_spelling(name) not in index]
    if unknown:
        if len(image_set.classes) == len(classes):
            check_classes(image_set, classes, owner)
        raise InputError(
            f"{image_set.source}: {len(unknown)} of {len(image_set.classes)} class folders are not classes of {owner}"
            f" ({', '.join(unknown[:3])})"
        )
    return np.array([index[same_spelling(name)] for name in image_set.classes])


def among_classes(image_set: ImageSet, classes: tuple[str, ...], owner: str) -> ImageSet:
    """The same images with the classes of a model, matched by name; some of them may have no images.

    ImageNetV2's folders 0 ... 999 keep their names.

    Raises:
        InputError: a folder is none of the model's classes.
    """
    indices = class_indices(image_set, classes, owner)
    if np.array_equal(indices, np.arange(len(classes))):
        return image_set
    return dataclasses.replace(image_set, classes=classes, targets=indices[image_set.targets])


def classes_with_images(targets: np.ndarray, classes: int) -> np.ndarray | None:
    """The classes that have images, in order; None if all have some."""
    present = np.unique(targets)
    return present if len(present) < classes else None


def class_mismatch(known: Sequence[str] | int, found: Sequence[str]) -> str | None:
    """How two ordered lists of classes differ, with the first three differences; None if they are equal.

    Args:
        known: the classes of a model or a label set; only their number if the names are not known.
        found: the classes of the images.
    """
    count = known if isinstance(known, int) else len(known)
    found = [same_spelling(name) for name in found]
    names = found if isinstance(known, int) else [same_spelling(name) for name in known]
    if count != len(found):
        differing = [f"{name} is unknown" for name in found if name not in set(names)]
        differing += [f"{name} has no folder" for name in names if name not in set(found)]
        named = f": {'; '.join(differing[:3])}" if differing else ""
        return f"expected {count} classes, found {len(found)}{named}"
    differing = [f"expected {a}, found {b}" for a, b in zip(names, found, strict=True) if a != b]
    return f"different class names or order: {'; '.join(differing[:3])}" if differing else None


def check_classes(image_set: ImageSet, classes: Sequence[str], owner: str) -> None:
    """Raise InputError unless the class folders are the classes that a model was trained with, in the same order."""
    mismatch = class_mismatch(classes, image_set.classes)
    if mismatch is not None:
        raise InputError(f"{image_set.source} does not have the classes of {owner}: {mismatch}")
