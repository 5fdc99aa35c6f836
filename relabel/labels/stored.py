"""What label maps and regions have in common: tensors with a row per image, named as the datasets of a shard."""

import dataclasses
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

SCORE_DTYPE = np.dtype(np.float16)  # of stored scores and tails


def class_dtype(num_classes: int) -> np.dtype:
    """The stored type of class indices: uint16, or uint32 above 65,536 classes."""
    return np.dtype(np.uint16 if num_classes <= 65_536 else np.uint32)


class StoredLabels:
    """Base of the dataclasses LabelMaps and LabelRegions, whose fields are all tensors of B rows."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, which are also the datasets of a shard."""
        as_dataclass: Any = cls
        return tuple(field.name for field in dataclasses.fields(as_dataclass))

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names()}

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(t.to(device, non_blocking=True) for t in self.tensors().values()))

    def pin_memory(self) -> Self:
        return type(self)(*(t.pin_memory() for t in self.tensors().values()))

    def part(self, rows: slice) -> Self:
        """Some of the rows."""
        return type(self)(*(t[rows] for t in self.tensors().values()))

    def as_stored(self, num_classes: int) -> Self:
        """The same labels in the types of a shard."""
        raise NotImplementedError

    @classmethod
    def from_stored(cls, tensors: dict[str, Tensor]) -> Self:
        """The inverse of `as_stored`, as far as readers need: what is pooled is converted then."""
        return cls(**tensors)
