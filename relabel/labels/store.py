"""A label set opened for reading: it looks up keys, and hands out label maps by row, on any device.

Shapes: B images of a batch, N images of the set, k classes stored per cell, H rows and W columns of the label map.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relabel.images.keys import KeyIndex, decode_keys, encode_keys
from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.shard_lines import read_shard_lines
from relabel.labels.shards import MappedShard, shard_name
from relabel.runtime.errors import InputError
from relabel.runtime.machine import cores

logger = logging.getLogger(__name__)


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
            return decode_keys(self._index.keys)
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
        logger.info(
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
            return as_tensor(whole)
        on_device = torch.empty(shape, dtype=as_tensor(parts[0][:0].copy()).dtype, device=self._device)
        for part, start in zip(parts, self._starts, strict=False):
            on_device[start : start + len(part)] = as_tensor(part.copy()).to(self._device)
        return on_device

    def find(self, keys: Sequence[str]) -> Tensor:
        """(B,) int64 rows of these keys, -1 for those that the set does not hold."""
        return torch.from_numpy(self._index.find(encode_keys(keys)))

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
        return as_tensor(read)


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; uint32 as int32, which torch can gather, and which class numbers fit."""
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
