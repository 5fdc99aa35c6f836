"""The HDF5 shards of a label set: written complete or not at all, and read by memory-mapping.

The arrays of a shard are contiguous and unfiltered: a reader opens it with h5py to find their offsets, then maps the file.
relabel/labels/layout.py says which arrays there are.

Shapes: n images of a shard.
"""

import errno
import hashlib
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from relabel.images.keys import encode_keys, is_utf8
from relabel.labels.layout import layout
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.shard_lines import ShardLine
from relabel.labels.stored import StoredLabels
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write

SHARDS = "shard-*.h5"
REMEDY = "delete it and run the command that made the label set again"


# What is recorded of each image file, to know later whether it has changed: shape of an image's row, and type
FINGERPRINTS: dict[str, tuple[tuple[int, ...], np.dtype]] = {
    "file_size": ((), np.dtype(np.uint64)),
    "file_sha256": ((32,), np.dtype(np.uint8)),
}


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.h5"


@dataclass(frozen=True)
class Fingerprints:
    """Of n image files: size (n,) in bytes, and sha256 (n, 32), or None if it is not known."""

    size: np.ndarray
    sha256: np.ndarray | None = None

    @classmethod
    def of(cls, found: Sequence[tuple[int, bytes]]) -> "Fingerprints":
        """From the size and sha256 of each file."""
        sizes, digests = [size for size, _ in found], b"".join(digest for _, digest in found)
        return cls(np.array(sizes, dtype=np.uint64), np.frombuffer(digests, np.uint8).reshape(-1, 32))


def write_shard(
    labels: Path,
    shard: int,
    keys: Sequence[str],
    stored: StoredLabels,
    manifest: Manifest,
    unreadable: Sequence[str] = (),
    fingerprints: Fingerprints | None = None,
) -> ShardLine:
    """Write one shard, complete or not at all, and return its line for shards.jsonl.

    Args:
        keys: the images, in order.
        stored: their label maps or regions on the CPU, of any dtypes.
        unreadable: keys of the shard's images that could not be read.
        fingerprints: of the image files, if they are known.
    Raises:
        OSError: the disk is full or read-only; no file is left behind.
    """
    with h5py.File(shard_name(shard), "w", driver="core", backing_store=False) as file:  # in memory: shards are small
        file.attrs["format"] = manifest.format
        file.attrs["num_classes"] = manifest.num_classes
        file["keys"] = encode_keys(keys)
        for name, tensor in stored.as_stored(manifest.num_classes).tensors().items():
            file[name] = tensor.numpy()
        if fingerprints is not None:
            file["file_size"] = fingerprints.size
            if fingerprints.sha256 is not None:
                file["file_sha256"] = fingerprints.sha256
        file.flush()
        image = file.id.get_file_image()
    atomic_write(labels / shard_name(shard), image)
    sha256 = hashlib.sha256(image).hexdigest()
    return ShardLine(shard, shard_name(shard), len(keys), sha256, tuple(unreadable), manifest.identity)


@dataclass(frozen=True)
class MappedShard:
    """A finished shard, memory-mapped.

    Attributes:
        content: all bytes of the file, which the arrays are views of.
        sha256: of the file, as shards.jsonl has it.
        keys: (n,) bytes.
        arrays: those that relabel/labels/layout.py names, each (n, ...).
        file_size: (n,) bytes of each image file; None if not recorded.
        file_sha256: (n, 32) uint8; None if not recorded.
    """

    path: Path
    content: np.ndarray
    sha256: str
    num_classes: int
    keys: np.ndarray
    arrays: dict[str, np.ndarray]
    file_size: np.ndarray | None
    file_sha256: np.ndarray | None

    @classmethod
    def open(cls, labels: Path, line: ShardLine, manifest: Manifest) -> "MappedShard":
        """Check a shard's structure against the manifest, and map the shard.

        Raises:
            InputError: the file is missing, truncated or not HDF5, or its arrays are not what the manifest says.
        """
        path = labels / shard_name(line.shard)
        if line.file != shard_name(line.shard):
            raise InputError(f"{labels}: shards.jsonl names {line.file!r} for {path.name}; {REMEDY}")
        rows = layout(manifest) | FINGERPRINTS
        expected: dict[str, tuple[tuple[int, ...], np.dtype | None]] = {"keys": ((line.rows,), None)}
        expected |= {name: ((line.rows, *shape), dtype) for name, (shape, dtype) in rows.items()}
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for its writer
                raise InputError(f"{path} is not a regular file; {REMEDY}")
            path.open("rb").close()  # raises the system's own error if it cannot be read
            with h5py.File(path, "r", locking=False) as file:
                found = {name: stored_dataset(file, name) for name in expected if file.id.links.exists(name.encode())}
                recorded = tuple(recorded_number(file, name) for name in ("format", "num_classes"))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is missing, though shards.jsonl lists it; run the command that made the label set again"
            ) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise InputError(
                    f"cannot open {path}: {error.strerror}; raise the limit with `ulimit -n 4096`, and run again"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise InputError(f"cannot open {path}: {error.strerror}") from error
            raise InputError(f"{path} is truncated or not an HDF5 file ({error}); {REMEDY}") from error
        except InputError:
            raise
        except Exception as error:  # h5py raises half a dozen types for a damaged header
            raise InputError(f"{path} is truncated or not an HDF5 file ({error}); {REMEDY}") from error
        if recorded != (manifest.format, manifest.num_classes):
            raise InputError(
                f"{path}: format and num_classes are {recorded[0]} and {recorded[1]}, the manifest says {manifest.format}"
                f" and {manifest.num_classes}; {REMEDY}"
            )
        arrays = {}
        mapped = map_file(path, status.st_size)
        for name, (shape, dtype) in expected.items():
            if name not in found:
                if name in FINGERPRINTS:  # as in older label sets, and in imported ones
                    continue
                raise InputError(f"{path} has no dataset {name!r}; {REMEDY}")
            found_shape, found_dtype, offset = found[name]
            if found_shape != shape or (found_dtype.kind != "S" if dtype is None else found_dtype != dtype):
                raise InputError(
                    f"{path}: {name} is {found_dtype}{list(found_shape)}, the manifest says {dtype or 'S'}{list(shape)};"
                    f" {REMEDY}"
                )
            length = math.prod(shape) * found_dtype.itemsize
            if length and (offset is None or offset + length > len(mapped)):
                raise InputError(f"{path}: {name} is chunked or reaches past the end of the file; {REMEDY}")
            start = offset or 0
            arrays[name] = mapped[start : start + length].view(found_dtype).reshape(shape)
        if line.manifest not in (None, manifest.identity):
            raise InputError(f"{path}: made with a different {MANIFEST}; {REMEDY}")
        keys, size, sha256 = arrays.pop("keys"), arrays.pop("file_size", None), arrays.pop("file_sha256", None)
        return cls(path, mapped, line.sha256, manifest.num_classes, keys, arrays, size, sha256)

    def check(self) -> None:
        """Raises InputError if the file is not what was written, or has classes that the label set does not."""
        self.check_bytes()
        self.check_classes(self.arrays["classes"])
        if "count" in self.arrays and (largest := int(self.arrays["count"].max(initial=0))) > self.arrays["flags"].shape[1]:
            raise InputError(
                f"{self.path}: an image has {largest} regions, the manifest has {self.arrays['flags'].shape[1]}; {REMEDY}"
            )

    def check_bytes(self) -> None:
        """Raises InputError if the file's sha256 is not the one in shards.jsonl."""
        if hashlib.sha256(self.content.data).hexdigest() != self.sha256:
            raise InputError(f"{self.path}: its bytes changed after it was written (sha256); {REMEDY}")

    def check_classes(self, classes: np.ndarray) -> None:
        """Raises InputError if any of these class indices, read from this shard, is out of range: pooling would fail."""
        if classes.size and (largest := int(classes.max())) >= self.num_classes:
            raise InputError(f"{self.path}: found class {largest}, the manifest has {self.num_classes}; {REMEDY}")


def map_file(path: Path, size: int) -> np.ndarray:
    """(size,) uint8, read-only: the bytes of a file. As many as there are shards may be mapped at once.

    Python's own mmap, and so np.memmap, keeps a descriptor open for each, of which a process has about a thousand.
    """
    with path.open("rb") as file:
        name = str(path) if is_utf8(str(path)) else f"/dev/fd/{file.fileno()}"  # torch takes UTF-8
        mapped = torch.from_file(name, shared=False, size=size, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return mapped


def stored_dataset(file: h5py.File, name: str) -> tuple[tuple[int, ...], np.dtype, int | None]:
    """Shape, dtype and offset of an array; None for the offset if it is not contiguous.

    Raises:
        InputError: it is not stored in this file, or is not an array.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{file.filename}: {name} is a link to another place, and this file must hold it; {REMEDY}")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise InputError(f"{file.filename}: {name} is not an array; {REMEDY}")
    if dataset.is_virtual or dataset.external:
        raise InputError(f"{file.filename}: {name} is stored in another file, and this one must hold it; {REMEDY}")
    return dataset.shape, dataset.dtype, dataset.id.get_offset()


def recorded_number(file: h5py.File, name: str) -> int | str | None:
    """An attribute of the file; in words if it is not a single whole number."""
    if name not in file.attrs:
        return None
    value = file.attrs[name]
    return int(value) if isinstance(value, np.integer) else f"not a number ({type(value).__name__})"
