"""WebDataset shards as a source of images: tars in which the files of a sample (KEY.jpg, KEY.cls, KEY.json) are neighbours.

    wds/FOLDER[:SPLIT]                  the shards of a split, by default train, that FOLDER/_info.json lists; or, without
                                        that file, the tars in FOLDER
    wds/FOLDER/NAME-{0000..1023}.tar    a pattern with braces or wildcards, or a single tar
    ...?label=FIELD                     the class is this field of KEY.json, not KEY.cls
    ...?class_map=FILE                  names for class numbers, see relabel/images/class_lists.py

A class has a number, in KEY.cls or else in `label` of KEY.json, or a name, or both. Its name is the folder of `filename` in
KEY.json (n01440764/n01440764_10026.JPEG in timm's ImageNet), or else the folder of KEY, or the WordNet id that KEY begins
with; or, if there is a class map, its number's. Classes are in the order of their numbers, as classifiers have them that
were trained on such shards. The image's key is CLASS/NAME, with NAME from `filename`, or else KEY's own with the image's
extension. timm's ImageNet thus has the same keys and classes as in folders.
"""

import functools
import itertools
import json
import logging
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from relabel.images.class_lists import TIMM_CLASSES, mapped_classes
from relabel.images.names import endings, is_image, sort_classes
from relabel.images.shard_lists import find_shards
from relabel.images.source_options import options_of
from relabel.images.tar_members import TarMember, read_from, read_tar_location, tar_locations, tar_members
from relabel.runtime.errors import InputError, first_line
from relabel.runtime.machine import cores
from relabel.runtime.workers import batches_of, init_worker

WDS = "wds/"
FORM = f"{WDS}FOLDER:SPLIT?label=FIELD&class_map=FILE"
OPTIONS = re.compile(r"\?(?=(?:label|class_map)=)")  # before anything else, a ? is a wildcard
FIELD = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # KEY.FIELD: as webdataset, at the first dot of the name
NUMBER = re.compile(r"-?\d{1,9}", re.ASCII)
WORDNET_ID = re.compile(r"n\d{8}(?=_)")
SHARDS_PER_WORKER = 16  # fewer take less time than starting a process

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        key: of the sample.
        name: of the image, with extension.
        number, class_name: of its class; None if the shard does not have them.
        offset, size: bytes in the shard.
    """

    key: str
    name: str
    number: int | None
    class_name: str | None
    offset: int
    size: int


def read_web_dataset(source: str) -> tuple[tuple[str, ...], list[str], np.ndarray, Callable[[Any], Path | bytes], list[int]]:
    """The classes, and the key, location and class of every sample, with the function that opens a location.

    Raises:
        InputError: there are no such shards; one is damaged, empty, or has fewer samples than recorded; a sample has no
            image or no class, or several; classes have only numbers, or contradict each other; or keys are not unique.
    """
    address, query, *_ = [*OPTIONS.split(source.removeprefix(WDS), maxsplit=1), ""]
    options = options_of(source, query, FORM)
    shards = find_shards(address)
    label = options.get("label", shards.label)
    samples: list[Sample] = []
    shard_of: list[int] = []
    for number, (path, found) in enumerate(zip(shards.paths, read_shards(shards.paths, label), strict=True)):
        if shards.lengths is not None and len(found) != shards.lengths[number]:
            raise InputError(
                f"{path} has {len(found)} samples, but {shards.info} says {shards.lengths[number]}; get the shard again, or,"
                f" if that file is out of date, name the shards: {WDS}{path.parent}/*.tar"
            )
        samples += found
        shard_of += [number] * len(found)

    def place(index: int) -> str:
        return f"{shards.paths[shard_of[index]]}, sample {samples[index].key}"

    unlabelled = [i for i, sample in enumerate(samples) if sample.number is not None and sample.number < 0]
    if unlabelled and label is None:
        i = unlabelled[0]
        raise InputError(f"{place(i)}: class number {samples[i].number}; expected 0 or more")
    if unlabelled:  # timm marks samples that are outside of a part of the classes by -1
        logger.info(f"{source}: {len(unlabelled)} of {len(samples)} samples have a negative {label} and are left out")
        kept = sorted(set(range(len(samples))) - set(unlabelled))
        samples, shard_of = [samples[i] for i in kept], [shard_of[i] for i in kept]
        if not samples:
            raise InputError(f"{source}: no sample has a class in {label}; name another field")
    classes, targets = number_classes(source, samples, options.get("class_map"), place)
    first: dict[str, int] = {}
    for i, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        key = f"{classes[target].replace('/', '-')}/{sample.name}"
        if first.setdefault(key, i) != i:
            raise InputError(f"{place(i)} and {place(first[key])} have the same key {key}; remove one")
    locations = tar_locations([(shard, s.offset, s.size) for shard, s in zip(shard_of, samples, strict=True)])
    return classes, list(first), locations, functools.partial(read_tar_location, shards.paths), targets


def number_classes(
    source: str, samples: list[Sample], class_map: str | None, place: Callable[[int], str]
) -> tuple[tuple[str, ...], list[int]]:
    """The names of the classes, and the class of every sample."""
    numbered = [sample.number is not None for sample in samples]
    odd = numbered.index(not numbered[0]) if not all(numbered) and any(numbered) else None
    if odd is not None:
        without, having = sorted((0, odd), key=numbered.__getitem__)
        raise InputError(f"{place(without)} has no class number, but {place(having)} has {samples[having].number}")
    if class_map is not None:
        if not all(numbered):
            raise InputError(f"{place(0)} has no class number for class_map={class_map} to name; leave it out")
        numbers = [sample.number or 0 for sample in samples]
        classes = mapped_classes(class_map, max(numbers), f"{source}: class_map")
        known = set(classes)
        for i, sample in enumerate(samples):
            if sample.class_name != classes[numbers[i]] and sample.class_name in known:
                raise InputError(
                    f"{place(i)}: class number {numbers[i]} is {classes[numbers[i]]} in class_map={class_map}, but the"
                    f" sample is named as {sample.class_name}; use the class map of this data set, or none"
                )
        return classes, numbers
    nameless = next((i for i, sample in enumerate(samples) if sample.class_name is None), None)
    if nameless is not None:
        number = samples[nameless].number
        if number is None:
            raise InputError(
                f"{place(nameless)} has no class; expected its number in .cls, its number or name in .json, or its name as"
                " the folder of the files"
            )
        highest = max(sample.number or 0 for sample in samples)
        timm_has_it = f" (?class_map={TIMM_CLASSES} for ImageNet's WordNet ids)" if highest >= 999 else ""
        raise InputError(
            f"{place(nameless)} has class number {number} and no name; name the classes 0 to {highest}:"
            f" {source}?class_map=FILE, with one name per line{timm_has_it}"
        )
    names = [str(sample.class_name) for sample in samples]
    classes = in_order_of_numbers(samples, place) if all(numbered) else sort_classes(names)
    index = {name: i for i, name in enumerate(classes)}
    return classes, [index[name] for name in names]


def in_order_of_numbers(samples: list[Sample], place: Callable[[int], str]) -> tuple[str, ...]:
    """The class names by class number; each number must have one name, and each name one number."""
    of_number: dict[int | None, int] = {}  # to the first sample that has it
    of_name: dict[str | None, int] = {}
    for i, sample in enumerate(samples):
        for first in (of_number.setdefault(sample.number, i), of_name.setdefault(sample.class_name, i)):
            other = samples[first]
            if (other.number, other.class_name) != (sample.number, sample.class_name):
                raise InputError(
                    f"{place(i)} has class number {sample.number} and is named as {sample.class_name}, but {place(first)}"
                    f" has {other.number} and {other.class_name}; if the numbers are right, name them: ?class_map=FILE"
                )
    return tuple(str(samples[first].class_name) for _, first in sorted(of_number.items()))


def read_shards(paths: tuple[Path, ...], label: str | None) -> Iterator[list[Sample]]:
    """The samples of each shard. Processes share the work, as tarfile takes minutes for the headers of a million files."""
    loader = DataLoader(
        ShardReader(paths, label),
        batch_size=None,
        collate_fn=list,
        num_workers=min(cores(), len(paths) // SHARDS_PER_WORKER),
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    return batches_of(loader, "free some, or raise the limit")


class ShardReader(Dataset[list[Sample]]):
    def __init__(self, paths: tuple[Path, ...], label: str | None) -> None:
        self.paths, self.label = paths, label

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Sample]:
        return read_shard(self.paths[index], self.label)


def read_shard(path: Path, label: str | None) -> list[Sample]:
    """The samples of a shard, in its order."""
    try:
        with path.open("rb") as file:
            neighbours = itertools.groupby(fields_in(path), key=itemgetter(0))
            samples = [read_sample(file, key, [field[1:] for field in fields], label) for key, fields in neighbours]
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; get the shard again") from error
    if not samples:
        raise InputError(f"{path} contains no samples (KEY.jpg and KEY.cls); get the shard again, or leave it out")
    return samples


def fields_in(path: Path) -> Iterator[tuple[str, str, TarMember]]:
    """(key, field, member) of every file of a sample; webdataset skips hidden files and __METADATA__, too."""
    for member in tar_members(path):
        match = FIELD.fullmatch(member.name)
        if match is not None and not posixpath.basename(match[1]).startswith("__"):
            yield match[1], match[2], member


def read_sample(file: BinaryIO, key: str, fields: list[tuple[str, TarMember]], label: str | None) -> Sample:
    by_field = {field.lower(): member for field, member in fields}
    where = f"{fields[0][1].tar}, sample {key}"
    if len(by_field) < len(fields):
        raise InputError(f"{where}: two files {key}.{fields[-1][0]}; expected each sample once")
    images = [field for field, _ in fields if "." not in field and is_image(f"x.{field}")]
    if len(images) != 1:
        found = f"{len(images)} images ({', '.join(images)})" if images else f"no image among {', '.join(by_field)}"
        advice = "the files of a sample must be neighbours in the tar"
        raise InputError(f"{where}: {found}; expected one ({endings()}), and {advice}")
    image = by_field[images[0].lower()]
    properties: Any = {}
    if "json" in by_field:
        try:
            properties = json.loads(read_from(file, by_field["json"]))
        except ValueError as error:
            raise InputError(f"{where}: {key}.json is not JSON ({first_line(error)}); repair the shard") from error
    properties = properties if isinstance(properties, dict) else {}
    name = PurePosixPath(f"{key}.{images[0]}")
    if is_image(PurePosixPath(str(properties.get("filename"))).name):
        name = PurePosixPath(properties["filename"])
    number, class_name = class_in(file, where, by_field.get("cls"), properties, label)
    if class_name is None:
        wordnet_id = WORDNET_ID.match(posixpath.basename(key))
        class_name = name.parent.name or PurePosixPath(key).parent.name or (wordnet_id[0] if wordnet_id else None)
    return Sample(key, name.name, number, sys.intern(class_name) if class_name else None, image.offset, image.size)


def class_in(
    file: BinaryIO, where: str, cls: TarMember | None, properties: dict[str, Any], label: str | None
) -> tuple[int | None, str | None]:
    """The number or the name of a sample's class, whichever .cls or the JSON has."""
    if label is None and cls is not None:
        text = read_from(file, cls).decode(errors="replace").strip()
        if not NUMBER.fullmatch(text):
            raise InputError(f"{where}: its .cls is {text[:40]!r}; expected the number of its class")
        return int(text), None
    value = properties.get(label or "label")
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = int(value)
    if label is not None and (isinstance(value, bool) or not isinstance(value, int | str) or value == ""):
        found = f"{value!r} as" if label in properties else f"only {', '.join(sorted(properties))} and no"
        raise InputError(f"{where}: its .json has {found} {label}; expected a class number or name")
    if isinstance(value, int) and not isinstance(value, bool):
        return value, None
    return None, value if isinstance(value, str) and value else None
