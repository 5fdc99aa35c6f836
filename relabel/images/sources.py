"""Where images come from: a folder in ImageNet's layout, a list of paths, tar files, or a Hugging Face data set.

    ROOT/                 ROOT/CLASS/*.JPEG
    images.txt            a path per line, absolute or from the list's folder; its class is the folder that it lies in
    images.tar            CLASS/*.JPEG at any depth, or a tar per class within it, as ImageNet's training images come
    ROOT/*.tar            a folder of such tars; a tar without folders of its own is named for its class
    hfds/NAME[:SPLIT]     a data set that `datasets` loads: on disk, or by name; SPLIT is "train" unless said

An image has the same key wherever it lies, so that one label set serves them all.
"""

import functools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from relabel.images.image_set import ImageSet
from relabel.images.keys import is_utf8
from relabel.images.tar_members import TarMember, read_member, tar_members
from relabel.runtime.errors import InputError, first_line

HFDS = "hfds/"
HFDS_NAME = re.compile(r"(.+)_(n\d{8})(\.\w+)")  # of ImageNet there: n01440764_10026_n01440764.JPEG, class last


def find_images(source: Path | str) -> ImageSet:
    """List the images of a source.

    Raises:
        InputError: it does not exist, holds no images, a class without any, or two images of the same key.
    """
    source = str(source)
    if source.startswith(HFDS):
        return from_hf_dataset(source)
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        return from_list(path)
    if path.is_file() and path.suffix == ".tar":
        return from_tars(path, [path])
    if not path.is_dir():
        what = "is no .tar and no .txt list" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}; expected a folder with one sub-folder of images per class, a .tar, a .txt list of paths, or"
            " hfds/NAME"
        )
    tars = sorted(path.glob("*.tar"))
    return from_tars(path, tars) if tars and not class_folders(path) else from_folder(path)


def from_folder(root: Path) -> ImageSet:
    """ROOT/CLASS/*.JPEG."""
    folders = class_folders(root)
    if not folders:
        raise InputError(f"{root} has no sub-folders; expected one folder of images per class (ROOT/CLASS/*.JPEG)")
    keys: list[str] = []
    for name in folders:
        there = list((root / name).iterdir())
        files = [path.name for path in there if is_image(path.name)]
        inner = [path for path in there if not is_image(path.name) and is_folder(path)]
        if not files:
            hint = f"; it holds {len(inner)} folders: did you mean {root / name}?" if inner else "; fill it or remove it"
            raise InputError(f"{root / name} holds no image ({', '.join(sorted(extensions()))}){hint}")
        for path in inner:
            if any(is_image(p.name) for p in path.iterdir()):
                raise InputError(
                    f"{path} holds images within the folder of class {name}; an image's class is the folder that it lies in:"
                    f" move them up, or {path.name} beside {name}"
                )
        keys += [f"{name}/{file}" for file in files]
    return make_image_set(str(root), folders, keys, string_places(keys), functools.partial(path_in_folder, root))


def class_folders(root: Path) -> tuple[str, ...]:
    return sort_classes(p.name for p in root.iterdir() if is_folder(p))


def is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def from_list(path: Path) -> ImageSet:
    """A path per line; empty lines and lines that begin with # do not count."""
    folder = path.parent.resolve()
    places: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); expected a path per line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        image = PurePosixPath(line.strip())
        parts = PurePosixPath(os.path.normpath(folder / image)).parts
        key = "/".join(parts[-2:])
        if len(parts) < 3 or not is_image(image.name):
            raise InputError(f"{path} line {number}: {line!r} is no path of an image in its class's folder")
        if key in places:
            raise InputError(f"{path} line {number}: {image} and {places[key]} have the same key {key}")
        places[key] = str(image)
    if not places:
        raise InputError(f"{path} lists no image; expected a path per line")
    classes, opener = sort_classes(key.split("/")[0] for key in places), functools.partial(path_in_folder, path.parent)
    return make_image_set(str(path), classes, list(places), string_places(list(places.values())), opener)


def from_tars(source: Path, tars: Sequence[Path]) -> ImageSet:
    """Images within tars, read by their place: nothing is unpacked, and no tar is held open."""
    names: dict[str, str] = {}
    places: list[tuple[int, int, int]] = []  # tar, offset, size: three numbers an image instead of an object
    for number, path in enumerate(tars):
        for member in tar_members(path):
            if is_image(PurePosixPath(member.name).name):
                key = "/".join((path.stem, *PurePosixPath(posixpath.normpath(member.name)).parts)[-2:])
                if key in names:
                    raise InputError(f"{path}: {member.name} and {names[key]} have the same key {key}")
                names[key] = member.name
                places.append((number, member.offset, member.size))
    if not names:
        raise InputError(
            f"{source} holds no images ({', '.join(sorted(extensions()))}) in folders or tars named for classes"
        )
    classes = sort_classes(key.split("/")[0] for key in names)
    return make_image_set(
        str(source), classes, list(names), tar_places(places), functools.partial(read_tar_place, tuple(tars))
    )


def from_hf_dataset(source: str) -> ImageSet:
    """hfds/NAME[:SPLIT], through timm's reader."""
    name, _, split = source.removeprefix(HFDS).partition(":")
    try:
        reader: Any = create_reader(HFDS + name, root=None, split=split or "train")
        table = reader.dataset.data  # memory-mapped; a column's chunks cost nothing until they are read
        files = [path for chunk in table.column(reader.image_key).chunks for path in chunk.field("path").to_pylist()]
        targets = table.column(reader.label_key).to_pylist()
    except ImportError as error:
        raise InputError(f"{source} is read by the package datasets: pip install datasets") from error
    except Exception as error:  # a hub, a disk and a table have no exception in common
        raise InputError(f"cannot read {source}: {first_line(error)}") from error
    classes = tuple(reader.class_to_idx)
    if not classes:
        raise InputError(f"{source}: its column {reader.label_key} does not name classes")
    unlabelled = sum(target is None or not 0 <= target < len(classes) for target in targets)
    if unlabelled:
        raise InputError(f"{source}: {unlabelled} of its {len(targets)} images have no label; name another split")
    names = [Path(file).name if file else f"{row}" for row, file in enumerate(files)]
    of_imagenet = [HFDS_NAME.fullmatch(name) for name in names]
    if all(of_imagenet):  # its classes are numbered as ImageNet's sorted folders are
        synsets = {target: match[2] for target, match in zip(targets, of_imagenet, strict=True) if match}
        classes = tuple(synsets.get(i, name) for i, name in enumerate(classes))
        names = [match[1] + match[3] for match in of_imagenet if match]
    keys = [f"{classes[target].replace('/', '-')}/{name}" for target, name in zip(targets, names, strict=True)]
    twice = len(keys) - len(set(keys))
    if twice:
        raise InputError(f"{source}: {twice} images have the class and file name of another one, so keys are not unique")
    return make_image_set(source, classes, keys, np.arange(len(keys)), functools.partial(read_dataset_row, reader), targets)


def make_image_set(
    source: str, classes: tuple[str, ...], keys: list[str], places: np.ndarray, opener: Any, targets: list[int] | None = None
) -> ImageSet:
    """Sort by key; a target is the key's class unless given."""
    number = {name: i for i, name in enumerate(classes)}
    order = sorted(range(len(keys)), key=keys.__getitem__)
    of_key = targets if targets is not None else [number[key.split("/")[0]] for key in keys]
    for key in keys:
        if not is_utf8(key):
            raise InputError(f"{source}: the name {key!r} is not UTF-8; rename the file")
        if ".." in key and ".." in key.split("/"):
            raise InputError(f"{source}: {key!r} leads out of its class's folder")
    return ImageSet(
        source, classes, tuple(keys[i] for i in order), np.array(of_key, dtype=np.int64)[order], places[order], opener
    )


def path_in_folder(root: Path, place: Any) -> Path:
    return root / str(place)


def read_tar_place(tars: tuple[Path, ...], place: Any) -> bytes:
    tar, offset, size = place.tolist()
    return read_member(TarMember("", tars[tar], offset, size))


def read_dataset_row(reader: Any, row: Any) -> bytes:
    file, _ = reader[int(row)]
    with file:
        content: bytes = file.read()
    return content


def is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions()  # noqa: PTH122  (a million names)


@functools.cache
def extensions() -> frozenset[str]:
    return frozenset(get_img_extensions(as_set=True))


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once; numbers sort as numbers."""
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))  # the name itself: Cat and cat are two


def string_places(places: list[str]) -> np.ndarray:
    """(N,) of the strings themselves: where they are the keys, they are in memory once."""
    return np.array(places, dtype=object)


def tar_places(places: list[tuple[int, int, int]]) -> np.ndarray:
    """(N,) of three numbers each."""
    return np.array(places, dtype=[("tar", np.int32), ("offset", np.int64), ("size", np.int64)])
