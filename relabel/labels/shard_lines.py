"""shards.jsonl: one line per finished shard.

Lines are appended, so a killed writer leaves at most one torn line, which readers drop. Each line records which manifest
its shard was made for.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write, lock

SHARD_LINES = "shards.jsonl"


@dataclass(frozen=True)
class ShardLine:
    """A finished shard: its number, file name, rows, the file's sha256, and the keys of images that were unreadable."""

    shard: int
    file: str
    rows: int
    sha256: str
    unreadable: tuple[str, ...] = ()
    manifest: str | None = None  # Manifest.identity of the one that it was made by

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self)) + "\n"


def read_shard_lines(labels: Path, drop_damaged: bool = False) -> dict[int, ShardLine]:
    """The finished shards by number. A torn last line is a killed writer's and is left out.

    Args:
        drop_damaged: leave out damaged lines too: their shards are made again.
    Raises:
        InputError: a line that is not the last one is damaged.
    """
    path = labels / SHARD_LINES
    if not path.is_file():
        return {}
    lines = path.read_bytes().split(b"\n")  # what follows the last newline is torn, or empty
    finished = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            fields = json.loads(line)
            entry = ShardLine(**{**fields, "unreadable": tuple(fields["unreadable"])})
            values = (entry.shard, entry.file, entry.rows, entry.sha256, entry.manifest or "", *entry.unreadable)
            if [type(value) for value in values] != [int, str, int, str, str, *[str] * len(entry.unreadable)]:
                raise ValueError("it describes no shard")
        except (ValueError, TypeError, KeyError) as error:
            if drop_damaged:
                continue
            raise InputError(
                f"{path} line {number} is damaged ({error}); run the command that made the label set again"
            ) from error
        finished[entry.shard] = entry
    return finished


def append_shard_line(labels: Path, line: ShardLine) -> None:
    with (labels / SHARD_LINES).open("a+b") as file:
        lock(file, wait=True)  # two machines that append through a network file system would overwrite each other's line
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # what another process could not finish spoils its own line alone
                file.write(b"\n")
        file.write(line.to_json().encode())
        file.flush()
        os.fsync(file.fileno())


def write_shard_lines(labels: Path, lines: dict[int, ShardLine]) -> None:
    """Replace shards.jsonl by these lines in shard order, so that its bytes do not tell who wrote when."""
    atomic_write(labels / SHARD_LINES, "".join(lines[i].to_json() for i in sorted(lines)).encode())
