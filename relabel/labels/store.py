"""A label set opened for reading: look up keys, and get label maps or regions by row, on any device.

Shapes: B images of a batch, N images of the set.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, overload

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from relabel.images.keys import KeyIndex, decode_keys, encode_keys
from relabel.labels.layout import kind_of_labels
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import first_missing, missing_shards, read_shard_lines
from relabel.labels.shards import MappedShard, shard_name
from relabel.labels.stored import StoredLabels
from relabel.runtime.errors import InputError
from relabel.runtime.machine import cores

logger = logging.getLogger(__name__)


L = TypeVar("L", bound=StoredLabels, default=LabelMaps)


class LabelStore(Generic[L]):
    """A label set to read from: `open` maps its files, `to` selects a device, `gather` returns LabelMaps or LabelRegions
    by row.

    Attributes:
        unreadable: keys of images that could not be read when the set was made.
        resident: whether `to` loaded the whole set into the device's memory; else rows are read from the mapped files.
    """

    def __init__(self, labels: Path, manifest: Manifest, shards: list[MappedShard], unreadable: tuple[str, ...]) -> None:
        self.labels = labels
        self.manifest = manifest
        self.unreadable = unreadable
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard.keys) for shard in shards])
        self._index = KeyIndex(np.concatenate([shard.keys for shard in shards]))
        self._device = torch.device("cpu")
        self._whole: dict[str, Tensor] | None = None
        self._kind: type[L] = kind_of_labels(manifest)  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._index.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the path: a process that is not forked opens the files itself, instead of receiving the maps."""
        return LabelStore.open, (self.labels,)

    @cached_property
    def keys(self) -> list[str]:
        """The key of every row; built on first use, since looking up keys does not need it.

        Raises:
            InputError: a key is not UTF-8, or would lead outside the folder that it is joined to.
        """
        try:
            return decode_keys(self._index.keys)
        except ValueError as error:
            raise InputError(f"{self.labels}: {error}; do not trust this label set") from error

    @cached_property
    def targets(self) -> Tensor:
        """(N,) int64 ground-truth label of every row: the class that its key names, as a number of the manifest's classes.

        Raises:
            InputError: the manifest names no classes, or other ones than the keys.
        """
        if self.manifest.classes is None:
            raise InputError(
                f"{self.labels / MANIFEST} names no classes, so the keys' have no numbers; take the targets of the images:"
                " relabel.images.sources.find_images(IMAGES).targets, in the order of their keys"
            )
        number = {name: i for i, name in enumerate(self.manifest.classes)}
        named = [key.split("/")[0] for key in self.keys]
        unknown = sorted(set(named) - number.keys())
        if unknown:
            raise InputError(
                f"{self.labels / MANIFEST}: {len(unknown)} classes of the keys are not among its classes (first:"
                f" {unknown[0]}); expected CLASS/NAME"
            )
        return torch.tensor([number[name] for name in named], dtype=torch.int64)

    @property
    def resident(self) -> bool:
        return self._whole is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all labels: per cell or region, 4 (6 above 65,536 classes) for each stored class, and 2 for the tail."""
        return sum(array.nbytes for shard in self._shards for array in shard.arrays.values())

    @property
    def file_sizes(self) -> np.ndarray:
        """(N,) uint64 bytes of the image file of every row when it was annotated; 0 where that was not recorded."""
        sizes = [np.zeros(len(s.keys), np.uint64) if s.file_size is None else s.file_size for s in self._shards]
        return np.concatenate(sizes)

    def region_counts(self) -> Tensor:
        """(N,) int64: how many regions each row has."""
        return torch.from_numpy(np.concatenate([shard.arrays["count"] for shard in self._shards]).astype(np.int64))

    def region_flags(self) -> int:
        """The flags that any of the regions has."""
        return int(np.bitwise_or.reduce([np.bitwise_or.reduce(s.arrays["flags"], axis=None) for s in self._shards]))

    @overload
    @classmethod
    def open(cls, labels: Path | str) -> "LabelStore[Any]": ...
    @overload
    @classmethod
    def open(cls, labels: Path | str, kind: type[L]) -> "LabelStore[L]": ...
    @classmethod
    def open(cls, labels: Path | str, kind: type[Any] = StoredLabels) -> "LabelStore[Any]":
        """Open a complete label set. Checks its structure; `check` checks every byte.

        Args:
            kind: LabelMaps or LabelRegions, if it must be one of them.
        Raises:
            InputError: not a label set, another format version, or a shard is missing or its structure is damaged; or a set
                of another kind.
        """
        labels = Path(labels)
        manifest = Manifest.load(labels)
        if not issubclass(kind_of_labels(manifest), kind):
            found, expected = ("regions", "label maps") if manifest.regions else ("label maps", "regions")
            raise InputError(f"{labels} holds {found}; expected {expected} here")
        lines = read_shard_lines(labels)
        if missing := missing_shards(lines, manifest.shard_count):
            raise InputError(
                f"{labels} is incomplete: {missing} of {manifest.shard_count} shards are missing (first:"
                f" {shard_name(first_missing(lines))}); run the command that made the label set again to finish it"
            )
        ordered = [lines[i] for i in range(manifest.shard_count)]
        shards = [MappedShard.open(labels, line, manifest) for line in ordered]
        return cls(labels, manifest, shards, tuple(key for line in ordered for key in line.unreadable))

    def check(self, shards: slice = slice(None)) -> "LabelStore[L]":
        """Compare every shard with its sha256, and its classes with their number; returns the store.

        This reads all files, which takes seconds for ImageNet's 6 GB (`make bench-full`), so `open` does not do it, and
        nothing is remembered between processes. What changes in a file afterwards is not seen, unless it becomes a class
        that does not exist.

        Args:
            shards: check only these, where several processes share the work.
        Raises:
            InputError: a shard is not what was written.
        """
        with ThreadPoolExecutor(cores()) as threads:  # hashing releases the GIL
            list(threads.map(MappedShard.check, self._shards[shards]))
        return self

    def to(self, device: torch.device | str, resident: bool | None = None) -> "LabelStore[L]":
        """Return labels on this device from here on. 1.28 M maps of 15x15x5 are about 6 GB.

        Args:
            resident: load the whole set into the device's memory. If None, this happens on a GPU, unless the set would take
                more than half of the free memory, which training needs; the log then says so. A set that is not resident
                stays in the mapped files. All processes of a machine share one copy of those, in the page cache, so there
                is nothing to coordinate, to clean up, or to fit into a container's memory. On a CPU, that copy is already in
                the memory that a resident set would use.
        """
        self._device = torch.device(device)
        if resident is None:
            resident = self._device.type == "cuda" and self._fits()
        if resident:
            with ThreadPoolExecutor(cores()) as threads:
                list(threads.map(lambda shard: shard.check_classes(shard.arrays["classes"]), self._shards))
            names = self._kind.names()
            self._whole = {name: self._on_device([shard.arrays[name] for shard in self._shards]) for name in names}
        else:
            self._whole = None
        return self

    def _fits(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        if self.nbytes <= free / 2:
            return True
        logger.info(
            f"{self.labels}: {self.nbytes / 1e9:.1f} GB of labels are read from the files, through the page cache:"
            f" {self._device} has {free / 1e9:.1f} GB free, and half of that is reserved for training"
        )
        return False

    def _on_device(self, parts: list[np.ndarray]) -> Tensor:
        """Join one array of all shards on the device, shard by shard, so that the host holds no second copy of the whole."""
        shape = (len(self), *parts[0].shape[1:])
        if self._device.type == "cpu":
            whole = np.empty(shape, parts[0].dtype)  # filling a torch.empty is three times slower
            targets = np.split(whole, self._starts[1:-1])
            with ThreadPoolExecutor(cores()) as threads:  # the first touch of each page is what takes the time
                list(threads.map(np.copyto, targets, parts))
            return as_tensor(whole)
        on_device = torch.empty(shape, dtype=as_tensor(parts[0][:0].copy()).dtype, device=self._device)
        for part, start in zip(parts, self._starts, strict=False):
            on_device[start : start + len(part)] = as_tensor(part.copy()).to(self._device)
        return on_device

    def find(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, -1 for keys that are not in the set."""
        return torch.from_numpy(self._index.find(encode_keys(keys)))

    def rows(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, for `gather`.

        Raises:
            KeyError: the first key that is not in the set.
        """
        rows = self.find(keys)
        if len(rows) and int(rows.min()) < 0:
            raise KeyError(keys[int((rows < 0).nonzero()[0])])
        return rows

    def gather(self, rows: Tensor) -> L:
        """The label maps or regions of (B,) rows, on the store's device.

        If the set is not resident, `rows` should be on the CPU: copying them from a GPU waits for its stream.
        """
        if self._whole is not None:
            rows = rows.to(self._device, non_blocking=True)
            return self._kind.from_stored({name: t.index_select(0, rows) for name, t in self._whole.items()})
        read = self.read(rows)
        return (read.pin_memory() if self._device.type == "cuda" else read).to(
            self._device
        )  # pinned: copies without waiting

    def read(self, rows: Tensor) -> L:
        """The labels of (B,) rows, on the CPU, from the mapped files. For processes that do not use the device."""
        numbers = rows.cpu().numpy()
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        positions = list(zip(shard_of.tolist(), (numbers - self._starts[shard_of]).tolist(), strict=True))
        return self._kind.from_stored({name: as_tensor(self._read(name, positions)) for name in self._kind.names()})

    def _read(self, name: str, positions: list[tuple[int, int]]) -> np.ndarray:
        """Rows of one array, from the mapped files; a position is (shard, row in the shard)."""
        arrays = [shard.arrays[name] for shard in self._shards]
        read = np.empty((len(positions), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (shard, row) in enumerate(positions):
            read[i] = arrays[shard][row]
        if name == "classes" and read.size and int(read.max()) >= self.manifest.num_classes:  # changed since it was checked
            for i, (shard, _) in enumerate(positions):
                self._shards[shard].check_classes(read[i])
        return read


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; uint32 as int32, which torch can gather and which is large enough for class indices."""
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
