"""Keys by the million: one array of fixed-width bytes, and the place of a key in it.

ImageNet's keys as a Python list and dict weigh ten times as much, in every process of a run.

Shapes: N keys held, n keys looked up.
"""

from collections.abc import Sequence

import numpy as np


def encode_keys(keys: Sequence[str]) -> np.ndarray:
    """(N,) UTF-8 bytes, which sort as the strings do."""
    return np.array([key.encode() for key in keys], dtype=np.bytes_)


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8 on the disk: Python gives the bytes of one that is not as lone surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def decode_keys(keys: np.ndarray) -> list[str]:
    """The keys as strings, safe to be joined to a folder.

    Raises:
        ValueError: names a key that is not UTF-8, or that would lead out of the folder.
    """

    def safe(key: str) -> str:
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"the key {key!r} is no path within a folder")
        return key

    return [safe(key.decode()) for key in keys.tolist()]


class KeyIndex:
    """Looks keys up by binary search; (N,) `keys` as `encode_keys` gives them, in any order."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._order = np.argsort(keys, kind="stable")  # label sets are sorted, which a stable sort sees in one pass

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 place of each key, -1 where it is missing."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1)
        place = np.searchsorted(self.keys, keys, sorter=self._order)
        candidate = self._order[np.minimum(place, len(self.keys) - 1)]
        return np.where(self.keys[candidate] == keys, candidate, -1)
