"""manifest.json: how a label set was made. It is written before the first shard and never changed."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from relabel.images.classes import class_mismatch
from relabel.runtime.defaults import Precision, Tail
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from relabel.runtime.machine import relabel_version
from relabel.runtime.typed import hints_of, parse_json, shown, typed

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PUBLISHED = "pretrained"  # timm's word for a model's weights on a hub
COUNTS = ("num_classes", "topk", "image_count", "shard_size")  # at least 1, as grid and input_size are
MAX_REGIONS = 65_535  # of an image: their number is stored in 16 bits
# Fields that a file leaves out where they are None: added since format 1, so that no older label set changes its identity
ADDED = ("regions", "crop_scale", "crop_ratio", "hflip", "ensemble", "window")


class DamagedManifest(InputError):
    """manifest.json is not what was written: truncated, or changed."""


@dataclass(frozen=True)
class Member:
    """A further model of an ensemble; the fields are as in Manifest."""

    model: str
    model_kwargs: dict[str, Any]
    weights: str
    weights_sha256: str | None
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    outputs: tuple[int, ...] | None = None
    num_outputs: int | None = None


@dataclass(frozen=True)
class Manifest:
    """How every label map or region of a set was made. Two label sets with equal manifests contain the same labels.

    `tail` is what a cell or region stores for all the classes it leaves out: the mean of their logits, the log of the mean
    of their exponentials, or zero (published maps).
    """

    model: str  # timm name, including the tag
    model_kwargs: dict[str, Any]  # passed to timm.create_model in addition to the name
    weights: str  # PUBLISHED, or the checkpoint's file name
    weights_sha256: str | None  # of that file; None if unknown
    num_classes: int
    kind: str  # how the map's mean relates to the classifier's logits (annotate/convert.py), or "imported"
    input_size: tuple[int, int] | None  # rows, columns in pixels; the whole image was squashed to this size
    mean: tuple[float, float, float] | None  # of the normalisation; this and its neighbours are None for imported maps
    std: tuple[float, float, float] | None
    interpolation: str | None
    precision: Precision  # of the forward pass
    topk: int
    tail: Tail
    grid: tuple[int, int] | None  # rows, columns of the label map; None for regions
    image_count: int
    image_digest: str  # relabel.images.image_set.keys_digest of the ordered keys
    shard_size: int  # shard i holds the images [i * shard_size, (i + 1) * shard_size) of the ordered keys
    timm_version: str
    torch_version: str
    classes: tuple[str, ...] | None = None  # names of the stored classes, in order; None if unknown
    outputs: tuple[int, ...] | None = None  # the classifier's output for each class; if None, all outputs in order
    num_outputs: int | None = None  # of the classifier, if only some are stored
    recentre: bool = False  # each map was shifted so that its mean equals the classifier's logits
    flip: bool = False  # each map was averaged with the map of the mirrored image
    regions: int | None = None  # crops stored of an image, at most; None for label maps
    crop_scale: tuple[float, float] | None = None  # range of a region's share of the image's area; None if not known
    crop_ratio: tuple[float, float] | None = None  # range of a region's width / height
    hflip: float | None = None  # probability that a region was mirrored
    ensemble: tuple[Member, ...] | None = None  # further models, whose log-probabilities were averaged with `model`'s
    window: float | None = None  # None: a map covers its image. Else its central square: side as a share of the shorter side
    format: int = FORMAT_VERSION

    @property
    def map_grid(self) -> tuple[int, int]:
        """The grid of a set of label maps."""
        assert self.grid is not None, "regions have no grid"
        return self.grid

    @property
    def contents(self) -> str:
        """What the set has for an image, in words."""
        if self.regions is None:
            return f"label maps of {'x'.join(map(str, self.map_grid))} cells"
        return f"images with {self.regions} region{'s' * (self.regions > 1)}"

    @property
    def shard_count(self) -> int:
        return -(-self.image_count // self.shard_size)

    def images_of(self, shard: int) -> range:
        """Indices of a shard's images in the ordered keys."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.image_count))

    def class_mismatch(self, classes: Sequence[str]) -> str | None:
        """Why images of these classes, in this order, cannot be used with the set; None if they can."""
        return class_mismatch(self.num_classes if self.classes is None else self.classes, classes)

    def as_json(self) -> dict[str, Any]:
        """The fields as they are read back from a file: lists instead of tuples."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in fields.items() if name not in ADDED or value is not None}

    def save(self, labels: Path) -> None:
        fields = self.as_json()
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        lines.append(f'  "sha256": "{fields_digest(fields)}"')
        atomic_write(labels / MANIFEST, ("{\n" + ",\n".join(lines) + "\n}\n").encode())  # one line per field

    @classmethod
    def load(cls, labels: Path) -> "Manifest":
        """Read LABELS/manifest.json.

        Raises:
            DamagedManifest: the file is truncated, or changed after it was written.
            InputError: the file is missing, has another format version, or does not have the fields of this version.
        """
        path = labels / MANIFEST
        if not path.is_file():
            raise InputError(f"{labels} is not a label set: missing {MANIFEST}; make one with `relabel annotate`")
        try:
            fields = parse_json(path.read_bytes())
        except ValueError as error:
            raise DamagedManifest(f"{path} is not JSON ({error}); run the command that made the label set again") from error
        if not isinstance(fields, dict):
            raise DamagedManifest(f"{path} is not a JSON object; run the command that made the label set again")
        if fields.get("format") != FORMAT_VERSION:
            raise InputError(
                f"{path}: label format {shown(fields.get('format'))}, this relabel reads {FORMAT_VERSION};"
                " annotate again, or install the version of relabel that wrote it"
            )
        changed = fields.pop("sha256", None) not in (None, fields_digest(fields))
        error_type = DamagedManifest if changed else InputError
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        required = {name for name, default in known.items() if default is dataclasses.MISSING}
        missing, unknown = required - fields.keys(), sorted(fields.keys() - known.keys())
        if unknown and not changed:  # as another version wrote it
            names = f"the field{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
            version = relabel_version()
            reader = f"relabel {version}" if version else "this relabel"
            raise InputError(
                f"{path} has {names}, which {reader} does not know; install the version that wrote it, or a newer one"
            )
        if missing or unknown:
            names = ", ".join(sorted(missing.union(unknown)))
            raise error_type(f"{path}: missing or unknown fields: {names}; annotate again into an empty folder")
        for name in ("input_size", "mean", "std", "grid", "classes", "outputs", "crop_scale", "crop_ratio", "ensemble"):
            is_none = fields.setdefault(name, None) is None  # as for imported maps
            if not is_none and not isinstance(fields[name], list):
                raise error_type(f"{path}: {name} is {shown(fields[name])}, not a list; annotate again into an empty folder")
            fields[name] = None if is_none else tuple(fields[name])
        if invalid := invalid_fields(fields):
            found = ", ".join(f"{name} is {shown(fields[name])}" for name in invalid)
            raise error_type(f"{path}: {found}; annotate again into an empty folder")
        if fields["ensemble"] is not None:
            fields["ensemble"] = typed(fields["ensemble"], tuple[Member, ...])
        if changed:
            raise DamagedManifest(
                f"{path} changed after it was written (sha256); restore it, or run the command that made the label set again"
            )
        return cls(**fields)

    def differences(self, other: "Manifest") -> list[str]:
        """The fields in which two sets' labels may differ, as "name: mine, not theirs".

        Versions are left out, and so is a checkpoint's file name if its sha256 is known.
        """
        mine, theirs = self.identifying_fields(), other.identifying_fields()
        names = [name for name in mine | theirs if name in ADDED or (name in mine and name in theirs)]
        pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
        return [f"{name}: {a!r}, not {b!r}" for name, (a, b) in pairs.items() if a != b]

    def identifying_fields(self) -> dict[str, Any]:
        """The fields that identify a set's labels."""
        ignored = {"timm_version", "torch_version"} | ({"weights"} if self.weights_sha256 else set())
        return {name: value for name, value in self.as_json().items() if name not in ignored}

    @cached_property
    def identity(self) -> str:
        """sha256 of the fields that identify the set's labels."""
        return fields_digest(self.identifying_fields())


def invalid_fields(fields: dict[str, Any]) -> list[str]:
    """The fields whose values no label set can have: a manifest edited by hand could mislead a reader."""
    invalid = []
    for name, value in fields.items():
        try:
            typed(value, hints_of(Manifest)[name])
        except ValueError:
            invalid.append(name)
    sizes = {name: (fields[name],) for name in COUNTS} | {name: fields[name] or (1,) for name in ("grid", "input_size")}
    regions = fields.get("regions")
    if "regions" not in invalid and regions is not None and not 1 <= regions <= MAX_REGIONS:
        invalid.append("regions")
    if "grid" not in invalid and (regions is None) == (fields["grid"] is None):  # label maps have a grid, regions have none
        invalid.append("grid")
    window = fields.get("window")
    if "window" not in invalid and window is not None and not (0 < window <= 1 and regions is None):
        invalid.append("window")
    invalid += [name for name, numbers in sizes.items() if name not in invalid and min(numbers) < 1]
    if not invalid and fields["topk"] > fields["num_classes"]:
        invalid.append("topk")
    return invalid


def fields_digest(fields: dict[str, Any]) -> str:
    """sha256 of a manifest's fields, stored beside them to detect damage."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
