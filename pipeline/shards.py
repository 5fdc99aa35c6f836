"""Label maps, the HDF5 shards that hold them, and the store that hands them out by row.

A shard is contiguous and unfiltered, so that readers memory-map it: h5py finds the offsets, and is closed again.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map, N images of a set.
"""

import errno
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import InputError
from pipeline.keys import KeyIndex, decoded, encoded
from pipeline.machine import cores
from pipeline.manifest import Manifest, ShardLine, read_shard_lines, write_whole

MAPS = ("scores", "classes", "tail")  # the arrays of a label map, in a shard and in LabelMaps


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

    def pin_memory(self) -> "LabelMaps":
        return LabelMaps(*(t.pin_memory() for t in (self.scores, self.classes, self.tail)))

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
    with h5py.File(shard_name(shard), "w", driver="core", backing_store=False) as file:  # in memory: SHARDS are small
        file.attrs["format"] = manifest.format
        file.attrs["num_classes"] = manifest.num_classes
        file["keys"] = encoded(keys)
        file["scores"] = maps.scores.half().numpy()
        file["classes"] = maps.classes.numpy().astype(manifest.class_dtype)
        file["tail"] = maps.tail.half().numpy()
        file.flush()
        image = file.id.get_file_image()
    write_whole(labels / shard_name(shard), image)
    sha256 = hashlib.sha256(image).hexdigest()
    return ShardLine(shard, shard_name(shard), len(keys), sha256, tuple(unreadable), manifest.identity)


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
        path = labels / shard_name(line.shard)
        remedy = "delete it and run the command that made the label set again"
        if line.file != shard_name(line.shard):
            raise InputError(f"{labels}: shards.jsonl names {line.file!r} for {path.name}; {remedy}")
        try:
            size = path.stat().st_size
            path.open("rb").close()  # what the system has against it, in its own words
            with h5py.File(path, "r", locking=False) as file:
                found = {name: (ds.shape, ds.dtype, ds.id.get_offset()) for name, ds in file.items()}
                attributes = dict(file.attrs)
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is missing, though shards.jsonl lists it; run the command that made the label set again"
            ) from error
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
    """A label set to read from: `open` maps it, `to` brings it to a device, `gather` hands out maps by row.

    Attributes:
        resident: whether `to` has put the whole set into the device's memory; else rows are read from the mapped files.
    """

    def __init__(self, labels: Path, manifest: Manifest, shards: list[MappedShard], unreadable: tuple[str, ...]) -> None:
        self.labels = labels
        self.manifest = manifest
        self.unreadable = unreadable
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard.keys) for shard in shards])
        self._index = KeyIndex(np.concatenate([shard.keys for shard in shards]))
        self._device = torch.device("cpu")
        self._whole: LabelMaps | None = None

    def __len__(self) -> int:
        return len(self._index.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files for itself, where it is not forked: the maps are not sent to it."""
        return LabelStore.open, (self.labels,)

    @cached_property
    def keys(self) -> list[str]:
        """The key of every row; made when first asked for, since looking keys up does not need it.

        Raises:
            InputError: a key that is not UTF-8, or would lead out of the folder that it is joined to.
        """
        try:
            return decoded(self._index.keys)
        except ValueError as error:
            raise InputError(f"{self.labels}: {error}; such a set is not to be trusted") from error

    @property
    def resident(self) -> bool:
        return self._whole is not None

    @property
    def nbytes(self) -> int:
        """Of all maps together: 4 (6 beyond 65,536 classes) for every class stored in a cell, and 2 for its tail."""
        return sum(getattr(shard, name).nbytes for shard in self._shards for name in MAPS)

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
                f" {shard_name(missing[0])}); run the command that made it again to finish it"
            )
        ordered = [lines[i] for i in range(manifest.shard_count)]
        shards = [MappedShard.open(labels, line, manifest) for line in ordered]
        return cls(labels, manifest, shards, tuple(key for line in ordered for key in line.unreadable))

    def to(self, device: torch.device | str, resident: bool | None = None) -> "LabelStore":
        """Hand out maps on this device from now on; 1.28 M maps of 15x15x5 are about 6 GB.

        Args:
            resident: whether the whole set moves into the device's memory. If None, it does on a GPU, unless that would
                take more than half of what is free there, which training needs for itself; a message then says so. A set
                that is not resident stays in the mapped files, of which all processes of a machine share one copy, in the
                page cache: nothing to agree on between them, to clean up, or to fit into a container's memory. On a CPU
                that copy is as near as one of the process's own would be.
        """
        self._device = torch.device(device)
        if resident is None:
            resident = self._device.type == "cuda" and self._fits()
        if resident:
            self._whole = LabelMaps(*(self._on_device([getattr(shard, name) for shard in self._shards]) for name in MAPS))
        else:
            self._whole = None
        return self

    def _fits(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        if self.nbytes <= free / 2:
            return True
        tqdm.write(
            f"{self.labels}: {self.nbytes / 1e9:.1f} GB of label maps are read from the files, through the page cache:"
            f" {self._device} has {free / 1e9:.1f} GB free, and half of that is left to training"
        )
        return False

    def _on_device(self, parts: list[np.ndarray]) -> Tensor:
        """One array out of all shards', shard by shard, so that no second copy of the whole is made on the host."""
        shape = (len(self), *parts[0].shape[1:])
        if self._device.type == "cpu":
            whole = np.empty(shape, parts[0].dtype)  # filling a torch.empty is three times slower
            of_shard = np.split(whole, self._starts[1:-1])
            with ThreadPoolExecutor(cores()) as threads:  # the first touch of each page is what takes the time
                list(threads.map(np.copyto, of_shard, parts))
            return torch_of(whole)
        on_device = torch.empty(shape, dtype=torch_of(parts[0][:0].copy()).dtype, device=self._device)
        for part, start in zip(parts, self._starts, strict=False):
            on_device[start : start + len(part)] = torch_of(part.copy()).to(self._device)
        return on_device

    def find(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, -1 for those that the set does not hold."""
        return torch.from_numpy(self._index.find(encoded(keys)))

    def rows(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, for `gather`.

        Raises:
            KeyError: names the first key that the set does not hold.
        """
        rows = self.find(keys)
        if len(rows) and int(rows.min()) < 0:
            raise KeyError(keys[int((rows < 0).nonzero()[0])])
        return rows

    def gather(self, rows: Tensor) -> LabelMaps:
        """The label maps of (B,) rows, on the store's device.

        Where the set is not resident, rows are best on the CPU: fetching them from a GPU waits for its stream.
        """
        if self._whole is not None:
            rows = rows.to(self._device, non_blocking=True)
            return LabelMaps(*(t.index_select(0, rows) for t in (self._whole.scores, self._whole.classes, self._whole.tail)))
        maps = self.read(rows)
        return (maps.pin_memory() if self._device.type == "cuda" else maps).to(self._device)  # pinned: not waited for

    def read(self, rows: Tensor) -> LabelMaps:
        """The label maps of (B,) rows, on the CPU, from the mapped files: what a process without the device may call."""
        numbers = rows.cpu().numpy()
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        places = list(zip(shard_of.tolist(), (numbers - self._starts[shard_of]).tolist(), strict=True))
        return LabelMaps(*(self._read(name, places) for name in MAPS))

    def _read(self, name: str, places: list[tuple[int, int]]) -> Tensor:
        """One array's rows at (shard, row in it), from the mapped files."""
        arrays = [getattr(shard, name) for shard in self._shards]
        read = np.empty((len(places), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (shard, row) in enumerate(places):
            read[i] = arrays[shard][row]
        return torch_of(read)


def torch_of(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; uint32 as int32, which torch can gather, and which class numbers fit."""
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
