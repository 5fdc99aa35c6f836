"""Files and folders that are complete or absent, even if their writer is killed; file locks; checksums."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from relabel.runtime.errors import InputError


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into, and rename it to `folder` at the end. One left by a killed writer is deleted.

    Raises:
        InputError: `folder` is not empty; or, inside the `with` block, the disk cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty; name another folder, or delete it")
    unfinished = folder.resolve().with_name(f".{folder.resolve().name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.exists():
            folder.rmdir()
        unfinished.replace(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"cannot write {folder}: {error}") from error


def lock(file: BinaryIO | TextIO, wait: bool) -> bool:
    """Lock an open file against all other processes, until it is closed or this process ends.

    Args:
        wait: wait for another process's lock, instead of raising.

    Returns:
        False if the file system does not support locks.
    Raises:
        BlockingIOError or PermissionError: another process holds the lock, and `wait` is False.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # of this process only: workers do not inherit it
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        raise
    return True


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is complete or absent, even if the writer is killed: temporary name, sync, rename, sync the folder.

    Raises:
        OSError: the disk is full or read-only; the temporary file is removed, and an existing file at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
