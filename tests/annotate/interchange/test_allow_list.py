"""Pickles from strangers: plain data is read as torch and pickle read it, and everything else is refused and not run."""

import functools
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotate.interchange.allow_list import MAX_BYTES, StoredArray, load_plain, read_plain
from tests.conftest import refusal


def saved(content: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


def in_zip(pickled: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as records:
        records.writestr("a/data.pkl", pickled)
        for name, content in more.items():
            records.writestr(f"a/{name}", content)
    return buffer.getvalue()


PLAIN = (
    3,
    [{"params": [(57, 6, 55, 60), False, None], "prob": ([0.25, 1e-3], [999, 70_000, -(2**40)])}, {"a": "é"}],
    0.5,
    (),
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_as_they_were_saved(protocol: int) -> None:
    assert load_plain(saved(PLAIN, protocol)) == PLAIN
    assert load_plain(pickle.dumps(PLAIN, protocol)) == PLAIN
    assert load_plain(zlib.compress(pickle.dumps(PLAIN, protocol))) == PLAIN  # as joblib with compress=True


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_tensors_and_scalars_are_read_with_their_strides_and_byte_order(protocol: int) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensor = torch.arange(24).view(2, 3, 4)
    values: list[Any] = [
        *(array, array.T, array.astype(">f8"), array.astype(np.float16), array > 5),
        *(tensor, tensor[1:, 1:], tensor.permute(2, 0, 1).half(), tensor.bool()),
    ]
    for value, read in zip(values, load_plain(saved(values, protocol)), strict=True):
        assert isinstance(read, StoredArray)
        assert np.array_equal(read.array, np.asarray(value)) and read.array.shape == value.shape
    assert load_plain(saved([np.float64(0.25), np.int64(-7)], protocol)) == [0.25, -7]


class Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def reduced(module: str, name: str, arguments: bytes = b")") -> bytes:
    """A pickle of protocol 2 that calls any function."""
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + arguments + b"R."


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps(Calls(os.mkdir, "ran"), 2), "posix.mkdir"),
        (pickle.dumps(Calls(eval, "1 + 1"), 4), "builtins.eval"),
        (pickle.dumps([{"a": Calls(os.system, "true")}], 4), "posix.system"),
        (reduced("numpy", "fromfile"), "numpy.fromfile"),
        (reduced("numpy.core.multiarray", "fromstring"), "numpy.core.multiarray.fromstring"),
        (reduced("numpy", "dtype.newbyteorder"), "numpy.dtype.newbyteorder"),  # nested names
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"),
        (reduced("torch", "load"), "torch.load"),
        (reduced("numpy", "ndarray"), "numpy.ndarray is called"),
        (reduced("numpy", "dtype", b"X\x01\0\0\0O\x85"), "a dtype that is not of plain numbers"),
        (reduced("numpy.core.multiarray", "_reconstruct", b"cnumpy\ndtype\nK\x00\x85C\x01b\x87"), "a class of its own"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "the state of numpy.dtype is changed"),
        (b"\x80\x02c_codecs\nencode\nN}X\x04\0\0\0callNs\x86b.", "the state of _codecs.encode is changed"),
        (reduced("_codecs", "encode", b"X\x01\0\0\0aX\x05\0\0\0rot13\x86"), "an encoding that pickle does not use"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "the instruction b'r'"),  # memory for 2^32 objects
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.", r"the instruction b'\x96'"),  # a byte array of 2^56
        (b"\x80\x02\x8f.", r"the instruction b'\x8f'"),
        (b"\x80\x02(i__main__\nA\n.", "the instruction b'i'"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", r"the instruction b'\x81'"),  # an object of a class
        (b"\x80\x02\x82\x01.", r"the instruction b'\x82'"),  # a name by its number
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "an integer of 255 bytes"),
        (b"\x80\x02}" + b")" + b"\x85" * 60_000 + b"Ns.", "more than 50000 tuples"),  # to hash it overflows the stack
        (b"\x80\x02X\xff\xff\xff\x7f.", "truncated"),
        (b"\x80\x02]N.N.", "2 bytes after the end"),
        (b"\x80\x02", "truncated"),
        (b"\x80\x02.", ""),
    ],
)
def test_hostile_pickle_is_refused_with_the_reason_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (pickled, in_zip(pickled)):
        (tmp_path / "a.tar").write_bytes(content)
        message = refusal(lambda: read_plain(tmp_path / "a.tar"))
        assert message.startswith(f"{tmp_path}/a.tar is damaged, or not a file of this format") and reason in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def rebuilt(numbers: bytes, storage: bytes = b"FloatStorage") -> bytes:
    """A torch tensor of a record of four numbers, with offset, size and stride from `numbers`."""
    pid = b"(X\x07\0\0\0storagectorch\n" + storage + b"\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + pid + numbers + b"\x89ccollections\nOrderedDict\n)RtR."


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (b"K\x00K\x05\x85K\x01\x85", "larger than what is stored"),
        (b"K\x01K\x04\x85K\x01\x85", "larger than what is stored"),
        (b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85", "larger than what is stored"),  # an expanded view
        (b"K\x03K\x02\x85J\xff\xff\xff\xff\x85", "of negative size"),
        (b"J\xff\xff\xff\xffK\x02\x85K\x01\x85", "of negative size"),
    ],
)
def test_tensor_that_reaches_outside_its_numbers_is_refused(tmp_path: Path, numbers: bytes, reason: str) -> None:
    record = {"data/0": np.arange(4, dtype=np.float32).tobytes()}
    assert load_plain(in_zip(rebuilt(b"K\x01K\x02\x85K\x02\x85"), **record)).array.tolist() == [1, 3]
    (tmp_path / "a.tar").write_bytes(in_zip(rebuilt(numbers), **record))
    assert reason in refusal(lambda: read_plain(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither a zip of torch.save nor a pickle"),
        (b"P", "neither a zip of torch.save nor a pickle"),
        (saved(PLAIN)[:-30], "not a zip file"),
        (saved(PLAIN).replace(b"params", b"qarams", 1), "Bad CRC-32"),
        (in_zip(b"\x80\x02]" + b"N" * MAX_BYTES + b"e."), "expected at most"),
        (bytes(3 * MAX_BYTES), "more than 4194304 bytes"),
        (zlib.compress(pickle.dumps(b"a" * 2 * MAX_BYTES)), "compressed data that is truncated, or is more than"),
        (zlib.compress(pickle.dumps(PLAIN))[:-9], "compressed data that is truncated"),
    ],
)
def test_torn_or_oversized_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert reason in refusal(lambda: read_plain(tmp_path / "a.tar"))


def test_compressed_zip_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.tar", "w", zipfile.ZIP_DEFLATED) as records:
        records.writestr("a/data.pkl", bytes(10_000_000))
    assert "a zip that torch.save does not write" in refusal(lambda: read_plain(tmp_path / "a.tar"))
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path / "gone.tar", tmp_path / "pipe.tar"):
        assert f"{path} is missing, or not a regular file" in refusal(functools.partial(read_plain, path))
