"""The files in a tar by offset: one pass over its headers, after which each file is a read at an offset.

timm's reader streams through all bytes of a tar, keeps an object per member, and holds open handles that do not survive a
fork. This one reads only the headers, seeking from one to the next, and keeps nothing open.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from relabel.runtime.errors import InputError

SPARSE = -1  # the size of a member that is stored in pieces
MAX_LINKS = 40  # from link to link, as Linux follows them


class TarMember(NamedTuple):
    """A file in a tar, as a range of bytes. For a file in a tar inside the tar, `name` begins with the inner tar's stem.

    Attributes:
        size: in bytes; or SPARSE, and `offset` is that of the header.
    """

    name: str
    tar: Path
    offset: int
    size: int


def tar_members(path: Path, broken: list[str] | None = None) -> Iterator[TarMember]:
    """The files of an uncompressed tar, and of the tars inside it; links to such files too, each under its own name.

    Args:
        broken: receives the links that lead to no file in the tar, as "name -> target".
    Raises:
        InputError: the tar is compressed or damaged.
    """
    broken = [] if broken is None else broken
    try:
        with path.open("rb") as file:
            for name, header in files(file, broken):
                if PurePosixPath(name).suffix != ".tar":
                    yield located(name, path, header)
                    continue
                end = header.offset_data + header.size
                for nested, inner in files(file, broken, header.offset_data, end):
                    yield located(f"{PurePosixPath(name).stem}/{nested}", path, inner)
    except OSError:
        raise
    except Exception as error:  # tarfile raises half a dozen types for a damaged header
        raise InputError(
            f"{path} is not an uncompressed tar, or is damaged ({error}); decompress it, or unpack it and pass the folder"
        ) from error


def located(name: str, tar: Path, header: tarfile.TarInfo) -> TarMember:
    place = (header.offset, SPARSE) if header.issparse() else (header.offset_data, header.size)
    return TarMember(name, tar, *place)


def files(
    file: BinaryIO, broken: list[str], start: int = 0, end: int | None = None
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """(name, header) of the regular files, and of links to them, of the tar at byte `start`, which ends at byte `end`."""
    links: dict[str, str] = {}
    for header in headers(file, start, end):
        if header.isreg():
            yield header.name, header
        elif header.issym() or header.islnk():
            links[posixpath.normpath(header.name)] = target_of(header)
    if not links:
        return
    links |= links_in_linked_folders(links)
    leading_to: dict[str, list[str]] = {}  # a file or a folder -> the links that lead to it
    for link in links:
        leading_to.setdefault(follow(link, links), []).append(link)
    unresolved = dict(links)
    for header in headers(file, start, end):  # again: a link may come before what it leads to
        name = posixpath.normpath(header.name)
        for place in path_and_folders(name) if header.isreg() else ():
            for link in leading_to.get(place, ()):
                if place not in path_and_folders(link):  # a folder that holds a link to itself would never end
                    unresolved.pop(link, None)
                    yield moved(name, place, link), header
    broken += [f"{name} -> {target}" for name, target in unresolved.items()]


def links_in_linked_folders(links: dict[str, str]) -> dict[str, str]:
    """Where a link leads to a folder, the links in that folder, by the names that they have through the link."""
    inside: dict[str, list[str]] = {}  # a folder -> the links in it, at any depth
    for link in links:
        for folder in path_and_folders(link)[1:]:
            inside.setdefault(folder, []).append(link)
    found: dict[str, str] = {}
    for link in links:
        target = follow(link, links)
        if target not in path_and_folders(link):
            found |= {moved(inner, target, link): inner for inner in inside.get(target, ())}
    return found


def path_and_folders(name: str) -> list[str]:
    """a/b/c, a/b, a and "."."""
    return [name, *map(str, PurePosixPath(name).parents)]


def moved(name: str, place: str, link: str) -> str:
    """What a path that is, or lies in, `place` is called through a link that leads to `place`."""
    return posixpath.normpath(posixpath.join(link, posixpath.relpath(name, place)))


def headers(file: BinaryIO, start: int, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """All headers of a tar. Without an `end`, an empty block must follow the last member."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for header in tar:
            if end is not None and header.offset >= end:  # an inner tar without empty blocks; the outer tar goes on
                return
            yield header
            tar.members = []  # type: ignore[attr-defined]  # else a million headers would stay in memory
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0") or (end is None and not block):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"no header at byte {tar.offset}")


def target_of(link: tarfile.TarInfo) -> str:
    """A hard link names a member; a symbolic link is relative to its own folder."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def follow(name: str, links: dict[str, str]) -> str:
    """Where a path leads to when the links on it are followed, that of a folder too."""
    for _ in range(MAX_LINKS):
        link = next((place for place in path_and_folders(name) if place in links), None)
        if link is None:
            break
        name = posixpath.normpath(links[link] + name.removeprefix(link))
    return name


def read_member(member: TarMember) -> bytes:
    """The content of a file in a tar.

    Raises:
        OSError: the tar has become shorter.
    """
    with member.tar.open("rb") as file:
        return read_from(file, member)


def read_from(file: BinaryIO, member: TarMember) -> bytes:
    """As `read_member`, from its tar, which is open."""
    file.seek(member.offset)
    if member.size == SPARSE:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            pieces: Any = tar.extractfile(next(iter(tar)))
            return bytes(pieces.read())
    content = file.read(member.size)
    if len(content) < member.size:
        raise OSError(
            f"the tar has become shorter: {len(content)} of {member.size} bytes at byte {member.offset} of {member.tar}"
        )
    return content


def tar_locations(locations: list[tuple[int, int, int]]) -> np.ndarray:
    """(N,) records of three numbers."""
    return np.array(locations, dtype=[("tar", np.int32), ("offset", np.int64), ("size", np.int64)])


def read_tar_location(tars: tuple[Path, ...], location: Any) -> bytes:
    tar, offset, size = location.tolist()
    return read_member(TarMember("", tars[tar], offset, size))
