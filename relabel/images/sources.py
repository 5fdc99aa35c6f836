"""Where images come from: a folder in ImageNet's layout, a list of paths, tar files, or a Hugging Face data set.

    ROOT/                 ROOT/CLASS/*.JPEG
    images.txt            one path per line, absolute or relative to the list's folder; the class is the parent folder
    images.tar            CLASS/*.JPEG at any depth, or one tar per class inside it, as ImageNet's training images come
    ROOT/*.tar            a folder of such tars; a tar without folders is named after its class
    hfds/NAME[:SPLIT]     a data set that `datasets` loads, from disk or by name; SPLIT defaults to "train"

An image has the same key in all of them, so one label set serves every source.
"""

import functools
import logging
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
HFDS_NAME = re.compile(r"(.+)_(n\d{8})(\.\w+)")  # ImageNet's files: n01440764_10026_n01440764.JPEG, class last

logger = logging.getLogger(__name__)


def find_images(source: Path | str) -> ImageSet:
    """List the images of a source.

    Raises:
        InputError: the source does not exist or has no images, a class folder has none but other files, or two images have
            the same key.
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
        problem = "is not a folder, .tar or .txt list" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {problem}; expected a folder with one sub-folder of images per class, a .tar, a .txt list of paths, or"
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
    empty: list[str] = []  # classes without images, as in a part of ImageNet
    for name in folders:
        content = list((root / name).iterdir())
        files = [path.name for path in content if is_image(path.name)]
        inner = [path for path in content if not is_image(path.name) and is_folder(path)]
        if not files and all(path.name.startswith(".") for path in content):
            empty.append(name)
        elif not files:
            hint = f"; it contains {len(inner)} folders: did you mean {root / name}?" if inner else "; fill it or remove it"
            raise InputError(f"{root / name} contains no images ({', '.join(sorted(extensions()))}){hint}")
        for path in inner:
            if any(is_image(p.name) for p in path.iterdir()):
                raise InputError(
                    f"{path} contains images, but lies inside the folder of class {name}; an image's class is its parent"
                    f" folder: move the images up into {name}, or move {path.name} beside it"
                )
        keys += [f"{name}/{file}" for file in files]
    if not keys:
        raise InputError(f"{root} contains no images: its {len(folders)} class folders are empty; fill them")
    if empty:
        logger.warning(
            f"{len(empty)} of {len(folders)} class folders in {root} are empty (such as {empty[0]}); they count as classes"
        )
    return make_image_set(str(root), folders, keys, string_locations(keys), functools.partial(path_in_folder, root))


def class_folders(root: Path) -> tuple[str, ...]:
    return sort_classes(p.name for p in root.iterdir() if is_folder(p))


def is_folder(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "lost+found" and path.is_dir()  # every ext4 disk has one


def from_list(path: Path) -> ImageSet:
    """One path per line; empty lines and lines that begin with # are skipped."""
    folder = path.parent.resolve()
    locations: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); expected one path per line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        image = PurePosixPath(line.strip())
        parts = PurePosixPath(os.path.normpath(folder / image)).parts
        key = "/".join(parts[-2:])
        if len(parts) < 3 or not is_image(image.name):
            raise InputError(f"{path} line {number}: {line!r} is not the path of an image in a class folder")
        if key in locations:
            raise InputError(f"{path} line {number}: {image} and {locations[key]} have the same key {key}")
        locations[key] = str(image)
    if not locations:
        raise InputError(f"{path} lists no images; expected one path per line")
    classes, opener = sort_classes(key.split("/")[0] for key in locations), functools.partial(path_in_folder, path.parent)
    return make_image_set(str(path), classes, list(locations), string_locations(list(locations.values())), opener)


def from_tars(source: Path, tars: Sequence[Path]) -> ImageSet:
    """Images in tars, read by their offset: nothing is unpacked, and no tar is kept open."""
    names: dict[str, str] = {}
    locations: list[tuple[int, int, int]] = []  # tar, offset, size: three numbers per image instead of an object
    for number, path in enumerate(tars):
        for member in tar_members(path):
            if is_image(PurePosixPath(member.name).name):
                key = "/".join((path.stem, *PurePosixPath(posixpath.normpath(member.name)).parts)[-2:])
                if key in names:
                    raise InputError(f"{path}: {member.name} and {names[key]} have the same key {key}")
                names[key] = member.name
                locations.append((number, member.offset, member.size))
    if not names:
        raise InputError(
            f"{source} contains no images ({', '.join(sorted(extensions()))}) in folders or tars named after classes"
        )
    classes = sort_classes(key.split("/")[0] for key in names)
    return make_image_set(
        str(source), classes, list(names), tar_locations(locations), functools.partial(read_tar_location, tuple(tars))
    )


def from_hf_dataset(source: str) -> ImageSet:
    """hfds/NAME[:SPLIT], through timm's reader."""
    name, _, split = source.removeprefix(HFDS).partition(":")
    try:
        reader: Any = create_reader(HFDS + name, root=None, split=split or "train")
        table = reader.dataset.data  # memory-mapped: a column's chunks take no memory until they are read
        files = [path for chunk in table.column(reader.image_key).chunks for path in chunk.field("path").to_pylist()]
        targets = table.column(reader.label_key).to_pylist()
    except ImportError as error:
        raise InputError(f"reading {source} needs the package datasets: pip install datasets") from error
    except Exception as error:  # errors of the hub, the disk and the table have no common type
        raise InputError(f"cannot read {source}: {first_line(error)}") from error
    classes = tuple(reader.class_to_idx)
    if not classes:
        raise InputError(f"{source}: its column {reader.label_key} has no class names")
    unlabelled = sum(target is None or not 0 <= target < len(classes) for target in targets)
    if unlabelled:
        raise InputError(f"{source}: {unlabelled} of its {len(targets)} images have no label; choose another split")
    names = [Path(file).name if file else f"{row}" for row, file in enumerate(files)]
    imagenet_names = [HFDS_NAME.fullmatch(name) for name in names]
    if all(imagenet_names):  # its class indices follow the sorted WordNet ids
        synsets = {target: match[2] for target, match in zip(targets, imagenet_names, strict=True) if match}
        classes = tuple(synsets.get(i, name) for i, name in enumerate(classes))
        names = [match[1] + match[3] for match in imagenet_names if match]
    keys = [f"{classes[target].replace('/', '-')}/{name}" for target, name in zip(targets, names, strict=True)]
    repeated = len(keys) - len(set(keys))
    if repeated:
        raise InputError(f"{source}: {repeated} images have the same class and file name as another, so keys are not unique")
    return make_image_set(source, classes, keys, np.arange(len(keys)), functools.partial(read_dataset_row, reader), targets)


def make_image_set(
    source: str,
    classes: tuple[str, ...],
    keys: list[str],
    locations: np.ndarray,
    opener: Any,
    targets: list[int] | None = None,
) -> ImageSet:
    """Sort by key; `targets` defaults to the classes in the keys."""
    index = {name: i for i, name in enumerate(classes)}
    order = sorted(range(len(keys)), key=keys.__getitem__)
    unsorted = targets if targets is not None else [index[key.split("/")[0]] for key in keys]
    for key in keys:
        if not is_utf8(key):
            raise InputError(f"{source}: the name {key!r} is not UTF-8; rename the file")
        if ".." in key and ".." in key.split("/"):
            raise InputError(f"{source}: {key!r} leads outside its class folder")
    return ImageSet(
        source, classes, tuple(keys[i] for i in order), np.array(unsorted, dtype=np.int64)[order], locations[order], opener
    )


def path_in_folder(root: Path, location: Any) -> Path:
    return root / str(location)


def read_tar_location(tars: tuple[Path, ...], location: Any) -> bytes:
    tar, offset, size = location.tolist()
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
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))  # the name itself: Cat is not cat


def string_locations(locations: list[str]) -> np.ndarray:
    """(N,) references to the strings: if these are the keys themselves, they are in memory only once."""
    return np.array(locations, dtype=object)


def tar_locations(locations: list[tuple[int, int, int]]) -> np.ndarray:
    """(N,) records of three numbers."""
    return np.array(locations, dtype=[("tar", np.int32), ("offset", np.int64), ("size", np.int64)])
