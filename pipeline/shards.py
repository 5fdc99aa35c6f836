"""Label maps, the HDF5 shards that hold them, and the store that hands them out by row.

A shard is contiguous and unfiltered, so that readers memory-map it: h5py finds the offsets, and is closed again.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map, N images of a set.
"""

import errno
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.manifest import Manifest, ShardLine, read_shard_lines, write_whole


@dataclass(frozen=True)
class LabelMaps:
    """Sparse logit maps of B images: per cell the k largest logits, their classes, and one value for all the others.

    Attributes:
        scores: (B, k, H, W) float, largest first; row 0 is the top of the image, column 0 its left edge.
        classes: (B, k, H, W) integer class of each score.
        tail: (B, H, W) float; a class that is not stored counts as this.
    """

    scores: Tensor
    classes: Tensor
    tail: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> "LabelMaps":
        return LabelMaps(*(t.to(device, non_blocking=True) for t in (self.scores, self.classes, self.tail)))

    def dense(self, num_classes: int) -> Tensor:
        """(B, C, H, W) float32 logits: the definition that label pooling is tested against. 230 MB at 256x1000x15x15."""
        batch, _, rows, columns = self.scores.shape
        logits = self.tail.float().unsqueeze(1).expand(batch, num_classes, rows, columns).clone()
        return logits.scatter_(1, self.classes.long(), self.scores.float())


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.h5"


def write_shard(
    labels: Path, shard: int, keys: Sequence[str], maps: LabelMaps, manifest: Manifest, unreadable: Sequence[str] = ()
) -> ShardLine:
    """Write one shard, complete or not at all, and return its line for shards.jsonl.

    Args:
        keys: the images, in order.
        maps: their label maps on the CPU; scores and tail are stored as float16.
    Raises:
        OSError: the disk is full or read-only; nothing is left behind.
    """
    encoded = [key.encode() for key in keys]
    with h5py.File(shard_name(shard), "w", driver="core", backing_store=False) as file:  # in memory: SHARDS are small
        file.attrs["format"] = manifest.format
        file.attrs["num_classes"] = manifest.num_classes
        file["keys"] = np.array(encoded, dtype=f"S{max(map(len, encoded), default=1)}")
        file["scores"] = maps.scores.half().numpy()
        file["classes"] = maps.classes.numpy().astype(manifest.class_dtype)
        file["tail"] = maps.tail.half().numpy()
        file.flush()
        image = file.id.get_file_image()
    write_whole(labels / shard_name(shard), image)
    return ShardLine(shard, shard_name(shard), len(keys), hashlib.sha256(image).hexdigest(), tuple(unreadable))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class MappedShard:
    """A finished shard's arrays, memory-mapped: keys (n,) bytes, scores and classes (n, k, H, W), tail (n, H, W)."""

    keys: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    tail: np.ndarray

    @classmethod
    def open(cls, labels: Path, line: ShardLine, manifest: Manifest) -> "MappedShard":
        """Check a shard's structure against the manifest and map it.

        Raises:
            InputError: the file is missing, cut short, no HDF5, or its arrays are not what the manifest says.
        """
        path = labels / line.file
        remedy = "delete it and rerun `relabel annotate`"
        try:
            size = path.stat().st_size
            path.open("rb").close()  # what the system has against it, in its own words
            with h5py.File(path, "r", locking=False) as file:
                found = {name: (ds.shape, ds.dtype, ds.id.get_offset()) for name, ds in file.items()}
                attributes = dict(file.attrs)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing, though shards.jsonl lists it; rerun `relabel annotate`") from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
                raise InputError(f"cannot open {path}: {error.strerror}") from error
            raise InputError(f"{path} is cut short or no HDF5 file ({error}); {remedy}") from error
        except Exception as error:  # a damaged header comes out of h5py as one of half a dozen types
            raise InputError(f"{path} is cut short or no HDF5 file ({error}); {remedy}") from error
        cells, n = manifest.grid, line.rows
        expected = {
            "keys": ((n,), None),
            "scores": ((n, manifest.topk, *cells), np.dtype(np.float16)),
            "classes": ((n, manifest.topk, *cells), manifest.class_dtype),
            "tail": ((n, *cells), np.dtype(np.float16)),
        }
        said = (attributes.get("format"), attributes.get("num_classes"))
        if said != (manifest.format, manifest.num_classes):
            raise InputError(
                f"{path}: format and num_classes are {said[0]} and {said[1]}, the manifest says {manifest.format} and"
                f" {manifest.num_classes}; {remedy}"
            )
        arrays = {}
        mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))  # a plain view: memmap's own indexing is slow
        for name, (shape, dtype) in expected.items():
            if name not in found:
                raise InputError(f"{path} has no dataset {name!r}; {remedy}")
            found_shape, found_dtype, offset = found[name]
            if found_shape != shape or (found_dtype.kind != "S" if dtype is None else found_dtype != dtype):
                raise InputError(
                    f"{path}: {name} is {found_dtype}{list(found_shape)}, the manifest says {dtype or 'S'}{list(shape)};"
                    f" {remedy}"
                )
            length = int(np.prod(shape)) * found_dtype.itemsize
            if length and (offset is None or offset + length > size):
                raise InputError(f"{path}: {name} is chunked or reaches past the end of the file; {remedy}")
            start = offset or 0
            arrays[name] = mapped[start : start + length].view(found_dtype).reshape(shape)
        return cls(**arrays)


class LabelStore:
    """A label set to read from: `open` maps it, `to` makes it resident on a device, `gather` hands out maps by row."""

    def __init__(self, labels: Path, manifest: Manifest, shards: list[MappedShard], unreadable: tuple[str, ...]) -> None:
        self.labels = labels
        self.manifest = manifest
        self.unreadable = unreadable
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard.keys) for shard in shards])
        self.keys = [key.decode() for shard in shards for key in shard.keys.tolist()]
        self._row_of = {key: row for row, key in enumerate(self.keys)}
        self._resident: LabelMaps | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def open(cls, labels: Path | str) -> "LabelStore":
        """Open a complete label set; checks structure, not bytes (`relabel verify` does).

        Raises:
            InputError: no label set, another format version, a shard missing or damaged in structure.
        """
        labels = Path(labels)
        manifest = Manifest.load(labels)
        lines = read_shard_lines(labels)
        missing = [i for i in range(manifest.shard_count) if i not in lines]
        if missing:
            raise InputError(
                f"{labels} is incomplete: {len(missing)} of {manifest.shard_count} shards are missing (first:"
                f" {shard_name(missing[0])}); rerun `relabel annotate` with the same options to finish it"
            )
        ordered = [lines[i] for i in range(manifest.shard_count)]
        shards = [MappedShard.open(labels, line, manifest) for line in ordered]
        return cls(labels, manifest, shards, tuple(key for line in ordered for key in line.unreadable))

    def to(self, device: torch.device | str) -> "LabelStore":
        """Read the whole set into the memory of a device; 1.28 M maps of 15x15x5 are about 6 GB."""
        arrays = []
        for name in ("scores", "classes", "tail"):
            parts = [getattr(shard, name) for shard in self._shards]
            whole = np.empty((len(self), *parts[0].shape[1:]), parts[0].dtype)
            np.concatenate(parts, out=whole)
            if whole.dtype == np.uint32:  # torch gathers int32, not uint32; class numbers fit
                whole = whole.view(np.int32)
            arrays.append(torch.from_numpy(whole).to(device))
        self._resident = LabelMaps(*arrays)
        return self

    def rows(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, for `gather`.

        Raises:
            KeyError: names the first key that the set does not hold.
        """
        return torch.tensor([self._row_of[key] for key in keys], dtype=torch.int64)

    def gather(self, rows: Tensor) -> LabelMaps:
        """The label maps of (B,) rows: on the store's device after `to`, else read from the mapped files."""
        if self._resident is not None:
            maps = self._resident
            rows = rows.to(maps.scores.device, non_blocking=True)
            return LabelMaps(*(t.index_select(0, rows) for t in (maps.scores, maps.classes, maps.tail)))
        numbers = rows.cpu().numpy()
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        places = [(self._shards[s], n - self._starts[s]) for s, n in zip(shard_of, numbers, strict=True)]
        return LabelMaps(
            torch.from_numpy(np.stack([shard.scores[i] for shard, i in places])),
            torch.from_numpy(np.stack([shard.classes[i].astype(np.int32) for shard, i in places])),
            torch.from_numpy(np.stack([shard.tail[i] for shard, i in places])),
        )
