"""Where images come from: a folder in ImageNet's layout, a list of paths, tar files, WebDataset shards, or a Hugging Face
data set.

    ROOT/                 ROOT/CLASS/*.JPEG
    images.txt            one path per line, absolute or relative to the list's folder; the class is the parent folder, or
                          what follows the path after a tab; a tab and a class without a path: a class without images
    images.tar            CLASS/*.JPEG at any depth, or one tar per class inside it, as ImageNet's training images come
    ROOT/*.tar            a folder of such tars; a tar without folders is named after its class
    wds/FOLDER[:SPLIT]    WebDataset shards, see relabel/images/web_dataset.py
    hfds/NAME[:SPLIT]     a data set that `datasets` loads, see relabel/images/hf_dataset.py

An image has the same key in all of them, so one label set serves every source.
"""

import functools
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from relabel.images.hf_dataset import HFDS, read_hf_dataset
from relabel.images.image_set import ImageSet
from relabel.images.keys import Keys, encode_keys, is_utf8
from relabel.images.names import endings, is_image, sort_classes
from relabel.images.tar_members import read_tar_location, tar_locations, tar_members
from relabel.images.web_dataset import WDS, read_web_dataset
from relabel.runtime.errors import InputError

logger = logging.getLogger(__name__)

LAYOUT = "expected CLASS/NAME, the images directly in their class's folder: move them up"
MAX_ENDINGS = 8  # listed of the files that are left out


def find_images(source: Path | str) -> ImageSet:
    """List the images of a source.

    Raises:
        InputError: the source does not exist, has no images or another layout, a class folder has none but other files, or
            two images have the same key.
    """
    images = list_images(str(source))
    if len(images.classes) == 1:
        logger.warning(
            f"{source}: all {len(images)} images are of one class, {images.classes[0]}. The class of an image is the folder"
            " that it is in (CLASS/NAME)"
        )
    return images


def check_outside(folder: Path, images: Path | str, option: str) -> None:
    """Refuse to write a folder inside an image folder, where its files would count as a class.

    Raises:
        InputError: `folder` is inside `images` and not hidden.
    """
    source = Path(images)
    if not source.is_dir():
        return
    inside = Path(os.path.relpath(folder.resolve(), source.resolve()))
    if inside.parts[:1] != ("..",) and not any(part.startswith(".") for part in inside.parts):
        raise InputError(
            f"{option} {folder} lies in the image folder {images}, where it would count as a class; name another"
        )


def list_images(source: str) -> ImageSet:
    if source.startswith(HFDS):
        return make_image_set(source, *read_hf_dataset(source))
    if source.startswith(WDS):
        return make_image_set(source, *read_web_dataset(source))
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        return from_list(path)
    if path.is_file() and path.suffix == ".tar":
        return from_tars(path, [path])
    if not path.is_dir():
        problem = "is not a folder, .tar or .txt list" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {problem}; expected a folder with one sub-folder of images per class, a .tar, a .txt list of paths,"
            " wds/FOLDER for WebDataset shards, or hfds/NAME"
        )
    tars = sorted(path.glob("*.tar"))
    return from_tars(path, tars) if tars and not class_folders(path) else from_folder(path)


def from_folder(root: Path) -> ImageSet:
    """ROOT/CLASS/*.JPEG."""
    folders = class_folders(root)
    if not folders:
        raise InputError(f"{root} has no sub-folders; expected one folder of images per class (ROOT/CLASS/*.JPEG)")
    keys: list[str] = []
    left_out: Counter[str] = Counter()
    empty: list[str] = []  # classes without images, as in a part of ImageNet
    for name in folders:
        files, inner, others = [], [], []
        with os.scandir(root / name) as entries:  # tells files from folders without asking the disk again
            for entry in entries:
                if is_image(entry.name):
                    check_regular(entry)
                    files.append(entry.name)
                elif is_folder(entry):
                    inner.append(Path(entry.path))
                else:
                    others.append(entry.name)
        left_out.update(others)
        images_below = [folder for folder in inner if any(is_image(path.name) for path in folder.iterdir())]
        if not files and not inner and all(other.startswith(".") for other in others):
            empty.append(name)
        elif not files:
            hint = "; fill it or remove it"
            if len(inner) == 1 and images_below:
                hint = (
                    f", but its folder {inner[0].name} does; {LAYOUT}, or pass {root / name} if {inner[0].name} is a class"
                )
            elif inner:
                hint = f"; it contains {len(inner)} folders: did you mean {root / name}?"
            raise InputError(f"{root / name} contains no images ({endings()}){hint}")
        if images_below:
            raise nested_images(images_below[0], name)
        keys += [f"{name}/{file}" for file in files]
    if not keys:
        raise InputError(f"{root} contains no images: its {len(folders)} class folders are empty; fill them")
    if empty:
        logger.warning(
            f"{len(empty)} of {len(folders)} class folders in {root} are empty (such as {empty[0]}); they count as classes"
        )
    report_left_out(str(root), left_out)
    return make_image_set(str(root), folders, keys, None, functools.partial(path_in_folder, root))


def nested_images(folder: object, name: str) -> InputError:
    inner = PurePosixPath(str(folder)).name
    return InputError(
        f"{folder} contains images, but lies inside the folder of class {name}; an image's class is its parent folder: move"
        f" the images up into {name}, or move {inner} beside it"
    )


def check_regular(entry: "os.DirEntry[str]") -> None:
    """Refuse what is named like an image and is no file: it would stop a run that has begun, or hold it for ever."""
    if not entry.is_file():
        kind = "a folder" if entry.is_dir() else "a broken link" if entry.is_symlink() else "a pipe, socket or device"
        raise InputError(f"{entry.path} is named like an image, but is {kind}; remove or rename it")


def class_folders(root: Path) -> tuple[str, ...]:
    return sort_classes(p.name for p in root.iterdir() if is_folder(p))


def is_folder(path: "Path | os.DirEntry[str]") -> bool:
    return not path.name.startswith(".") and path.name != "lost+found" and path.is_dir()  # every ext4 disk has one


def from_list(path: Path) -> ImageSet:
    """One path per line, which may be followed by a tab and a class; empty lines and lines that begin with # are skipped.

    A class of its own changes the ground-truth label, and not the key, by which the image's labels are found. The parent
    folders remain classes, and a tab and a class without a path is a class that need not have images.
    """
    folder = str(path.parent.resolve())
    locations: dict[str, str] = {}
    labels: list[str] = []  # of each image
    classes: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows marks its UTF-8
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); expected one path per line") from error
    folders: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, label = path_and_label(line)
        if "/" in (label or ""):
            raise InputError(f"{path} line {number}: {label!r} is not the name of a class; expected PATH, a tab, and CLASS")
        if label is not None:
            classes.add(label)
        if not name:
            continue
        place, _, file = posixpath.normpath(posixpath.join(folder, name)).rpartition("/")  # pathlib is slow, for a million
        key = f"{posixpath.basename(place)}/{file}"
        if key.startswith("/") or not is_image(file):
            raise InputError(f"{path} line {number}: {line!r} is not the path of an image in a class folder")
        if key in locations:
            raise InputError(f"{path} line {number}: {name} and {locations[key]} have the same key {key}")
        locations[key] = name
        labels.append(label or posixpath.basename(place))
        folders.add(place)
    if not locations:
        raise InputError(f"{path} lists no images; expected one path per line")
    check_layout(path, {PurePosixPath(place) for place in folders})
    ordered = sort_classes({*classes, *map(posixpath.basename, folders)})
    opener = functools.partial(path_in_folder, path.parent)
    index = {name: i for i, name in enumerate(ordered)}
    targets = [index[label] for label in labels]
    return make_image_set(str(path), ordered, list(locations), encode_keys(list(locations.values())), opener, targets)


def path_and_label(line: str) -> tuple[str, str | None]:
    """A line's path, and its label if there is one after a tab. A path may have tabs in it or before it."""
    path, tab, label = line.rstrip().rpartition("\t")
    path, label = path.strip(), label.strip()
    if is_image(path) or (tab and not path and "/" not in label):
        return path, label
    return line.strip(), None


def from_tars(source: Path, tars: Sequence[Path]) -> ImageSet:
    """Images in tars, read by their offset: nothing is unpacked, and no tar is kept open."""
    names: dict[str, str] = {}
    locations: list[tuple[int, int, int]] = []  # tar, offset, size: three numbers per image instead of an object
    left_out: Counter[str] = Counter()
    broken: list[str] = []
    for number, path in enumerate(tars):
        folders: set[PurePosixPath] = set()
        for member in tar_members(path, broken):
            place = PurePosixPath(posixpath.normpath(member.name))
            if place.suffix == ".cls":
                raise InputError(
                    f"{path} contains {member.name}, so it is a shard of a WebDataset: pass {WDS}{source}, or remove its"
                    " .cls files if the class of an image is its folder"
                )
            if not is_image(place.name):
                left_out[place.name] += 1
                continue
            key = "/".join((path.stem, *place.parts)[-2:])
            if key in names:
                raise InputError(f"{path}: {member.name} and {names[key]} have the same key {key}")
            names[key] = member.name
            locations.append((number, member.offset, member.size))
            folders.add(place.parent)
        check_layout(path, folders)
    if broken:
        logger.warning(
            f"{source}: {len(broken)} links lead to no file in their tar and are left out (first: {broken[0]}); pack the"
            " files themselves (tar --dereference)"
        )
    if not names:
        raise InputError(f"{source} contains no images ({endings()}) in folders or tars named after classes")
    report_left_out(str(source), left_out)
    classes = sort_classes(key.split("/")[0] for key in names)
    return make_image_set(
        str(source), classes, list(names), tar_locations(locations), functools.partial(read_tar_location, tuple(tars))
    )


def check_layout(source: Path, folders: set[PurePosixPath]) -> None:
    """Refuse folders of images that cannot all be classes.

    Raises:
        InputError: one lies inside another; or some or all lie a folder deeper than the classes, as in CLASS/images/NAME.
    """
    inside: dict[PurePosixPath, set[str]] = {}
    for folder in folders:
        inside.setdefault(folder.parent, set()).add(folder.name)
    for folder in sorted(folders):
        outer = next((parent for parent in folder.parents if parent in folders), None)
        if outer is not None:
            raise nested_images(f"{source}:{folder}", outer.name or source.stem)
        beside = inside.get(folder.parent.parent, {folder.name})
        if folder.name not in beside:
            raise InputError(f"{source}: images lie in {folder}, and in {min(beside)} beside {folder.parent}; {LAYOUT}")
    if len(folders) > 1 and len({folder.name for folder in folders}) == 1:
        first = min(folders)
        raise InputError(f"{source}: all images lie in folders named {first.name}, such as {first}; {LAYOUT}")


def report_left_out(source: str, names: Counter[str]) -> None:
    """Say how many files beside the images are left out, by the endings of their names; hidden files are not counted."""
    by_ending: Counter[str] = Counter()
    for name, count in names.items():
        if not name.startswith("."):
            by_ending[PurePosixPath(name).suffix.lower() or "no ending"] += count
    if by_ending:
        most = [f"{count} {ending}" for ending, count in by_ending.most_common(MAX_ENDINGS)]
        more = f", and {len(by_ending) - len(most)} other endings" if len(by_ending) > len(most) else ""
        logger.info(
            f"{source}: {by_ending.total()} files are left out, as their names do not end as those of images do"
            f" ({', '.join(most)}{more})"
        )


def make_image_set(
    source: str,
    classes: tuple[str, ...],
    keys: list[str],
    locations: np.ndarray | None,
    opener: Any,
    targets: list[int] | None = None,
) -> ImageSet:
    """Sort by key; `locations` defaults to the keys, and `targets` to the classes in them."""
    index = {name: i for i, name in enumerate(classes)}
    unsorted = targets if targets is not None else [index[key.split("/")[0]] for key in keys]
    for key in keys:
        if not is_utf8(key):
            raise InputError(f"{source}: the name {key!r} is not UTF-8; rename the file")
        if ".." in key and ".." in key.split("/"):
            raise InputError(f"{source}: {key!r} leads outside its class folder")
    encoded = encode_keys(keys)
    order = np.argsort(encoded, kind="stable")
    ordered = Keys(encoded[order])
    places = ordered.encoded if locations is None else locations[order]
    return ImageSet(source, classes, ordered, np.array(unsorted, dtype=np.int64)[order], places, opener)


def path_in_folder(root: Path, location: bytes) -> Path:
    return root / location.decode()
