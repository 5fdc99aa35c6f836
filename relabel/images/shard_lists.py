"""Which tars are the shards of a WebDataset: those of a split, of a pattern, or a single one."""

import glob
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from relabel.runtime.errors import InputError, first_line

SPLIT = "train"
INFO = ("_info.json", "info.json")  # in this order, as timm's reader looks for it
NUMBERED = re.compile(r"(.*?)[-_.]?\d*\.tar")  # imagenet1k-train-0000.tar
EXPECTED = "expected wds/FOLDER[:SPLIT], or a pattern such as wds/FOLDER/NAME-{0000..1023}.tar"


class ShardList(NamedTuple):
    """The tars of a data set, in order.

    Attributes:
        info: the file that lists them; None if they were found by their names.
        lengths: how many samples each has, as recorded there.
        label: JSON field of the class, if recorded there.
    """

    paths: tuple[Path, ...]
    info: Path | None = None
    lengths: tuple[int, ...] | None = None
    label: str | None = None


def find_shards(address: str) -> ShardList:
    """The shards of FOLDER[:SPLIT] or of a pattern with braces or wildcards, which may also be the path of one tar.

    Raises:
        InputError: there are none, some are missing, or it is not clear which of a folder's are meant.
    """
    if Path(address).is_dir():
        return in_folder(Path(address), None)
    folder, colon, split = address.rpartition(":")
    if colon and Path(folder).is_dir():
        return in_folder(Path(folder), split)
    return present(ShardList(tuple(map(Path, expanded(address)))), address)


def expanded(pattern: str) -> list[str]:
    if Path(pattern).is_file():
        return [pattern]
    from braceexpand import braceexpand  # here, so that all else runs where it is not installed

    try:
        names = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise InputError(f"wds/{pattern}: {first_line(error)}; {EXPECTED}") from error
    found: list[str] = []
    for name in names:
        matching = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207  (a pattern, not a folder)
        if not matching:
            raise InputError(f"wds/{pattern}: no file matches {name}; {EXPECTED}")
        found += matching
    return found


def in_folder(folder: Path, split: str | None) -> ShardList:
    info = next((folder / name for name in INFO if (folder / name).is_file()), None)
    if info is not None:
        return listed(info, split or SPLIT)
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.tar")):
        name = NUMBERED.fullmatch(path.name)
        if split is None or split in re.split("[-_.]", path.name):
            groups.setdefault(name[1] if name else path.name, []).append(path)
    if not groups:
        of_split = f" of split {split!r} (NAME-{split}-NUMBER.tar), and no {INFO[0]}" if split else ""
        raise InputError(f"{folder} contains no .tar{of_split}; {EXPECTED}")
    if len(groups) > 1:
        raise InputError(
            f"{folder} contains {len(groups)} sets of shards ({', '.join(list(groups)[:3])}) and no {INFO[0]} that tells"
            f" their splits; name one: wds/{folder}/{next(iter(groups))}*.tar"
        )
    return ShardList(tuple(*groups.values()))


def listed(info: Path, split: str) -> ShardList:
    """The shards that an _info.json lists for a split: {"splits": {NAME: {"filenames": [...], "shard_lengths": [...]}}}."""
    try:
        splits = json.loads(info.read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise InputError(f"{info} has no split {split!r}, but {', '.join(splits)}; name one: wds/{info.parent}:SPLIT")
        fields: dict[str, Any] = splits[split]
        names, lengths = fields["filenames"], fields.get("shard_lengths")
        if lengths is not None and len(lengths) != len(names):
            raise ValueError(f"split {split!r} has {len(names)} filenames, but {len(lengths)} shard_lengths")
        paths = tuple(info.parent / name for name in names)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read the shards of split {split!r} from {info} ({type(error).__name__}: {first_line(error)}); name"
            f" them: wds/{info.parent}/NAME-{{0000..1023}}.tar"
        ) from error
    label = fields.get("alt_label") or None
    return present(ShardList(paths, info, tuple(lengths) if lengths is not None else None, label), f"{info.parent}:{split}")


def present(shards: ShardList, address: str) -> ShardList:
    missing = [path for path in shards.paths if not path.is_file()]
    if missing or not shards.paths:
        count = (
            f"{len(missing)} of {len(shards.paths)} shards do not exist (first: {missing[0]})" if missing else "no shards"
        )
        raise InputError(f"wds/{address}: {count}; {EXPECTED}")
    return shards
