"""What a label set says of itself: manifest.json, and shards.jsonl with one line per finished shard.

manifest.json is written before the first shard and never changed. shards.jsonl is appended to, so that a killed writer tears
one line at most; a torn last line is dropped. Each line says by which manifest its shard was made.
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, get_args

import numpy as np

from pipeline.errors import InputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SHARD_LINES = "shards.jsonl"
PUBLISHED = "pretrained"  # timm's word for a model's weights on a hub

Tail = Literal["mean", "logmeanexp", "zero"]
Precision = Literal["float32", "bfloat16", "float16"]

# What a field must be, where a manifest that was changed by hand could mislead who reads it
COUNTS = ("num_classes", "topk", "image_count", "shard_size")
TYPES: dict[str, type] = dict.fromkeys(COUNTS, int) | dict.fromkeys(("model", "weights", "kind", "image_digest"), str)
TYPES |= {"model_kwargs": dict, "recentre": bool, "flip": bool}
CHOICES = {"tail": get_args(Tail), "precision": get_args(Precision)}


class DamagedManifest(InputError):
    """manifest.json is not what was written: torn, or changed."""


@dataclass(frozen=True)
class Manifest:
    """How every label map of a set was made. Two sets with equal manifests hold the same labels.

    `tail` names what stands for a class that a cell does not store: the mean of the logits left out, the log of the mean
    of their exponentials, or zero (published maps).
    """

    model: str  # timm name, tag included
    model_kwargs: dict[str, Any]  # what was passed to timm.create_model beside the name
    weights: str  # PUBLISHED, or the checkpoint's file name
    weights_sha256: str | None  # of that file; None where it is not known
    num_classes: int
    kind: str  # how the map's mean relates to the classifier's logits: annotate/convert.py; or "imported"
    input_size: tuple[int, int] | None  # rows, columns in pixels, after the whole image was squashed to it
    mean: tuple[float, float, float] | None  # of the normalisation; this and its neighbours are unknown of imported maps
    std: tuple[float, float, float] | None
    interpolation: str | None
    precision: Precision  # of the forward pass
    topk: int
    tail: Tail
    grid: tuple[int, int]  # rows, columns of the label map
    image_count: int
    image_digest: str  # pipeline.images.digest_of the ordered keys
    shard_size: int  # shard i holds the images [i * shard_size, (i + 1) * shard_size) of the ordered keys
    timm_version: str
    torch_version: str
    classes: tuple[str, ...] | None = None  # names of the stored classes, in order, where they are known
    outputs: tuple[int, ...] | None = None  # the classifier's output for each of them; all of them, in order, if None
    num_outputs: int | None = None  # of the classifier, where only some are stored
    recentre: bool = False  # every map's mean was shifted to the classifier's logits
    flip: bool = False  # averaged with the map of the mirrored image
    format: int = FORMAT_VERSION

    @property
    def shard_count(self) -> int:
        return -(-self.image_count // self.shard_size)

    def images_of(self, shard: int) -> range:
        """A shard's images, as indices into the ordered keys."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.image_count))

    @property
    def class_dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.num_classes <= 65_536 else np.uint32)

    def misfit(self, classes: Sequence[str]) -> str | None:
        """Why images of these classes, in this order, cannot go with the set; None if they can."""
        if len(classes) != self.num_classes:
            return f"it holds maps of {self.num_classes} classes, the images have {len(classes)}"
        return self.other_names(classes)

    def other_names(self, classes: Sequence[str] | None) -> str | None:
        """How the set's classes are named or ordered otherwise than these; None where they are not, or not known."""
        if self.classes is None or classes is None or self.classes == tuple(classes):
            return None
        differing = [f"{a}, not {b}" for a, b in zip(self.classes, classes, strict=False) if a != b]
        return f"its classes are named or ordered otherwise: {'; '.join(differing[:3])}"

    def as_json(self) -> dict[str, Any]:
        """The fields as they read back from a file: lists for tuples."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    def save(self, labels: Path) -> None:
        fields = self.as_json()
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        lines.append(f'  "sha256": "{digest_of(fields)}"')
        write_whole(labels / MANIFEST, ("{\n" + ",\n".join(lines) + "\n}\n").encode())  # a thousand classes to a line

    @classmethod
    def load(cls, labels: Path) -> "Manifest":
        """Read LABELS/manifest.json.

        Raises:
            DamagedManifest: it is torn, or changed since it was written.
            InputError: it is missing, of another format version, or has other fields than this version's.
        """
        path = labels / MANIFEST
        if not path.is_file():
            raise InputError(f"{labels} is no label set: it holds no {MANIFEST}; make one with `relabel annotate`")
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamagedManifest(f"{path} is not JSON ({error}); run the command that made the label set again") from error
        if not isinstance(fields, dict):
            raise DamagedManifest(f"{path} is no JSON object; run the command that made the label set again")
        if fields.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{path}: label format {fields.get('format')!r}, this relabel reads {FORMAT_VERSION};"
                " annotate again, or install the relabel that wrote it"
            )
        changed = fields.pop("sha256", None) not in (None, digest_of(fields))
        wrong = DamagedManifest if changed else InputError
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        needed = {name for name, default in known.items() if default is dataclasses.MISSING}
        if not needed <= fields.keys() <= known.keys():
            odd = ", ".join(sorted((needed - fields.keys()) | (fields.keys() - known.keys())))
            raise wrong(f"{path}: missing or unknown fields: {odd}; annotate again into an empty folder")
        for name in ("input_size", "mean", "std", "grid", "classes", "outputs"):
            unknown = fields.setdefault(name, None) is None and name != "grid"  # of imported maps
            if not unknown and not isinstance(fields[name], list):
                raise wrong(f"{path}: {name} is {fields[name]!r}, not a list; annotate again into an empty folder")
            fields[name] = None if unknown else tuple(fields[name])
        odd_ones = [name for name, kind in TYPES.items() if name in fields and type(fields[name]) is not kind]
        odd_ones += [name for name in COUNTS if name not in odd_ones and fields[name] < 1]
        odd_ones += [name for name, known in CHOICES.items() if fields[name] not in known]
        if [type(cells) for cells in fields["grid"]] != [int, int] or min(fields["grid"]) < 1:
            odd_ones.append("grid")
        if odd_ones:
            found = ", ".join(f"{name} is {fields[name]!r}" for name in odd_ones)
            raise wrong(f"{path}: {found}; annotate again into an empty folder")
        if changed:
            raise DamagedManifest(
                f"{path} changed after it was written (sha256); restore it, or run the command that made the label set again"
            )
        return cls(**fields)

    def differences(self, other: "Manifest") -> list[str]:
        """The fields in which two sets' labels may differ, as "name: mine, not theirs".

        Versions are no reason, nor is a checkpoint's name: its sha256 tells.
        """
        mine, theirs = self.identifying_fields(), other.identifying_fields()
        return [f"{n}: {mine[n]!r}, not {theirs[n]!r}" for n in mine if n in theirs and mine[n] != theirs[n]]

    def identifying_fields(self) -> dict[str, Any]:
        """The fields that tell one set's labels from another's."""
        silent = {"timm_version", "torch_version"} | ({"weights"} if self.weights_sha256 else set())
        return {name: value for name, value in self.as_json().items() if name not in silent}

    @property
    def identity(self) -> str:
        """sha256 of what tells its labels from those of another set."""
        return digest_of(self.identifying_fields())


def digest_of(fields: dict[str, Any]) -> str:
    """sha256 of a manifest's fields, by which it tells a flipped byte in itself."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


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


def lock(file: BinaryIO | TextIO, wait: bool) -> bool:
    """Lock an open file against all other processes, until it is closed or this process dies.

    Returns:
        False where the file system knows no locks.
    Raises:
        BlockingIOError or PermissionError: another process has it, and we are not to wait.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # this process's alone: workers do not inherit it
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def write_shard_lines(labels: Path, lines: dict[int, ShardLine]) -> None:
    """Replace shards.jsonl by these lines in shard order, so that its bytes do not tell who wrote when."""
    write_whole(labels / SHARD_LINES, "".join(lines[i].to_json() for i in sorted(lines)).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is complete or absent, whatever kills the writer: temporary name, sync, rename, sync the folder.

    Raises:
        OSError: the disk is full or read-only; the temporary file is gone and an earlier `path` untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
