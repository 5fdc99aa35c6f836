"""docs/format.md: its reader, its pooling and its checksums, run on label sets that the project's own writer made."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from relabel.labels.boxes import random_boxes, whole_image
from relabel.labels.manifest import Manifest
from relabel.labels.maps import MAPS, LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import LabelRegions
from relabel.labels.shard_lines import ShardLine, read_shard_lines
from relabel.labels.shards import FINGERPRINTS
from relabel.labels.store import LabelStore
from tests.label_sets import write_label_set

DOCUMENT = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
KEYS = [f"{folder}/{name}" for folder in ("ant", "boa") for name in ("1.JPEG", "2.JPEG", "éé.png")] + ["cat/long-name.JPEG"]
CLASSES = 6


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named_in_table(text: str) -> set[str]:
    """The names in backquotes in the first column of a table."""
    return {name for row in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(.*?)`", row)}


@pytest.fixture
def documented() -> dict[str, Any]:
    """What the document's code defines."""
    names: dict[str, Any] = {}
    for block in ("reader", "pooling", "regions", "checksums"):
        code = re.search(rf"<!-- {block}: begin -->\n```python\n(.*?)```\n<!-- {block}: end -->", DOCUMENT, re.S)
        assert code is not None, block
        exec(code[1], names)
    return names


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Seven maps of 3 x 5 cells in shards of three."""
    generator = torch.Generator().manual_seed(0)
    scores, classes = torch.randn(len(KEYS), CLASSES, 3, 5, generator=generator).topk(2, dim=1)
    maps = LabelMaps(scores, classes, torch.randn(len(KEYS), 3, 5, generator=generator) - 3)
    write_label_set(tmp_path / "mine", KEYS, maps, CLASSES, shard_size=3, classes=tuple("abcdeü"))
    return tmp_path / "mine"


def test_the_documented_reader_reads_what_label_store_reads(documented: dict[str, Any], labels: Path) -> None:
    manifest, keys, arrays = documented["read_label_set"](labels)
    store = LabelStore.open(labels)
    assert manifest["num_classes"] == CLASSES and manifest["grid"] == [3, 5]
    assert keys == store.keys == KEYS
    maps = store.gather(store.rows(keys))
    assert arrays.keys() == set(MAPS)
    assert all(np.array_equal(arrays[name], getattr(maps, name).numpy()) for name in MAPS)


def test_the_documented_reader_refuses_incomplete_sets_and_other_formats(documented: dict[str, Any], labels: Path) -> None:
    lines = (labels / "shards.jsonl").read_text()
    (labels / "shards.jsonl").write_text(lines.rstrip("\n"))  # a line without its newline was not finished
    with pytest.raises(ValueError, match=r"incomplete: shards \[2\] are missing"):
        documented["read_label_set"](labels)
    manifest = (labels / "manifest.json").read_text()
    (labels / "manifest.json").write_text(manifest.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="has label format 2, this program reads format 1"):
        documented["read_label_set"](labels)


def test_the_documented_pooling_gives_the_targets_of_label_pool(documented: dict[str, Any], labels: Path) -> None:
    _, _, arrays = documented["read_label_set"](labels)
    store = LabelStore.open(labels)
    row = 4
    boxes = torch.cat([whole_image(1), random_boxes(50, torch.Generator().manual_seed(1))])
    maps = store.gather(torch.full((len(boxes),), row))
    expected = label_pool(maps, boxes, CLASSES).softmax(1)
    of_image = [arrays[name][row] for name in MAPS]
    targets = np.stack([documented["crop_target"](*of_image, box, CLASSES) for box in boxes.tolist()])
    np.testing.assert_allclose(targets, expected.numpy(), atol=1e-6)


def test_the_documented_reader_and_targets_of_regions(documented: dict[str, Any], tmp_path: Path) -> None:
    scores, classes = torch.randn(len(KEYS), 2, CLASSES, generator=torch.Generator().manual_seed(0)).topk(3, dim=2)
    boxes = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(len(KEYS), 2, 4)
    stored = (boxes, torch.ones(len(KEYS), 2), scores - scores[:, :, :1], classes, -3 * torch.ones(len(KEYS), 2))
    regions = LabelRegions(*stored, torch.full((len(KEYS),), 2))
    write_label_set(tmp_path / "regions", KEYS, regions, CLASSES, shard_size=3)
    manifest, keys, arrays = documented["read_label_set"](tmp_path / "regions")
    assert manifest["regions"] == 2 and keys == KEYS and arrays.keys() == set(LabelRegions.names())
    expected = LabelStore.open(tmp_path / "regions", LabelRegions).gather(torch.tensor([4])).dense(CLASSES).softmax(2)[0, 1]
    target = documented["region_target"](*(arrays[name][4, 1] for name in ("scores", "classes", "tail")), CLASSES)
    np.testing.assert_allclose(target, expected.numpy(), atol=1e-6)
    assert (arrays["boxes"][4, 1] / 65_535).tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=1e-5)


def test_the_documented_checksums_are_those_that_the_files_record(documented: dict[str, Any], labels: Path) -> None:
    fields = json.loads((labels / "manifest.json").read_text())
    recorded = {line.manifest for line in read_shard_lines(labels).values()}
    assert documented["digest"]({name: value for name, value in fields.items() if name != "sha256"}) == fields["sha256"]
    assert {documented["identity"](fields)} == recorded == {Manifest.load(labels).identity}
    absent = ("outputs", "num_outputs", "recentre", "flip", "sha256")  # as in older label sets
    of_known_weights = {name: value for name, value in fields.items() if name not in absent} | {"weights_sha256": "0" * 64}
    (labels / "manifest.json").write_text(json.dumps(of_known_weights))
    identity = Manifest.load(labels).identity
    assert (
        documented["identity"](of_known_weights) == documented["identity"](of_known_weights | {"weights": "x"}) == identity
    )


def test_the_document_lists_every_field_dataset_and_attribute(labels: Path) -> None:
    assert named_in_table(section("manifest.json")) == {f.name for f in dataclasses.fields(Manifest)} | {"sha256"}
    assert named_in_table(section("shards.jsonl")) == {f.name for f in dataclasses.fields(ShardLine)}
    with h5py.File(labels / "shard-00000.h5") as file:
        of_maps, of_regions, of_files = re.split(r"\n(?:In regions|Both may)", section("shard-NNNNN.h5"))
        assert named_in_table(of_maps) == file.keys()
        assert named_in_table(of_regions) == {"keys", *LabelRegions.names()}
        assert named_in_table(of_files) == FINGERPRINTS.keys()
        assert file.attrs.keys() == {"format", "num_classes"}
        for dataset in file.values():
            assert (dataset.chunks, dataset.compression, dataset.external) == (None, None, None)
            assert dataset.id.get_offset() is not None
