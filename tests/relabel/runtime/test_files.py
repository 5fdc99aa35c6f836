"""Files are written complete or not at all."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from relabel.runtime.files import atomic_write


def test_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", b"old and longer")
    atomic_write(tmp_path / "x", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"new"}


def test_failed_atomic_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    atomic_write(tmp_path / "x", b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        atomic_write(tmp_path / "x", bytes(1001))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"old"}
