"""Millions of keys in one array of fixed-width bytes, and a lookup in it.

As a Python list and dict, ImageNet's keys would take ten times the memory, in every process of a run: looking at a string
counts a reference in it, and so copies the memory that a worker shares with its main process.

Shapes: N keys stored, n keys looked up.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


class Keys(Sequence[str]):
    """Keys as a sequence of strings, which are made when they are looked at.

    Attributes:
        encoded: (N,) the keys as `encode_keys` encodes them.
    """

    def __init__(self, encoded: np.ndarray) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Keys": ...
    def __getitem__(self, index: int | slice) -> "str | Keys":
        return Keys(self.encoded[index]) if isinstance(index, slice) else str(self.encoded[index].decode())

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self.encoded)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return np.array_equal(self.encoded, other.encoded)
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Keys({len(self)}: {', '.join(self[:3])}, ...)"


def encode_keys(keys: Sequence[str]) -> np.ndarray:
    """(N,) UTF-8 bytes, which sort in the same order as the strings."""
    if isinstance(keys, Keys):
        return keys.encoded
    return np.array([key.encode() for key in keys], dtype=np.bytes_)


def is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8 on disk: Python represents any other bytes as lone surrogates."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def decode_keys(keys: np.ndarray) -> list[str]:
    """The keys as strings that are safe to join to a folder.

    Raises:
        ValueError: a key is not UTF-8, or would lead outside the folder.
    """

    def safe(key: str) -> str:
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"the key {key!r} is not a path inside a folder")
        return key

    return [safe(key.decode()) for key in keys.tolist()]


def is_ascii(keys: np.ndarray) -> bool:
    return not np.ascontiguousarray(keys).view(np.uint8).max(initial=0) & 0x80


def composed(keys: np.ndarray) -> np.ndarray:
    """The keys with each é as one character (NFC); in file names of macOS it is two (NFD)."""
    return encode_keys([unicodedata.normalize("NFC", key.decode(errors="replace")) for key in keys.tolist()])


class KeyIndex:
    """Looks up keys by binary search; `keys` is the (N,) result of `encode_keys`, in any order."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._order = np.argsort(keys, kind="stable")  # label sets are sorted: a stable sort is then one pass

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 index of each key, -1 if it is missing. Keys in another spelling of é are found."""
        found = self._find(keys)
        missing = found < 0
        if missing.any() and not (is_ascii(keys[missing]) or is_ascii(self.keys)):
            found[missing] = KeyIndex(composed(self.keys))._find(composed(keys[missing]))
        return found

    def _find(self, keys: np.ndarray) -> np.ndarray:
        if len(self.keys) == 0:
            return np.full(len(keys), -1)
        position = np.searchsorted(self.keys, keys, sorter=self._order)
        candidate = self._order[np.minimum(position, len(self.keys) - 1)]
        return np.where(self.keys[candidate] == keys, candidate, -1)
