"""manifest.json and shards.jsonl: what they say reads back, and what is damaged is named."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.maps import LabelMaps, class_dtype
from relabel.labels.shard_lines import SHARD_LINES, ShardLine, append_shard_line, read_shard_lines, write_shard_lines
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from tests.label_sets import manifest_of

KEYS = ["a/1.JPEG", "b/1.JPEG", "b/2.JPEG"]
MAPS = LabelMaps(torch.zeros(3, 2, 4, 7), torch.zeros(3, 2, 4, 7, dtype=torch.int32), torch.zeros(3, 4, 7))


def manifest(**changes: Any) -> Manifest:
    return manifest_of(KEYS, MAPS, 5, **changes)


def edit(labels: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((labels / MANIFEST).read_text())
    change(fields)
    (labels / MANIFEST).write_text(json.dumps(fields))


# --- manifest.json ------------------------------------------------------------------------------------------------------


def test_manifest_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = manifest(model_kwargs={"output_stride": 8, "name": "thin"}, mean=(0.1, 0.2, 0.3), weights_sha256="ab")
    saved.save(tmp_path)
    assert Manifest.load(tmp_path) == saved


def test_model_kwargs_with_a_tuple_make_no_difference_after_reading_back(tmp_path: Path) -> None:
    saved = manifest(model_kwargs={"channels": (8, 8, 8, 16)})
    saved.save(tmp_path)
    assert Manifest.load(tmp_path).differences(saved) == []
    assert saved.differences(Manifest.load(tmp_path)) == []


def test_differences_name_each_field_with_both_values_and_leave_out_versions() -> None:
    other = manifest(topk=3, grid=(7, 4), torch_version="9", timm_version="9")
    assert manifest().differences(other) == ["topk: 2, not 3", "grid: [4, 7], not [7, 4]"]


def test_every_field_but_the_versions_makes_a_difference() -> None:
    for field in dataclasses.fields(Manifest):
        changed = dataclasses.replace(manifest(), **{field.name: "changed"})
        expected = 0 if field.name in ("timm_version", "torch_version") else 1
        assert len(manifest().differences(changed)) == expected, field.name


def test_manifest_of_another_format_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, lambda fields: fields.update(format=2, new_field="of version 2"))
    with pytest.raises(
        InputError, match=rf"{tmp_path}/manifest\.json: label format 2, this relabel reads 1; annotate again"
    ):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda fields: fields.pop("topk"), "topk"),
        (lambda fields: fields.update(temperature=2), "temperature"),
        (lambda fields: (fields.pop("grid"), fields.update(cells=[4, 7])), "cells, grid"),
    ],
)
def test_missing_and_unknown_fields_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(InputError, match=rf"manifest\.json: missing or unknown fields: {named};"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("grid", value) for value in (None, [4], [4, 0], [4.0, 7])],
        *[("num_classes", value) for value in ("5", 0, True)],
        ("model", None),
        ("model_kwargs", []),
        ("kind", 1),
        ("tail", "median"),
        ("precision", "float8"),
        ("flip", "no"),
    ],
)
def test_field_of_another_type_gets_a_message(tmp_path: Path, field: str, value: object) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, lambda fields: fields.pop("sha256") and fields.update({field: value}))
    shown = repr(tuple(value) if isinstance(value, list) and field == "grid" else value)
    with pytest.raises(InputError, match=rf"manifest\.json: {field} is {re.escape(shown)}.*; annotate again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", '{"format": 1, "mod', "[1]", "\x80binary"])
def test_torn_manifest_is_refused_by_path(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=rf"{tmp_path}/manifest\.json is (not JSON|no JSON object).*; run the command that made"
    ):
        Manifest.load(tmp_path)


def test_folder_without_manifest_is_no_label_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} is no label set: it holds no manifest\.json; make one with"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(("images", "per_shard", "shards"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3)])
def test_shard_count_counts_the_last_part_of_a_shard(images: int, per_shard: int, shards: int) -> None:
    assert manifest(image_count=images, shard_size=per_shard).shard_count == shards


@pytest.mark.parametrize(("classes", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_class_dtype_holds_the_largest_class(classes: int, dtype: type) -> None:
    chosen = class_dtype(classes)
    assert chosen == dtype
    assert np.array(classes - 1).astype(chosen) == classes - 1


# --- shards.jsonl -------------------------------------------------------------------------------------------------------

LINES = {
    0: ShardLine(0, "shard-00000.h5", 3, "aa"),
    1: ShardLine(1, "shard-00001.h5", 1, "bb", ("b/ü.JPEG", "b/2.JPEG")),
    2: ShardLine(2, "shard-00002.h5", 0, "cc"),
}


def test_appended_lines_read_back(tmp_path: Path) -> None:
    assert read_shard_lines(tmp_path) == {}
    for number in (2, 0, 1):
        append_shard_line(tmp_path, LINES[number])
    assert read_shard_lines(tmp_path) == LINES


def test_torn_last_line_is_dropped_wherever_it_tore(tmp_path: Path) -> None:
    write_shard_lines(tmp_path, LINES)
    whole = (tmp_path / SHARD_LINES).read_bytes()
    last = len(LINES[2].to_json())
    for torn in range(1, last + 1):
        (tmp_path / SHARD_LINES).write_bytes(whole[:-torn])
        assert read_shard_lines(tmp_path) == {0: LINES[0], 1: LINES[1]}


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        "[1, 2]",
        '{"shard": 1}',
        '{"shard": 1, "unreadable": [], "rows": 1, "x": 2}',
        '{"shard": 1, "file": "shard-00001.h5", "rows": 1, "sha256": 7, "unreadable": []}',
        '{"shard": 1, "file": "shard-00001.h5", "rows": 1, "sha256": "bb", "unreadable": [7]}',
    ],
)
def test_damaged_middle_line_is_named_by_number(tmp_path: Path, damage: str) -> None:
    write_shard_lines(tmp_path, LINES)
    lines = (tmp_path / SHARD_LINES).read_text().splitlines(keepends=True)
    (tmp_path / SHARD_LINES).write_text(lines[0] + damage + "\n" + lines[2])
    with pytest.raises(
        InputError, match=rf"{tmp_path}/shards\.jsonl line 2 is damaged .*run the command that made the label set again"
    ):
        read_shard_lines(tmp_path)


def test_rewritten_lines_do_not_tell_in_which_order_shards_were_finished(tmp_path: Path) -> None:
    write_shard_lines(tmp_path, {n: LINES[n] for n in (2, 0, 1)})
    first = (tmp_path / SHARD_LINES).read_bytes()
    write_shard_lines(tmp_path, LINES)
    assert (tmp_path / SHARD_LINES).read_bytes() == first
    assert [json.loads(line)["shard"] for line in first.splitlines()] == [0, 1, 2]


# --- write_whole --------------------------------------------------------------------------------------------------------


def test_write_whole_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", b"old and longer")
    atomic_write(tmp_path / "x", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"new"}


def test_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    atomic_write(tmp_path / "x", b"old")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        atomic_write(tmp_path / "x", bytes(1001))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"old"}
