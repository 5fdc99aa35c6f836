"""manifest.json: how a label set was made. It is written before the first shard and never changed."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from relabel.images.classes import class_mismatch
from relabel.runtime.defaults import Precision, Tail
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PUBLISHED = "pretrained"  # timm's word for a model's weights on a hub


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
    image_digest: str  # relabel.images.image_set.digest_of the ordered keys
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

    def class_mismatch(self, classes: Sequence[str]) -> str | None:
        """Why images of these classes, in this order, cannot be used with the set; None if they can."""
        return class_mismatch(self.num_classes if self.classes is None else self.classes, classes)

    def as_json(self) -> dict[str, Any]:
        """The fields as they read back from a file: lists for tuples."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    def save(self, labels: Path) -> None:
        fields = self.as_json()
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        lines.append(f'  "sha256": "{fields_digest(fields)}"')
        atomic_write(labels / MANIFEST, ("{\n" + ",\n".join(lines) + "\n}\n").encode())  # a thousand classes to a line

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
        changed = fields.pop("sha256", None) not in (None, fields_digest(fields))
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
        return fields_digest(self.identifying_fields())


def fields_digest(fields: dict[str, Any]) -> str:
    """sha256 of a manifest's fields, by which it tells a flipped byte in itself."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
