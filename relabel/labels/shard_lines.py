"""shards.jsonl: one line per finished shard, with the identity of the manifest that the shard was made with.

Lines are appended, so a killed writer leaves at most one incomplete line, which readers drop.
"""

import dataclasses
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from relabel.images.keys import encode_keys
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write, lock
from relabel.runtime.typed import from_fields, parse_json

SHARD_LINES = "shards.jsonl"


@dataclass(frozen=True)
class ShardLine:
    """A finished shard: its number, file name, rows, the file's sha256, and the keys of images that were unreadable."""

    shard: int
    file: str
    rows: int
    sha256: str
    unreadable: tuple[str, ...] = ()
    manifest: str | None = None  # Manifest.identity of the manifest it was made with

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self)) + "\n"


def read_shard_lines(labels: Path, drop_damaged: bool = False) -> dict[int, ShardLine]:
    """The finished shards by number. An incomplete last line, from a killed writer, is dropped.

    Args:
        drop_damaged: drop damaged lines as well, so that their shards are made again.
    Raises:
        InputError: a line other than an incomplete last one is damaged.
    """
    path = labels / SHARD_LINES
    if not path.is_file():
        return {}
    lines = path.read_bytes().split(b"\n")  # what follows the last newline is incomplete, or empty
    finished = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = from_fields(ShardLine, parse_json(line))
            encode_keys(entry.unreadable)  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
            if entry.shard < 0 or entry.rows < 0:
                raise ValueError("its numbers are negative")
        except ValueError as error:
            if drop_damaged:
                continue
            raise InputError(
                f"{path} line {number} is damaged ({error}); run the command that made the label set again"
            ) from error
        finished[entry.shard] = entry
    return finished


def missing_shards(lines: dict[int, ShardLine], shard_count: int) -> int:
    """How many of the shards are not finished. Counted without a list: a manifest may promise a thousand million."""
    return shard_count - sum(shard < shard_count for shard in lines)


def first_missing(lines: dict[int, ShardLine]) -> int:
    return next(shard for shard in itertools.count() if shard not in lines)


def append_shard_line(labels: Path, line: ShardLine) -> None:
    with (labels / SHARD_LINES).open("a+b") as file:
        lock(file, wait=True)  # else two machines on a network file system could overwrite each other's line
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # another process's incomplete line must not spoil this one
                file.write(b"\n")
        file.write(line.to_json().encode())
        file.flush()
        os.fsync(file.fileno())


def write_shard_lines(labels: Path, lines: dict[int, ShardLine]) -> None:
    """Replace shards.jsonl by these lines in shard order, so that its bytes do not depend on who finished first."""
    atomic_write(labels / SHARD_LINES, "".join(lines[i].to_json() for i in sorted(lines)).encode())
