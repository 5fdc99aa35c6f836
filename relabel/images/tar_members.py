"""The files within a tar, by their place in it: one pass over its headers, and from then on a read at an offset.

timm's reader scans a tar as a stream, all its bytes, and keeps an object per member and open handles that do not survive a
fork. Here only headers are read (a seek from one to the next) and nothing stays open.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from relabel.runtime.errors import InputError


class TarMember(NamedTuple):
    """A file within a tar: a stretch of it. Within a tar that lies in the tar, `name` begins with the inner tar's stem."""

    name: str
    tar: Path
    offset: int
    size: int


def tar_members(path: Path) -> Iterator[TarMember]:
    """The regular files of an uncompressed tar, and of the tars within it.

    Raises:
        InputError: a compressed or damaged tar.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in headers(tar, ended=True):
                if PurePosixPath(member.name).suffix != ".tar":
                    yield TarMember(member.name, path, member.offset_data, member.size)
                    continue
                file.seek(member.offset_data)
                stem, end = PurePosixPath(member.name).stem, member.offset_data + member.size
                with tarfile.open(fileobj=file, mode="r:") as inner:
                    for nested in headers(inner):
                        if nested.offset >= end:  # a tar without the empty blocks at its end
                            break
                        yield TarMember(f"{stem}/{nested.name}", path, nested.offset_data, nested.size)
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is no uncompressed tar, or a damaged one ({error}); decompress it, or unpack it and name the folder"
        ) from error


def headers(tar: tarfile.TarFile, ended: bool = False) -> Iterator[tarfile.TarInfo]:
    """The regular files' headers; `ended`: there must be an empty block behind the last one."""
    for member in tar:
        if member.isreg():
            yield member
        tar.members = []  # type: ignore[attr-defined]  # else a million headers stay in memory
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or (ended and not block):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def read_member(member: TarMember) -> bytes:
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
