"""Files and folders that are complete or absent, even if their writer is killed; file locks; checksums."""

import errno
import fcntl
import glob
import hashlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from relabel.runtime.errors import InputError

LOCK = ".lock"  # of a folder that one run at a time may write
UNFINISHED = ".relabel-unfinished"  # marks a temporary folder that relabel made, and is locked while its writer lives
STANDARD_OUTPUT = 1

logger = logging.getLogger(__name__)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into, and rename it to `folder` at the end. What killed writers left is deleted.

    A link to a folder stays: the folder that it points to is written.

    Raises:
        InputError: `folder` is not empty, or cannot be renamed; or, inside the `with` block, the disk cannot be written.
    """
    place = folder.resolve()
    if place.exists() and not place.is_dir():
        raise InputError(f"{folder} is not a folder; name one that is empty, or that does not exist yet")
    if place.exists() and any(place.iterdir()):
        raise InputError(f"{folder} is not empty; name another folder, or delete it")
    delete_unfinished(place)
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if place.exists():  # tried before the work, as it is needed after it: a mount point cannot be renamed
            place.rename(unfinished).rename(place)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: it is put in its place by renaming, and that fails here ({error.strerror}); name a"
            " folder inside it, or another one"
        ) from error
    try:
        with open_lock(unfinished / UNFINISHED) as marker:
            lock(marker, wait=False)
            yield unfinished
            unfinished.replace(place)
        (place / UNFINISHED).unlink()
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def delete_unfinished(place: Path) -> None:
    """Delete what killed writers of a folder have left beside it; nothing that somebody else has made."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*.tmp"):
        with suppress(OSError, InputError), open_lock(left / UNFINISHED, create=False) as marker:
            if lock(marker, wait=False):  # its writer has ended
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def write_lock(folder: Path, writers: str, option: str) -> Iterator[None]:
    """Lock a folder, by a file in it, against other processes that would write there. A dead process holds no lock.

    Args:
        writers: which commands may be writing there, and the option that names the folder, for the message.
    Raises:
        InputError: another process holds the lock, or what should be the lock's file is something else.
    """
    try:
        file = open_lock(folder / LOCK)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error}") from error
    with file:
        try:
            if not lock(file, wait=False):
                logger.warning(f"{folder} is on a file system without locks; make sure that no other run writes to it")
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"another {writers} is writing to {folder}; wait for it to finish, or use another {option}"
            ) from error
        yield


def open_lock(path: Path, create: bool = True) -> BinaryIO:
    """Open a lock's file without changing what is there.

    Raises:
        InputError: it is a link, which may lead to anybody's file, or no regular file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # without waiting for the other end of a pipe
    try:
        file = os.fdopen(os.open(path, flags | (os.O_CREAT if create else 0), 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ESPIPE):
            raise
        raise no_lock_file(path) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise no_lock_file(path)
    return file


def no_lock_file(path: Path) -> InputError:
    return InputError(f"{path} is not a regular file; expected the file of a lock. Delete it and run again")


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

    A device or a pipe is written to, not replaced.

    Raises:
        OSError: the disk is full or read-only; the temporary file is removed, and an existing file at `path` is unchanged.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
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


def delete_temporary(folder: Path, *names: str) -> None:
    """Delete what killed processes have left of files with such names (patterns) that `atomic_write` was writing."""
    for name in names:
        for leftover in folder.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)  # a dying process of the run before may just have done so


def check_output(path: Path, made_here: Callable[[Path], bool], force: bool) -> None:
    """Before the work: whether the file that a user has named for its result may be written.

    Args:
        made_here: whether an existing file, which would be replaced, is an earlier result of the same command.
        force: replace any file.
    Raises:
        InputError: `path` is a folder, a file of another kind, or in a place where nothing can be written.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    place = output_place(path)
    if not place.exists():
        above = next(folder for folder in place.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {path}: {above} is not a folder that can be written to; name another place")
        return
    mode = place.stat().st_mode
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{path} is neither a file nor a pipe; name another file")
    replaced = stat.S_ISREG(mode) and place.stat().st_size > 0 and not is_standard_output(place)
    if replaced and not force and not made_here(place):
        raise InputError(
            f"{path} exists and is not an earlier result of this command; name another file, or replace it with --force"
        )


def write_output(path: Path, content: bytes) -> None:
    """Write the file that a user has named. A link stays, what it points to is written; so is a device or a pipe."""
    place = output_place(path)
    if place.exists() and is_standard_output(place):  # /dev/stdout, which a rename would take from the shell
        sys.stdout.flush()
        with os.fdopen(os.dup(STANDARD_OUTPUT), "wb") as file:
            file.write(content)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, content)


def output_place(path: Path) -> Path:
    """Where a link leads; a pipe of this process, such as /dev/stdout, has no other path."""
    return path if path.exists() and not path.is_file() else path.resolve()


def is_standard_output(path: Path) -> bool:
    return os.path.samestat(path.stat(), os.fstat(STANDARD_OUTPUT))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
