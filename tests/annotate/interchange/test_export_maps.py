"""Export to one .pt file per image: what is written, and that an untrusted label set cannot write outside its folder."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.ops import roi_align

from annotate.interchange.export_maps import export_maps
from relabel.labels.boxes import random_boxes
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.runtime.errors import InputError
from tests.label_sets import write_label_set


@pytest.mark.parametrize("key", ["../outside.JPEG", "cat/../../outside.JPEG", "/tmp/relabel-outside.JPEG", "", ".", "cat/."])
def test_key_that_points_outside_the_folder_is_rejected_before_anything_is_written(tmp_path: Path, key: str) -> None:
    maps = LabelMaps(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2, dtype=torch.int32), torch.zeros(2, 2, 2))
    write_label_set(tmp_path / "labels", ["aaa/first.JPEG", key], maps, 3)
    with pytest.raises(InputError, match="is not a path inside a folder; do not trust this label set"):
        export_maps(tmp_path / "labels", tmp_path / "home" / "exported")
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("*.pt"))


def test_images_that_differ_only_in_their_extensions_do_not_overwrite_each_other(tmp_path: Path) -> None:
    maps = LabelMaps(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3, dtype=torch.int32), torch.zeros(2, 2, 3))
    write_label_set(tmp_path / "labels", ["cat/a.JPEG", "cat/a.png"], maps, num_classes=3)
    with pytest.raises(InputError, match=r"cat/a\.JPEG and cat/a\.png would both be written to cat/a\.pt"):
        export_maps(tmp_path / "labels", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_stopped_by_a_full_disk_leaves_no_folder_and_a_rerun_writes_it(
    tmp_path: Path, file_size_limit: Callable[[int], contextlib.AbstractContextManager[None]]
) -> None:
    maps = LabelMaps(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3, dtype=torch.int32), torch.zeros(2, 2, 3))
    write_label_set(tmp_path / "labels", ["cat/a.JPEG", "dog/b.JPEG"], maps, num_classes=3)
    with file_size_limit(500), pytest.raises(InputError, match=f"cannot write {tmp_path / 'out'}: .*File too large"):
        export_maps(tmp_path / "labels", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    (tmp_path / ".out.tmp" / "cat").mkdir(parents=True)  # left by a killed export
    (tmp_path / ".out.tmp" / "cat" / "torn.pt").touch()
    assert export_maps(tmp_path / "labels", tmp_path / "out") == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == ["a.pt", "b.pt"]


def test_reference_code_pools_transposed_maps_as_we_pool_ours(tmp_path: Path) -> None:
    """Its arithmetic (utils/relabel_functions.py): a dense map, and a crop's top, left, bottom, right as x0, y0, x1, y1."""
    generator = torch.Generator().manual_seed(0)
    scores, classes = torch.randn(1, 7, 8, 8, generator=generator).topk(3, dim=1)
    maps = LabelMaps(scores, classes, torch.zeros(1, 8, 8))
    write_label_set(tmp_path / "labels", ["cat/a.JPEG"], maps, num_classes=7)
    export_maps(tmp_path / "labels", tmp_path / "out", axes="xy")
    stored = torch.load(tmp_path / "out" / "cat" / "a.pt", weights_only=True)
    dense = torch.zeros(1, 7, 8, 8).scatter_(1, stored[1].long().unsqueeze(0), stored[0].unsqueeze(0))
    boxes = random_boxes(40, generator)
    x0, y0, x1, y1 = boxes.unbind(1)
    theirs = roi_align(dense, [torch.stack([y0, x0, y1, x1], 1) * 8 - 0.5], (1, 1)).flatten(1)
    stored_maps = LabelMaps(scores.half().expand(40, -1, -1, -1), classes.expand(40, -1, -1, -1), torch.zeros(40, 8, 8))
    ours = label_pool(stored_maps, boxes, 7)
    large = (torch.stack([x1 - x0, y1 - y0]) * 8 > 1).all(0)  # unless aligned, roi_align enlarges smaller ones to a cell
    assert large.sum() > 20
    torch.testing.assert_close(theirs[large], ours[large], atol=1e-4, rtol=1e-4)
