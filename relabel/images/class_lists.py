"""Lists of class names that go by number: the outputs of a classifier, or the class numbers of a data set without names.

A list is a text file with one name per line, as timm's class maps are, or "timm": the WordNet ids that timm provides for
ImageNet-1k, -12k, -21k and -22k.
"""

import unicodedata
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from relabel.runtime.errors import InputError

TIMM_CLASSES = "timm"


def same_spelling(name: str) -> str:
    """The name with each accented letter as one character (NFC): é can also be two, as in the file names of macOS."""
    return unicodedata.normalize("NFC", name)


def output_names(choice: str, num_outputs: int, option: str = "--classes") -> tuple[str, ...]:
    """The class names of a classifier's outputs, in their order and in one spelling of accented letters (`same_spelling`).

    Args:
        choice: a text file with one class name per output; or "timm".
        option: of the command line, for messages.
    Raises:
        InputError: the file is missing, has more or fewer lines than outputs, or lists a name twice.
    """
    names = timm_class_names(num_outputs, option) if choice == TIMM_CLASSES else read_class_list(Path(choice), option)
    if len(names) != num_outputs:
        raise InputError(f"{option} {choice}: {len(names)} names, but the classifier has {num_outputs} outputs")
    return each_once([same_spelling(name) for name in names], f"{option} {choice}")


def mapped_classes(choice: str, highest: int, option: str) -> tuple[str, ...]:
    """The class names of a data set that numbers its classes; a name is spelt as in the list, since it becomes part of keys.

    Args:
        choice: a text file with the name of class i on line i, counted from 0; or "timm".
        highest: the highest class number in the data set.
        option: of the source, for messages.
    Raises:
        InputError: the file is missing, has no line for the highest number, or lists a name twice.
    """
    names = timm_class_names(highest + 1, option) if choice == TIMM_CLASSES else read_class_list(Path(choice), option)
    if highest >= len(names):
        raise InputError(
            f"{option} {choice} has {len(names)} names, for class numbers up to {len(names) - 1}, but an image has class"
            f" number {highest}; add the missing lines, or use the list of this data set"
        )
    return each_once(names, f"{option} {choice}")


def each_once(names: list[str], list_name: str) -> tuple[str, ...]:
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        repeated = next(name for i, name in enumerate(names) if place[name] != i)
        raise InputError(f"{list_name}: {repeated} is listed twice; expected each name once")
    return tuple(names)


def read_class_list(path: Path, option: str) -> list[str]:
    """One name per line; text after a tab is a comment. Lines NAME NUMBER that number the names from 0 are put in order."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # utf-8-sig: Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: {error}; expected a text file of class names, or {TIMM_CLASSES}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise InputError(f"{option} {path}: line {empty[0]} is empty; expected one name per class, in their order")
    numbered = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(parts) == 2 and parts[1].isascii() and parts[1].isdecimal() for parts in numbered):
        by_number = {int(number): name.strip() for name, number in numbered}
        if sorted(by_number) == list(range(len(lines))) and len(set(by_number.values())) == len(lines):
            return [by_number[number] for number in range(len(lines))]
    return [line.split("\t")[0].strip() for line in lines]


def timm_class_names(num_classes: int, option: str) -> list[str]:
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        raise InputError(f"{option} {TIMM_CLASSES}: timm has no names for a classifier of {num_classes} classes")
    names: list[str] = ImageNetInfo(subset).label_names()
    return names
