"""Exports are read back by the arithmetic of the programs that they are for; what those would misread is refused.

An untrusted label set cannot write outside its folder.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from annotate.interchange.export_labels import export_labels
from annotate.interchange.fkd import FKDStore
from annotate.interchange.import_labels import ImportOptions, import_labels
from annotate.interchange.ml_dr import MlDrStore
from annotate.sparsify import sparsify
from relabel.labels.boxes import random_boxes
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import ERASED, LabelRegions
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import ForeignFormat
from tests.annotate.interchange.crop_samples import CLASSES, IMAGES, SAMPLES, assert_as_their_reader, sample_images
from tests.conftest import Relabel, refusal
from tests.label_sets import write_label_set

SIDE = 7


def maps_of(images: int, num_classes: int = CLASSES, grid: tuple[int, int] = (SIDE, SIDE)) -> LabelMaps:
    logits = 4 * torch.randn(images, num_classes, *grid, generator=torch.Generator().manual_seed(0))
    return sparsify(logits, 3, "mean")


@pytest.mark.parametrize("key", ["../outside.JPEG", "cat/../../outside.JPEG", "/tmp/relabel-outside.JPEG", "", ".", "cat/."])
def test_key_that_points_outside_the_folder_is_rejected_before_anything_is_written(tmp_path: Path, key: str) -> None:
    write_label_set(tmp_path / "labels", ["aaa/first.JPEG", key], maps_of(2), CLASSES)
    message = refusal(lambda: export_labels(tmp_path / "labels", tmp_path / "home" / "exported", "relabel"))
    assert "is not a path inside a folder; do not trust this label set" in message
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("names", [("a.JPEG", "a.png"), ("a.1.JPEG", "a.2.JPEG")])
def test_images_that_the_reader_cannot_tell_apart_do_not_overwrite_each_other(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    keys = [f"cat/{name}" for name in names]
    write_label_set(tmp_path / "labels", keys, maps_of(2), CLASSES)
    message = refusal(lambda: export_labels(tmp_path / "labels", tmp_path / "out", "relabel"))
    assert f"{keys[0]} and {keys[1]} would both be written to cat/a.pt" in message
    assert not (tmp_path / "out").exists()


def test_export_stopped_by_a_full_disk_leaves_no_folder_and_a_rerun_writes_it(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    write_label_set(tmp_path / "labels", ["cat/a.JPEG", "dog/b.c.JPEG"], maps_of(2), CLASSES)
    with file_size_limit(500):
        message = refusal(lambda: export_labels(tmp_path / "labels", tmp_path / "out", "relabel"))
    assert f"cannot write {tmp_path / 'out'}: " in message and "File too large" in message
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    (tmp_path / ".out.tmp" / "cat").mkdir(parents=True)  # left by a killed export
    (tmp_path / ".out.tmp" / "cat" / "torn.pt").touch()
    assert export_labels(tmp_path / "labels", tmp_path / "out", "relabel") == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == ["a.pt", "b.pt"]


def theirs(stored: Tensor, boxes: Tensor, output: int) -> Tensor:
    """What the reference code and TokenLabeling make of a map: dense, with 0 for what is not stored; and a crop's top, left,
    bottom, right as x0, y0, x1, y1. (B, C, output, output) logits.
    """
    dense = torch.zeros(1, CLASSES, *stored.shape[2:]).scatter_(1, stored[1].long()[None], stored[0].float()[None])
    x0, y0, x1, y1 = boxes.unbind(1)
    edges = torch.stack([y0, x0, y1, x1], 1) * stored.shape[3] - 0.5
    pooled: Tensor = roi_align(dense, torch.cat([torch.zeros(len(boxes), 1), edges], 1), (output, output))
    return pooled


def test_reference_code_gets_our_targets_from_its_export_and_wrong_ones_from_rows_first(tmp_path: Path) -> None:
    maps = maps_of(1)
    write_label_set(tmp_path / "labels", ["cat/a.JPEG"], maps, CLASSES)
    export_labels(tmp_path / "labels", tmp_path / "out", "relabel")
    stored = torch.load(tmp_path / "out" / "cat" / "a.pt", weights_only=True)
    boxes = random_boxes(300, torch.Generator().manual_seed(1))
    x0, y0, x1, y1 = boxes.unbind(1)
    boxes = boxes[(torch.stack([x1 - x0, y1 - y0]) * SIDE > 1).all(0)]  # smaller ones it enlarges to a cell
    assert len(boxes) > 250
    read = LabelStore.open(tmp_path / "labels").read(torch.zeros(len(boxes), dtype=torch.int64))
    ours = label_pool(read, boxes, CLASSES).softmax(1)
    assert (theirs(stored, boxes, 1).flatten(1).softmax(1) - ours).abs().max() < 1e-5
    rows_first = theirs(stored.transpose(2, 3).contiguous(), boxes, 1).flatten(1).softmax(1)
    assert (rows_first - ours).abs().max() > 0.02


def test_tokens_and_mirroring_of_tokenlabeling_are_right_for_a_crop_on_the_diagonal(tmp_path: Path, caplog: Any) -> None:
    """Exchanging x and y does not change such a crop, so what its reader makes of the grid shows."""
    maps = maps_of(1)
    write_label_set(tmp_path / "labels", ["cat/a.JPEG"], maps, CLASSES)
    export_labels(tmp_path / "labels", tmp_path / "out", "token-labeling")
    assert "exchanges x and y of every crop" in caplog.text
    stored = torch.load(tmp_path / "out" / "cat" / "a.pt", weights_only=True)
    whole = torch.tensor([[0.0, 0, 1, 1]])
    read = LabelStore.open(tmp_path / "labels").read(torch.tensor([0]))
    cells = read.dense(CLASSES).softmax(1)
    torch.testing.assert_close(theirs(stored, whole, SIDE).softmax(1), cells, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs(stored.flip(3), whole, SIDE).softmax(1), cells.flip(3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "num_classes", "grid", "changes", "reason"),
    [
        ("relabel", 1000, (2, 4), {}, "take every map for a square"),
        ("token-labeling", 1000, (6, 8), {}, "take every map for a square"),
        ("relabel", 7, (4, 4), {}, "has 7 classes. The reference code takes every map to have 1000"),
        ("relabel", 1000, (4, 4), {"window": 1.0}, "takes a map for that of the whole image"),
        ("token-labeling", 1000, (5, 5), {}, "needs at least 6x6 cells"),
        ("token-labeling", 2049, (6, 6), {}, "at most 2048 classes"),
        ("fkd", 7, (4, 4), {}, "holds label maps; expected regions"),
        ("tiny-vit", 7, (4, 4), {}, "has a seed for each crop instead of a box"),
    ],
)
def test_maps_that_the_reader_would_misread_are_refused(
    tmp_path: Path, kind: ForeignFormat, num_classes: int, grid: tuple[int, int], changes: dict[str, Any], reason: str
) -> None:
    write_label_set(tmp_path / "labels", ["cat/a.JPEG"], maps_of(1, num_classes, grid), num_classes, **changes)
    assert reason in refusal(lambda: export_labels(tmp_path / "labels", tmp_path / "out", kind))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """FKD's sample as a label set."""
    import_labels(SAMPLES / "FKD", tmp_path / "labels", IMAGES, options=ImportOptions(num_classes=CLASSES, workers=0))
    return tmp_path / "labels"


def test_exported_regions_have_the_boxes_and_targets_that_were_imported(imported: Path, tmp_path: Path) -> None:
    assert export_labels(imported, tmp_path / "fkd", "fkd") == 12
    assert_as_their_reader(FKDStore(tmp_path / "fkd", sample_images(), CLASSES), "FKD")
    assert export_labels(imported, tmp_path / "ml-dr", "ml-dr", IMAGES, crop_size=224) == 12
    assert_as_their_reader(MlDrStore(tmp_path / "ml-dr", sample_images(), CLASSES), "FKD")
    coords, flips, labels = torch.load(tmp_path / "fkd/imagenet/train/8/8_18.tar", weights_only=True)
    assert (coords.dtype, flips.dtype, labels.shape) == (torch.float32, torch.bool, (8, 2, 5))
    config = torch.load(tmp_path / "ml-dr" / "config.pth.tar", weights_only=True)
    assert config["reinforce"]["image_augmentation"]["random_resized_crop"]["size"] == 224


def test_ml_drs_numbers_and_boxes_need_the_images_of_the_label_set(imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "pass --images" in refusal(lambda: export_labels(imported, out, "ml-dr"))
    assert "pass --crop-size" in refusal(lambda: export_labels(imported, out, "ml-dr", IMAGES))
    (tmp_path / "fewer" / "2").mkdir(parents=True)
    (tmp_path / "fewer" / "2" / "2_18.JPEG").write_bytes((IMAGES / "2" / "2_18.JPEG").read_bytes())
    message = refusal(lambda: export_labels(imported, out, "ml-dr", tmp_path / "fewer", 224))
    assert "11 labels there have no image" in message
    assert "are for ml-dr, not for fkd" in refusal(lambda: export_labels(imported, out, "fkd", IMAGES))


def regions_of(topk: int, flags: int, counts: list[int]) -> LabelRegions:
    boxes = torch.tensor([0.0, 0.25, 0.5, 1]).expand(2, 3, 4)
    scores = torch.zeros(2, 3, topk)
    return LabelRegions(
        *(boxes, torch.full((2, 3), flags), scores, torch.arange(topk).expand(2, 3, topk), scores[..., 0] - 3),
        torch.tensor(counts),
    )


@pytest.mark.parametrize(
    ("kind", "regions", "reason"),
    [
        ("fkd", regions_of(7, 0, [3, 3]), "has 7 classes per region. FKD's trainer divides the rest by C - 5 or C - 10"),
        ("fkd", regions_of(5, ERASED, [3, 3]), "blanked in part"),
        ("fkd", regions_of(5, 0, [3, 0]), "1 images of"),
        ("ml-dr", regions_of(7, 0, [3, 2]), "has from 2 to 3 regions per image"),
    ],
)
def test_regions_that_the_trainer_would_misread_are_refused(
    tmp_path: Path, kind: ForeignFormat, regions: LabelRegions, reason: str
) -> None:
    write_label_set(tmp_path / "labels", ["cat/a.JPEG", "cat/b.JPEG"], regions, 9)
    assert reason in refusal(lambda: export_labels(tmp_path / "labels", tmp_path / "out", kind, None))


def test_command_writes_a_store_that_the_other_command_reads(imported: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    done = relabel_here("export-labels", imported, tmp_path / "out", "--format=fkd")
    assert done.returncode == 0 and f"{tmp_path / 'out'}: labels of 12 images" in done.stdout
    again = ["import-labels", tmp_path / "out", "--labels", tmp_path / "again", "--images", IMAGES, "--num-classes=1000"]
    done = relabel_here(*again, "--workers=0")
    assert done.returncode == 0, done.stderr
    rows = torch.arange(12)
    here, there = (LabelStore.open(path, LabelRegions).read(rows) for path in (imported, tmp_path / "again"))
    assert torch.equal(here.flags, there.flags) and torch.equal(here.classes, there.classes)
    assert (here.dense(CLASSES).softmax(2) - there.dense(CLASSES).softmax(2)).abs().max() < 1e-3
    failed = relabel_here("export-labels", imported, tmp_path / "out", "--format=fkd")
    assert failed.returncode == 1 and "is not empty" in failed.stderr
