"""What people call the classes of an image folder: WordNet ids by their lemma, others by a file of names or as they are."""

import functools
from pathlib import Path

from timm.data import ImageNetInfo

from pipeline.errors import InputError


class ClassNames:
    """`names("n01440764")` is "tench (n01440764)"; a folder that nobody has another name for is called by its own."""

    def __init__(self, file: Path | None = None) -> None:
        """Args:
            file: a line per class, FOLDER NAME, apart by a tab or else by the first space; instead of WordNet's lemmas.
        Raises:
            InputError: the file is missing, or a line is not of this form, or names a folder again.
        """
        self.given = read_names(file) if file is not None else None

    def __call__(self, folder: str) -> str:
        name = self.given.get(folder) if self.given is not None else lemma(folder)
        return folder if name is None else f"{name} ({folder})"


def read_names(file: Path) -> dict[str, str]:
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
