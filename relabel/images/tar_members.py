"""The files in a tar by offset: one pass over its headers, after which each file is a read at an offset.

timm's reader streams through all bytes of a tar, keeps an object per member, and holds open handles that do not survive a
fork. This one reads only the headers, seeking from one to the next, and keeps nothing open.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from relabel.runtime.errors import InputError


class TarMember(NamedTuple):
    """A file in a tar, as a range of bytes. For a file in a tar inside the tar, `name` begins with the inner tar's stem."""

    name: str
    tar: Path
    offset: int
    size: int


def tar_members(path: Path) -> Iterator[TarMember]:
    """The regular files of an uncompressed tar, and of the tars inside it.

    Raises:
        InputError: the tar is compressed or damaged.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in file_headers(tar, expect_end=True):
                if PurePosixPath(member.name).suffix != ".tar":
                    yield TarMember(member.name, path, member.offset_data, member.size)
                    continue
                file.seek(member.offset_data)
                stem, end = PurePosixPath(member.name).stem, member.offset_data + member.size
                with tarfile.open(fileobj=file, mode="r:") as inner:
                    for nested in file_headers(inner):
                        if nested.offset >= end:  # the inner tar has no empty blocks at its end
                            break
                        yield TarMember(f"{stem}/{nested.name}", path, nested.offset_data, nested.size)
    except OSError:
        raise
    except Exception as error:  # tarfile raises half a dozen types for a damaged header
        raise InputError(
            f"{path} is not an uncompressed tar, or is damaged ({error}); decompress it, or unpack it and pass the folder"
        ) from error


def file_headers(tar: tarfile.TarFile, expect_end: bool = False) -> Iterator[tarfile.TarInfo]:
    """The headers of the regular files. With `expect_end`, an empty block must follow the last member."""
    for member in tar:
        if member.isreg():
            yield member
        tar.members = []  # type: ignore[attr-defined]  # else a million headers would stay in memory
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0") or (expect_end and not block):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def read_member(member: TarMember) -> bytes:
    with member.tar.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)
