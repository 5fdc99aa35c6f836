"""Exporting a label set that is not to be trusted writes nothing outside of its folder."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.export_maps import export_maps
from pipeline.shards import LabelMaps
from tests.label_sets import write_label_set


@pytest.mark.parametrize("key", ["../outside.JPEG", "cat/../../outside.JPEG", "/tmp/relabel-outside.JPEG"])
def test_key_that_leads_out_of_the_folder_is_refused_before_anything_is_written(tmp_path: Path, key: str) -> None:
    maps = LabelMaps(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2, dtype=torch.int32), torch.zeros(2, 2, 2))
    write_label_set(tmp_path / "labels", ["aaa/first.JPEG", key], maps, 3)
    with pytest.raises(InputError, match="is no path within a folder; such a set is not to be trusted"):
        export_maps(tmp_path / "labels", tmp_path / "home" / "exported")
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("*.pt"))


def test_images_that_differ_in_their_endings_alone_are_not_written_over_one_another(tmp_path: Path) -> None:
    maps = LabelMaps(torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3, dtype=torch.int32), torch.zeros(2, 2, 3))
    write_label_set(tmp_path / "labels", ["cat/a.JPEG", "cat/a.png"], maps, num_classes=3)
    with pytest.raises(InputError, match=r"cat/a\.JPEG and cat/a\.png would both be cat/a\.pt"):
        export_maps(tmp_path / "labels", tmp_path / "out")
    assert not (tmp_path / "out").exists()
