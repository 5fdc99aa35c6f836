"""Read the pickles of other projects' stores without running what they say.

A pickle is a program: it names functions and calls them. These stores need little of that. So a file is refused unless all
its instructions are those that write numbers, text, lists, tuples, dicts, NumPy arrays and scalars, and torch tensors. A
name in it stands for one of our own small functions below, never for the function of that name; any other name is refused.

Python's unpickler in C does the rest, as a million files have to be read: torch.load(weights_only=True) is slower by far,
and refuses protocol 4, in which ml-dr writes.
"""

import gc
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from relabel.runtime.errors import InputError, first_line

MAX_BYTES = 2 << 20  # of a pickle and of its tensors; 500 crops of 10 classes take 100 KB
MAX_FILE_BYTES = 2 * MAX_BYTES
MAX_TUPLES = 50_000  # nested so deeply, they would overflow the stack when they are hashed
MAX_RECORDS = 64  # in a zip of torch.save: the pickle, versions, and a record per tensor

# Instructions of fixed length. Not among them: those that make sets, byte arrays and objects, and any of the text
# protocols 0 and 1. Position 2^21 is the last to memorise at: a larger one would make a list of that length.
FIXED = re.compile(
    rb"(?:[(\])}aesutNRbQ\x85-\x89\x93\x94]|[Kqh\x80].|M..|[Jj]....|r..[\x00-\x1f]\x00|[G\x95]........){0,999}+", re.DOTALL
)
LENGTH_BYTES = {b"X": 4, b"\x8c": 1, b"B": 4, b"C": 1, b"\x8a": 1}  # instructions that say how many bytes follow
MAX_INTEGER_BYTES = 8
TUPLES = (b"\x85", b"\x86", b"\x87", b"t")  # instructions that make one

NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}


def read_plain(path: Path) -> Any:
    """What torch.save or joblib wrote, of plain values; arrays and tensors are of type StoredArray.

    Raises:
        InputError: the file is missing, damaged or too large, or holds anything else.
    """
    if not path.is_file():  # opening a named pipe would wait for its writer
        raise InputError(f"{path} is missing, or not a regular file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        return load_plain(content)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises any type of error
        raise InputError(f"{path} is damaged, or not a file of this format ({first_line(error)})") from error


def load_plain(content: bytes) -> Any:
    """As `read_plain`, for the bytes of a file: a zip of torch.save, or a pickle, compressed or not, of joblib."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as records:
            return load_records(records)
    if content.startswith((b"x", b"\x1f\x8b")):
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # of zlib or gzip
        content = inflater.decompress(content, MAX_BYTES)
        if not inflater.eof:
            raise ValueError(f"compressed data that is truncated, or is more than {MAX_BYTES} bytes")
    if not content.startswith(b"\x80"):
        raise ValueError("neither a zip of torch.save nor a pickle of protocol 2 or newer")
    return unpickle(content, {})


def load_records(records: zipfile.ZipFile) -> Any:
    entries = records.infolist()
    if len(entries) > MAX_RECORDS or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise ValueError("a zip that torch.save does not write")
    pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"a zip with {len(pickles)} data.pkl; torch.save writes one")
    folder = pickles[0].removesuffix("data.pkl")
    tensors = {
        entry.filename.removeprefix(f"{folder}data/"): records.read(entry)  # checks its CRC-32
        for entry in entries
        if entry.filename.startswith(f"{folder}data/")
    }
    if f"{folder}byteorder" in records.namelist() and records.read(f"{folder}byteorder") != b"little":
        raise ValueError("tensors of another byte order than little-endian")
    return unpickle(records.read(pickles[0]), tensors)


def unpickle(pickled: bytes, tensors: dict[str, bytes]) -> Any:
    if len(pickled) > MAX_BYTES:
        raise ValueError(f"a pickle of {len(pickled)} bytes; expected at most {MAX_BYTES}")
    check_instructions(pickled)
    collecting = gc.isenabled()
    gc.disable()  # thousands of small lists would start it again and again, and it walks through all of torch's objects
    try:
        return Unpickler(pickled, tensors).load()
    finally:
        if collecting:
            gc.enable()


def check_instructions(pickled: bytes) -> None:
    """Raises ValueError if any instruction is not one of those above, or if tuples could be nested too deeply."""
    if sum(map(pickled.count, TUPLES)) > MAX_TUPLES:  # counts data that look like it, too: at most one byte in 64
        raise ValueError(f"more than {MAX_TUPLES} tuples")
    at = 0
    while pickled[at : at + 1] != b".":
        match = FIXED.match(pickled, at)
        assert match is not None
        start, at = at, match.end()
        instruction = pickled[at : at + 1]
        if instruction in LENGTH_BYTES:
            width = LENGTH_BYTES[instruction]
            length = int.from_bytes(pickled[at + 1 : at + 1 + width], "little")
            if instruction == b"\x8a" and length > MAX_INTEGER_BYTES:
                raise ValueError(f"an integer of {length} bytes")
            at += 1 + width + length
        elif instruction == b"c":  # a module and a name, each ended by a newline
            at = pickled.index(b"\n", pickled.index(b"\n", at) + 1) + 1
        elif at == start:
            found = f"the instruction {instruction!r} of pickle" if instruction else "a truncated pickle"
            raise ValueError(f"{found} at byte {at}, which no store of plain values has")
    if at + 1 != len(pickled):
        raise ValueError(f"{len(pickled) - at - 1} bytes after the end of the pickle")


class Named:
    """What a name in a pickle stands for. It has no attributes that a pickle could set."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise TypeError(f"{self.name} is called")
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise TypeError(f"the state of {self.name} is changed")


class Dtype:
    """A NumPy dtype of plain numbers, as its pickle makes it: a code, and then a state with the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in NUMBERS:
            raise TypeError("a dtype that is not of plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise TypeError("a dtype that is not of plain numbers")
        self.dtype = self.dtype.newbyteorder(order)


class StoredArray:
    """A NumPy array or a torch tensor in a pickle; `array` is it, in this machine's byte order."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        if not isinstance(raw, bytes) or any(size < 0 for size in shape):
            raise TypeError("an array that is not of plain numbers")
        array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if by_columns else "C")
        self.array = array.astype(array.dtype.newbyteorder("="), copy=False)


def empty_array(kind: Named, shape: Any, code: Any) -> StoredArray:
    if kind is not NDARRAY:
        raise TypeError("an array of a class of its own")
    return StoredArray(np.empty(0))  # until its state arrives


def scalar(kind: Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.dtype).item()


def latin1_bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise TypeError("an encoding that pickle does not use")
    return text.encode(encoding)


def rebuilt_tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> StoredArray:
    """A tensor is a view of a storage, by the strides that it had when it was saved."""
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not all(size) or last >= len(storage) or np.prod(size, dtype=object) > len(storage):
        raise ValueError("a tensor that is larger than what is stored of it")
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride])
    return StoredArray(view.copy())


NDARRAY = Named("numpy.ndarray")
NAMES: dict[tuple[str, str], Named] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): Named("numpy.dtype", Dtype),
    ("_codecs", "encode"): Named("_codecs.encode", latin1_bytes),
    ("torch._utils", "_rebuild_tensor_v2"): Named("torch's tensor", rebuilt_tensor),
    ("collections", "OrderedDict"): Named("OrderedDict", lambda: {}),  # of a tensor's hooks: none
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Named("numpy's array", empty_array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Named("numpy's scalar", scalar) for core in ("core", "_core")},
    **{("torch", name): Named(name) for name in STORAGES},
}


class Unpickler(pickle.Unpickler):
    """Python's unpickler, with NAMES for all the names there are."""

    def __init__(self, pickled: bytes, tensors: dict[str, bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.tensors = tensors

    def find_class(self, module: str, name: str) -> Named:
        try:
            return NAMES[module, name]
        except KeyError:
            raise ValueError(f"it contains {module}.{name}, which is not plain data; do not trust it") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The numbers of a torch storage, which are a record of the zip."""
        kind, storage, record, _, _ = pid
        if kind != "storage" or not isinstance(storage, Named) or storage.name not in STORAGES:
            raise TypeError("a storage that torch does not write")
        return np.frombuffer(self.tensors[record], STORAGES[storage.name])
