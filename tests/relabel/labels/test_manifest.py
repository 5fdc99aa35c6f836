"""manifest.json: it is read back as saved, and an unusable one is reported with what is wrong."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relabel.labels.manifest import MANIFEST, Manifest, fields_digest
from relabel.labels.maps import LabelMaps
from relabel.runtime.errors import InputError
from tests.label_sets import manifest_of

KEYS = ["a/1.JPEG", "b/1.JPEG", "b/2.JPEG"]
MAPS = LabelMaps(torch.zeros(3, 2, 4, 7), torch.zeros(3, 2, 4, 7, dtype=torch.int32), torch.zeros(3, 4, 7))


def manifest(**changes: Any) -> Manifest:
    return manifest_of(KEYS, MAPS, 5, **changes)


def edit(labels: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((labels / MANIFEST).read_text())
    change(fields)
    (labels / MANIFEST).write_text(json.dumps(fields))


def test_manifest_is_read_back_as_saved(tmp_path: Path) -> None:
    saved = manifest(model_kwargs={"output_stride": 8, "name": "thin"}, mean=(0.1, 0.2, 0.3), weights_sha256="ab")
    saved.save(tmp_path)
    assert Manifest.load(tmp_path) == saved


def test_tuple_in_model_kwargs_is_not_a_difference_after_reading_back(tmp_path: Path) -> None:
    saved = manifest(model_kwargs={"channels": (8, 8, 8, 16)})
    saved.save(tmp_path)
    assert Manifest.load(tmp_path).differences(saved) == []
    assert saved.differences(Manifest.load(tmp_path)) == []


def test_differences_show_both_values_of_each_field_and_ignore_versions() -> None:
    other = manifest(topk=3, grid=(7, 4), torch_version="9", timm_version="9")
    assert manifest().differences(other) == ["topk: 2, not 3", "grid: [4, 7], not [7, 4]"]


def test_every_field_except_the_versions_makes_a_difference() -> None:
    for field in dataclasses.fields(Manifest):
        change: dict[str, Any] = {field.name: "changed"}
        changed = dataclasses.replace(manifest(), **change)
        expected = 0 if field.name in ("timm_version", "torch_version") else 1
        assert len(manifest().differences(changed)) == expected, field.name


def test_error_for_another_format_version_names_both_versions(tmp_path: Path) -> None:
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
def test_missing_fields_and_unknown_ones_of_a_changed_manifest_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(InputError, match=rf"manifest\.json: missing or unknown fields: {named};"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("added", "named"),
    [({"glimpses": 4}, "the field 'glimpses'"), ({"views": 2, "glimpses": 4}, "the fields 'glimpses', 'views'")],
)
def test_fields_of_a_newer_version_are_named_with_the_version_that_does_not_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: dict[str, Any], named: str
) -> None:
    def newer(fields: dict[str, Any]) -> None:
        """As a newer version would save it: with its own fields and their sha256."""
        del fields["sha256"]
        fields.update(added)
        fields["sha256"] = fields_digest(fields)

    manifest().save(tmp_path)
    edit(tmp_path, newer)
    for installed, reader in (("0.1.0", r"relabel 0\.1\.0"), (None, "this relabel")):
        monkeypatch.setattr("relabel.labels.manifest.relabel_version", lambda version=installed: version)
        with pytest.raises(
            InputError, match=rf"{tmp_path}/manifest\.json has {named}, which {reader} does not know; install"
        ):
            Manifest.load(tmp_path)


def test_unknown_field_of_a_manifest_without_a_sha256_gets_the_same_message(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, lambda fields: fields.pop("sha256") and fields.update(glimpses=4))
    with pytest.raises(InputError, match=r"has the field 'glimpses', which .*relabel.* does not know; install the version"):
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
def test_field_with_an_invalid_value_is_named_in_the_error(tmp_path: Path, field: str, value: object) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, lambda fields: fields.pop("sha256") and fields.update({field: value}))
    shown = repr(tuple(value) if isinstance(value, list) and field == "grid" else value)
    with pytest.raises(InputError, match=rf"manifest\.json: {field} is {re.escape(shown)}.*; annotate again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", '{"format": 1, "mod', "[1]", "\x80binary"])
def test_truncated_manifest_is_named_in_the_error(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=rf"{tmp_path}/manifest\.json is not (JSON|a JSON object).*; run the command that made"
    ):
        Manifest.load(tmp_path)


def test_folder_without_a_manifest_is_not_a_label_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} is not a label set: missing manifest\.json; make one with"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(("images", "per_shard", "shards"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3)])
def test_shard_count_includes_a_last_partial_shard(images: int, per_shard: int, shards: int) -> None:
    assert manifest(image_count=images, shard_size=per_shard).shard_count == shards
