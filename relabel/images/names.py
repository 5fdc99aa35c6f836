"""Names: which files are images, and the order of classes."""

import os
import re
from collections.abc import Iterable

from relabel.images.decoding import extensions


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions()  # noqa: PTH122  (a million names)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once; numbers sort as numbers."""
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))  # the name itself: Cat is not cat


def natural_key(name: str) -> list[int | str]:
    """timm's natural_key, but it also takes names with digits that int() cannot read, such as 5² and ①."""
    parts = re.split(r"(\d{1,4000})", name.lower())  # int() reads no more digits than 4,300
    return [int(part) if part.isdecimal() else part for part in parts]


def endings() -> str:
    return ", ".join(sorted(extensions()))
