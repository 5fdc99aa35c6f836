"""The lists of images that `relabel find-noise` writes for train: without those labelled wrong, or with other labels.

They are lists as relabel/images/sources.py reads them: a path per line, and after a tab the label if it is not the folder. A
class that no line names any more has one of its own, so that train gets the classes of the label set.
"""

import os
from pathlib import Path

import numpy as np

from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

HEADER = "# relabel find-noise: "


def check_listable(images: ImageSet, option: str, path: Path) -> None:
    """Raises InputError if the images are no files that a list could name, or the list's own name is not one's."""
    if path.suffix != ".txt":
        raise InputError(f"{option} {path}: expected a name that ends in .txt, by which a list is known")
    if not isinstance(images.locations[0], bytes):
        raise InputError(
            f"{option} lists image files, but those of {images.source} are not files of their own; leave it out, or"
            " unpack them into class folders"
        )


def image_list(images: ImageSet, labels: np.ndarray, keep: np.ndarray, title: str) -> bytes:
    """A list of some of the images with these labels.

    Args:
        labels: (N,) class of each image.
        keep: (N,) bool.
        title: for the first line.
    Raises:
        InputError: a file name would break the list.
    """
    lines, named = [f"{HEADER}{title}"], set()
    for number in np.flatnonzero(keep).tolist():
        folder, label = images.keys[number].split("/")[0], images.classes[labels[number]]
        named |= {folder, label}
        path = os.path.abspath(images.name(number))  # noqa: PTH100  (resolve would follow links)
        line = path if folder == label else f"{path}\t{label}"
        if len(line.splitlines()) > 1:
            raise InputError(f"{path!r} cannot be listed, as its name has a line break; rename it")
        lines.append(line)
    lines += [f"\t{name}" for name in images.classes if name not in named]
    return ("\n".join(lines) + "\n").encode()


def is_list(path: Path) -> bool:
    """Whether this command has written the file."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER.encode()
