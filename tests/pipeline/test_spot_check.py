"""`relabel verify --spot-check`: annotating again finds what checksums cannot, and measures the fidelity of k and tail."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.spot_check import problems, spot_check
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import write_shard
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests.conftest import Relabel


@pytest.fixture
def labels(relabel_here: Relabel, image_folder: Path, tmp_path: Path, tiny_options: list[str]) -> Path:
    done = relabel_here("annotate", image_folder, "--labels", tmp_path / "labels", *tiny_options)
    assert done.returncode == 0, done.stderr
    return tmp_path / "labels"


def test_annotating_again_gives_the_stored_values(labels: Path, image_folder: Path, tiny_checkpoint: Path) -> None:
    check = spot_check(labels, image_folder, 100, tiny_checkpoint, "cpu")
    assert check.images == 9 and check.same_top1 > 0.99
    assert 0 < check.largest_difference < 0.001  # float16
    assert problems(check, Manifest.load(labels), labels) == []


def test_fidelity_is_exact_with_all_classes_and_falls_with_fewer(
    labels: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    fidelity = spot_check(labels, image_folder, 9, tiny_checkpoint, "cpu").fidelity
    assert {k for k, _ in fidelity} == {1, 2, 3}  # of three classes
    for tail in ("mean", "logmeanexp", "zero"):
        assert fidelity[3, tail] == pytest.approx(0, abs=1e-4)
        assert fidelity[1, tail] > 1e-3
    assert fidelity[2, "mean"] == pytest.approx(0, abs=1e-4)  # one class is left out, and the mean is its logit
    assert fidelity[2, "zero"] > 1e-3


def write_with_maps(labels: Path, store: LabelStore, maps: LabelMaps) -> Manifest:
    """Write a label set with the manifest of `store` but other maps, and return its manifest."""
    manifest = replace(store.manifest, shard_size=len(store), topk=maps.scores.shape[1])
    labels.mkdir()
    manifest.save(labels)
    append_shard_line(labels, write_shard(labels, 0, store.keys, maps, manifest))
    return manifest


def test_maps_of_other_images_are_found_although_every_checksum_is_right(
    labels: Path, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    store = LabelStore.open(labels)
    wrong = tmp_path / "wrong"
    manifest = write_with_maps(wrong, store, store.gather(store.rows(store.keys[::-1])))
    check = spot_check(wrong, image_folder, 9, tiny_checkpoint, "cpu")
    assert len(problems(check, manifest, wrong)) == 1


def wrong_tail(maps: LabelMaps) -> LabelMaps:
    return LabelMaps(maps.scores, maps.classes, torch.full_like(maps.tail, 50))


def only_second_best(maps: LabelMaps) -> LabelMaps:
    return LabelMaps(maps.scores[:, 1:], maps.classes[:, 1:], maps.tail)


@pytest.mark.parametrize("spoil", [wrong_tail, only_second_best])
def test_wrong_tails_and_ranks_are_found_and_fidelity_is_measured_on_the_stored_maps(
    labels: Path, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, spoil: Callable[[LabelMaps], LabelMaps]
) -> None:
    store = LabelStore.open(labels)
    wrong = tmp_path / "wrong"
    manifest = write_with_maps(wrong, store, spoil(store.gather(store.rows(store.keys))))
    check = spot_check(wrong, image_folder, 9, tiny_checkpoint, "cpu")
    assert len(problems(check, manifest, wrong)) == 1
    right = spot_check(labels, image_folder, 9, tiny_checkpoint, "cpu")
    assert check.fidelity[manifest.topk, "mean"] > 10 * right.fidelity[2, "mean"] + 0.01
    assert check.fidelity[3, "mean"] == right.fidelity[3, "mean"]


def test_nan_difference_is_a_finding(labels: Path, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    store = LabelStore.open(labels)
    maps = store.gather(store.rows(store.keys))
    maps.tail[4, 0, 0] = torch.nan
    manifest = write_with_maps(tmp_path / "wrong", store, maps)
    check = spot_check(tmp_path / "wrong", image_folder, 9, tiny_checkpoint, "cpu")
    assert len(problems(check, manifest, tmp_path / "wrong")) == 1


def test_checkpoint_must_be_the_recorded_one(
    labels: Path, image_folder: Path, tiny_checkpoint: Path, make_checkpoint: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"made with the checkpoint tiny-0\.pth; pass it as --checkpoint"):
        spot_check(labels, image_folder, 9, None, "cpu")
    with pytest.raises(InputError, match=r"tiny-1\.pth is not the checkpoint"):
        spot_check(labels, image_folder, 9, make_checkpoint(1), "cpu")
    renamed = tmp_path / "renamed.pth"
    shutil.copy(tiny_checkpoint, renamed)
    assert spot_check(labels, image_folder, 9, renamed, "cpu").images == 9  # the bytes matter, not the name


def test_verify_prints_the_fidelity_table_with_the_stored_choice_marked(
    relabel_here: Relabel, labels: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    options = ["--min-agreement", 0, "--spot-check", 4, "--checkpoint", tiny_checkpoint, "--device", "cpu"]
    done = relabel_here("verify", labels, "--images", image_folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    marked = [line for line in done.stdout.splitlines() if "*" in line and line.split()[0] == "2"]
    assert len(marked) == 1 and "4 images annotated again" in done.stdout


def test_spot_check_without_images_is_rejected_with_the_option_to_add(relabel_here: Relabel, labels: Path) -> None:
    done = relabel_here("verify", labels, "--spot-check", 4)
    assert done.returncode == 1 and "--images" in done.stderr
