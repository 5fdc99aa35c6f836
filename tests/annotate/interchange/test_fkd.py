"""FKD's files give the boxes and targets that FKD's own reader gives, in every form that FKD writes; others are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotate.interchange.allow_list import read_plain
from annotate.interchange.fkd import FKDStore, fkd_file
from relabel.images.sources import find_images
from relabel.runtime.defaults import RegionTarget
from tests.annotate.interchange.crop_samples import (
    CLASSES,
    SAMPLES,
    assert_as_their_reader,
    copy_of,
    read_all,
    sample_images,
    sizes,
    targets_of,
)
from tests.conftest import refusal

FIRST = "images/train/2/2_10026.tar"  # of 97 x 131 pixels


def store_of(source: Path, num_classes: int = CLASSES, target: RegionTarget = "spread") -> FKDStore:
    return FKDStore(source, sample_images(), num_classes, target)


def rewrite(source: Path, change: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]) -> Path:
    """Save every file again with what `change` makes of its coords, flips and labels."""
    for path in source.rglob("*.tar"):
        torch.save(change(*(entry.array.copy() for entry in read_plain(path))), path)
    return source


def test_targets_and_boxes_are_those_of_fkds_own_reader() -> None:
    assert_as_their_reader(store_of(SAMPLES / "FKD"), "FKD")
    assert_as_their_reader(store_of(SAMPLES / "FKD", target="renormalised"), "FKD", "targets_renorm")


@pytest.mark.parametrize("root", ["", "images", "images/train"])
def test_store_is_found_at_any_depth(root: str) -> None:
    assert store_of(SAMPLES / "FKD" / root).root == SAMPLES / "FKD" / "images" / "train"


@pytest.mark.parametrize(
    "change",
    [
        lambda coords, flips, labels: [torch.from_numpy(a) for a in (coords, flips, labels)],
        lambda coords, flips, labels: (coords, flips, labels.astype(np.float16)),
        lambda coords, flips, labels: [torch.from_numpy(coords).half(), flips, torch.from_numpy(labels).half()],
        lambda coords, flips, labels: [np.concatenate([coords, coords]), np.concatenate([flips, flips]), labels],
        lambda coords, flips, labels: [coords, flips, labels[:, :, ::-1]],  # not sorted
    ],
)
def test_torch_tensors_float16_surplus_crops_and_any_order_are_read_alike(
    tmp_path: Path, change: Callable[..., Any]
) -> None:
    assert_as_their_reader(store_of(rewrite(copy_of("FKD", tmp_path), change)), "FKD")


def test_single_probability_spreads_its_rest_and_a_plain_class_is_one_hot(tmp_path: Path) -> None:
    one = store_of(rewrite(copy_of("FKD", tmp_path), lambda coords, flips, labels: [coords, flips, labels[:, :, 0]]), 21_000)
    (p,), (c,) = read_all(one)[4].probs[3], read_all(one)[4].classes[3]
    target = targets_of(read_all(one), 8, 21_000)[4, 3]
    assert target[c] == pytest.approx(p, abs=1e-3) and target[c - 1] == pytest.approx((1 - p) / 20_999, rel=4e-3)
    rewrite(tmp_path / "FKD", lambda coords, flips, labels: [coords, flips, labels[:, 0].astype(np.int64)])
    target = targets_of(read_all(store_of(tmp_path / "FKD")), 8)[4, 3]
    assert target[c] == 1 and target.sum() == 1


def test_probabilities_that_rounding_makes_sum_to_more_than_1_leave_nothing_to_the_rest(tmp_path: Path) -> None:
    labels = np.array([[[7, 3], [0.75, 0.2505]]] * 8, np.float32)
    found = read_all(store_of(rewrite(copy_of("FKD", tmp_path), lambda coords, flips, _: [coords, flips, labels])))
    assert targets_of(found, 8)[0, 0, [7, 3, 0]] == pytest.approx([0.75 / 1.0005, 0.2505 / 1.0005, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, f, t: [c, f, t * [[[1], [4]]]], "expected probabilities that sum to at most 1"),
        (lambda c, f, t: [c, f, -t], "it has class -"),
        (lambda c, f, t: [c, f, t + np.array([[1000], [0]])], "--num-classes is 1000; check --num-classes"),
        (lambda c, f, t: [c, f, t * [[[0], [1]]]], "a region has a class twice"),
        (lambda c, f, t: [c, f, t * np.nan], "its labels are not finite numbers"),
        (lambda c, f, t: [c, f, t * [[[1], [0]]]], "all probabilities of a region are 0"),
        (lambda c, f, t: [c + 0.5, f, t], "is not inside the image of 97 x 131 pixels"),
        (lambda c, f, t: [c * np.nan, f, t], "is not inside the image of 97 x 131 pixels"),
        (lambda c, f, t: [c[:7], f, t], "coords [7, 4] and flips [8] for 8 labels"),
        (lambda c, f, t: [c, t], "expected FKD's list of three arrays"),
        (lambda c, f, t: {"a": 1}, "holds dict"),
        (lambda c, f, t: [c, f, t.transpose(0, 2, 1)], "labels float32[8, 5, 2]"),
    ],
)
def test_record_that_cannot_be_right_is_refused_by_name(tmp_path: Path, change: Callable[..., Any], reason: str) -> None:
    source = rewrite(copy_of("FKD", tmp_path), change)
    message = refusal(lambda: read_all(store_of(source)))
    assert reason in message and f"{source / FIRST}" in message


def test_float16_classes_of_large_sets_are_refused(tmp_path: Path) -> None:
    source = rewrite(copy_of("FKD", tmp_path), lambda c, f, t: [c, f, t.astype(np.float16)])
    assert "float16, which is exact only up to 2048" in refusal(lambda: store_of(source, 2050))
    store_of(source, 2049)


def test_missing_and_surplus_files_are_counted(tmp_path: Path) -> None:
    source = copy_of("FKD", tmp_path)
    (source / FIRST).rename(source / "images/train/2/2_7.tar")
    message = refusal(lambda: store_of(source))
    assert "1 of the 12 images have no labels there (first: 2/2_10026.tar); 1 labels there have no image" in message
    assert "has no 2/2_10026.tar, at any depth" in refusal(lambda: store_of(SAMPLES / "TinyViT"))
    assert "is not a folder" in refusal(lambda: store_of(source / "nowhere"))


def test_images_whose_names_differ_after_the_first_dot_are_refused(tmp_path: Path) -> None:
    for name in ("dog.a.JPEG", "dog.b.JPEG"):
        (tmp_path / "dog").mkdir(exist_ok=True)
        (tmp_path / "dog" / name).touch()
    message = refusal(lambda: FKDStore(SAMPLES / "FKD", find_images(tmp_path), CLASSES))
    assert "dog/dog.a.JPEG and dog/dog.b.JPEG would both have the labels dog/dog.tar" in message


def test_written_files_have_the_boxes_and_targets_of_the_samples(tmp_path: Path) -> None:
    found = read_all(store_of(SAMPLES / "FKD"))
    for key, image, size in zip(sample_images().keys, found, sizes(), strict=True):
        path = (tmp_path / "imagenet" / "train" / key).with_suffix(".tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fkd_file(image.boxes / (*size, *size), image.flags > 0, image.classes, image.probs))
        assert len(torch.load(path, weights_only=True)) == 3
    assert_as_their_reader(store_of(tmp_path), "FKD")
