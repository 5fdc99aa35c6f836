"""What is read of a label set is what was written: every byte of a shard, its classes, and where its arrays are stored."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from annotate.interchange.export_labels import export_labels
from pipeline.compare import compare
from pipeline.verify import verify
from relabel.labels.manifest import MANIFEST, fields_digest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import SHARD_LINES, read_shard_lines, write_shard_lines
from relabel.labels.shards import shard_name
from relabel.labels.store import LabelStore
from relabel.runtime.files import sha256_of
from tests.conftest import refusal
from tests.label_sets import write_label_set
from tests.train.runs import recipe
from train.options import TrainOptions
from train.training_set import open_labels

KEYS = ["cat/1.JPEG", "cat/2.JPEG", "dog/1.JPEG", "eel/1.JPEG", "eel/2.JPEG"]


@pytest.fixture
def label_set(tmp_path: Path) -> Path:
    """Five images in shards of two, two and one; two classes per cell, of seven."""
    logits = torch.randn(5, 7, 3, 4, generator=torch.Generator().manual_seed(0))
    scores, classes = logits.topk(2, dim=1)
    write_label_set(tmp_path / "set", KEYS, LabelMaps(scores, classes, logits.mean(1)), 7, shard_size=2)
    return tmp_path / "set"


def as_train_opens(labels: Path) -> LabelStore | None:
    options = TrainOptions(labels=labels)
    return open_labels(options.labels, recipe())


def rewritten(labels: Path, shard: int, change: Callable[[h5py.File], object]) -> Path:
    """Change a shard and record its new sha256, as a program that writes label sets of its own might."""
    path = labels / shard_name(shard)
    with h5py.File(path, "r+") as file:
        change(file)
    lines = read_shard_lines(labels)
    fields = vars(lines[shard]) | {"sha256": sha256_of(path)}
    write_shard_lines(labels, lines | {shard: type(lines[shard])(**fields)})
    return path


def flip(path: Path, dataset: str) -> None:
    """One bit of an array, so that the structure stays valid."""
    with h5py.File(path) as file:
        offset = file[dataset].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("dataset", ["keys", "scores", "classes", "tail"])
def test_flipped_bit_of_a_shard_is_refused_by_train_compare_export_and_verify(
    label_set: Path, tmp_path: Path, dataset: str
) -> None:
    path = label_set / shard_name(1)
    flip(path, dataset)
    expected = f"{path}: its bytes changed after it was written (sha256); delete it and run"
    assert refusal(lambda: as_train_opens(label_set)).startswith(expected)
    assert refusal(lambda: compare(label_set, label_set)).startswith(expected)
    assert refusal(lambda: export_labels(label_set, tmp_path / "maps", "relabel")).startswith(expected)
    assert not (tmp_path / "maps").exists()
    assert [finding.startswith(expected) for finding in verify(label_set).findings] == [True]


def test_processes_of_one_machine_share_the_work_and_check_every_shard(
    label_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    flip(label_set / shard_name(1), "tail")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert as_train_opens(label_set) is not None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "shard-00001.h5: its bytes changed" in refusal(lambda: as_train_opens(label_set))


def test_class_beyond_the_last_is_refused_with_its_file_even_if_the_sha256_is_right(label_set: Path) -> None:
    def spoil(file: h5py.File) -> None:
        file["classes"][1, 0, 2, 3] = 65_535

    path = rewritten(label_set, 1, spoil)
    expected = f"{path}: found class 65535, the manifest has 7; delete it and run"
    store = LabelStore.open(label_set)
    assert expected in refusal(store.check)
    assert expected in refusal(lambda: store.read(torch.tensor([0, 3])))
    assert expected in refusal(lambda: store.to("cpu", resident=True))
    store.read(torch.tensor([0, 1, 2]))  # the other rows are sound


def link_elsewhere(make: Callable[[Path], object]) -> Callable[[Path], Callable[[h5py.File], None]]:
    """Replace an array by a link that `make` makes to the same array in the next shard."""

    def of(labels: Path) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            del file["scores"]
            file["scores"] = make(labels / shard_name(0))

        return change

    return of


def virtual(labels: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["scores"]
        layout = h5py.VirtualLayout((2, 2, 3, 4), np.float16)
        layout[:] = h5py.VirtualSource(labels / shard_name(0), "scores", (2, 2, 3, 4))
        file.create_virtual_dataset("scores", layout)

    return change


def stored_outside(labels: Path) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["scores"]
        outside = [(str(labels / shard_name(0)), 0, 2 * 2 * 3 * 4 * 2)]
        file.create_dataset("scores", (2, 2, 3, 4), np.float16, external=outside)

    return change


@pytest.mark.parametrize(
    "change",
    [
        link_elsewhere(lambda other: h5py.ExternalLink(other, "scores")),
        link_elsewhere(lambda other: h5py.ExternalLink("no such file", "scores")),
        link_elsewhere(lambda other: h5py.SoftLink("/tail")),
        virtual,
        stored_outside,
    ],
    ids=["external link", "dangling link", "soft link", "virtual", "external storage"],
)
def test_array_that_the_shard_does_not_hold_itself_is_refused(
    label_set: Path, change: Callable[[Path], Callable[[h5py.File], None]]
) -> None:
    path = rewritten(label_set, 1, change(label_set))
    message = refusal(lambda: LabelStore.open(label_set))
    assert message.startswith(f"{path}: scores is ") and "must hold it; delete it and run" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda file: file.attrs.__setitem__("format", np.array([1, 1])), "format and num_classes are not a number"),
        (lambda file: file.attrs.__setitem__("num_classes", h5py.Empty("i8")), "format and num_classes are 1 and not a num"),
        (lambda file: file.attrs.__setitem__("num_classes", "7"), "format and num_classes are 1 and not a number (str)"),
        (lambda file: file.attrs.__delitem__("format"), "format and num_classes are None and 7"),
        (lambda file: (file.pop("tail"), file.create_dataset("tail", data=h5py.Empty("f2"))), "tail is not an array"),
        (lambda file: (file.pop("tail"), file.create_group("tail")), "tail is not an array"),
        (lambda file: (file.pop("tail"), file.create_dataset("tail", data=1.0)), "tail is float64[]"),
        (lambda file: (file.pop("keys"), file.create_dataset("keys", data=["cat/1", "cat/2"])), "keys is object[2]"),
    ],
    ids=["array attribute", "null attribute", "text attribute", "no attribute", "null", "group", "scalar", "text"],
)
def test_odd_contents_of_a_shard_are_named(label_set: Path, change: Callable[[h5py.File], object], named: str) -> None:
    path = rewritten(label_set, 1, change)
    message = refusal(lambda: LabelStore.open(label_set))
    assert str(path) in message and named in message


def test_shard_of_another_manifest_is_refused(label_set: Path) -> None:
    lines = (label_set / SHARD_LINES).read_text().splitlines(keepends=True)
    changed = json.loads(lines[0]) | {"manifest": "0" * 64}
    (label_set / SHARD_LINES).write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
    assert f"{label_set / shard_name(0)}: made with a different manifest.json" in refusal(lambda: LabelStore.open(label_set))


def test_manifest_that_promises_a_thousand_million_shards_is_answered_at_once(label_set: Path) -> None:
    fields = json.loads((label_set / MANIFEST).read_text())
    del fields["sha256"]
    fields.update(image_count=10**9, shard_size=1)
    (label_set / MANIFEST).write_text(json.dumps(fields | {"sha256": fields_digest(fields)}))
    assert "999999997 of 1000000000 shards are missing (first: shard-00003.h5)" in refusal(
        lambda: LabelStore.open(label_set)
    )
    assert f"{label_set}: 999999992 more of its 1000000000 shards are not finished" in verify(label_set).findings


@pytest.mark.parametrize("share", [float("nan"), -1.0, 1.01, float("inf")])
def test_share_of_agreement_outside_0_and_1_is_refused(label_set: Path, share: float) -> None:
    assert refusal(lambda: verify(label_set, min_agreement=share)).startswith(f"--min-agreement {share}: expected a share")
