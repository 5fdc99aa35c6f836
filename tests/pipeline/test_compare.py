"""`relabel compare`: agreement and KL against values computed by hand."""

from pathlib import Path

import pytest
import torch

from pipeline.compare import compare
from relabel.labels.boxes import random_boxes
from relabel.labels.maps import LabelMaps
from relabel.runtime.errors import InputError
from tests.conftest import Relabel
from tests.label_sets import write_label_set

KEYS = ["cat/a.JPEG", "cat/b.JPEG", "dog/c.JPEG"]


def uniform_maps(best: list[int], logit: float) -> LabelMaps:
    """Maps with the same class and logit in every cell, so that every box pools to that logit."""
    classes = torch.tensor(best).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    return LabelMaps(torch.full(classes.shape, logit), classes, torch.zeros(len(best), 2, 3))


def kl(p: list[float], q: list[float]) -> float:
    a, b = torch.tensor(p, dtype=torch.float32).log_softmax(0), torch.tensor(q, dtype=torch.float32).log_softmax(0)
    return float((a.exp() * (a - b)).sum())


def test_agreement_and_kl_equal_those_computed_by_hand(tmp_path: Path) -> None:
    write_label_set(tmp_path / "a", KEYS, uniform_maps([0, 1, 2], 3.0), 3)
    write_label_set(tmp_path / "b", [*KEYS, "eel/d.JPEG"], uniform_maps([0, 2, 2, 1], 2.0), 3)
    found = compare(tmp_path / "a", tmp_path / "b")
    same_class, other_class = kl([3, 0, 0], [2, 0, 0]), kl([0, 3, 0], [0, 0, 2])
    assert (found.images, found.only_first, found.only_second) == (3, 0, 1)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.kl == pytest.approx((2 * same_class + other_class) / 3, rel=1e-4)
    (image, image_kl), (folder, folder_kl) = found.worst_images[0], found.worst_folders[0]
    assert image == "cat/b.JPEG" and image_kl == pytest.approx(other_class, rel=1e-4)
    assert folder == "cat" and folder_kl == pytest.approx((same_class + other_class) / 2, rel=1e-4)


def test_settings_that_differ_are_listed(tmp_path: Path) -> None:
    for name, tail in (("a", "mean"), ("b", "zero")):
        write_label_set(tmp_path / name, KEYS, uniform_maps([0, 1, 2], 3.0), 3, tail=tail)
    assert compare(tmp_path / "a", tmp_path / "b").different_settings == ["tail: 'mean', not 'zero'"]


def test_label_set_does_not_differ_from_itself(tmp_path: Path) -> None:
    write_label_set(tmp_path / "a", KEYS, uniform_maps([0, 1, 2], 3.0), 3)
    found = compare(tmp_path / "a", tmp_path / "a")
    assert (found.agreement, found.kl) == (1.0, 0.0)


def test_sets_that_cannot_be_compared_are_rejected(tmp_path: Path) -> None:
    write_label_set(tmp_path / "a", KEYS, uniform_maps([0, 1, 2], 3.0), 3)
    write_label_set(tmp_path / "classes", KEYS, uniform_maps([0, 1, 2], 3.0), 4)
    write_label_set(tmp_path / "images", ["x/y.JPEG"], uniform_maps([0], 3.0), 3)
    with pytest.raises(InputError, match=r"has 3 classes, .* has 4"):
        compare(tmp_path / "a", tmp_path / "classes")
    for name, classes in (("named", ("cat", "dog", "eel")), ("reordered", ("dog", "cat", "eel"))):
        write_label_set(tmp_path / name, KEYS, uniform_maps([0, 1, 2], 3.0), 3, classes=classes)
    assert compare(tmp_path / "a", tmp_path / "named").kl == 0  # what is not named cannot be named otherwise
    with pytest.raises(InputError, match="different class names or order: expected cat, found dog; expected dog, found cat"):
        compare(tmp_path / "named", tmp_path / "reordered")
    with pytest.raises(InputError, match="no image in common"):
        compare(tmp_path / "a", tmp_path / "images")


def test_command_lists_the_images_that_differ_most(tmp_path: Path, relabel_here: Relabel) -> None:
    write_label_set(tmp_path / "a", KEYS, uniform_maps([0, 1, 2], 3.0), 3)
    write_label_set(tmp_path / "b", KEYS, uniform_maps([0, 1, 0], 3.0), 3)
    done = relabel_here("compare", tmp_path / "a", tmp_path / "b")
    assert "the same for 66.7%" in done.stdout and "dog/c.JPEG" in done.stdout


def test_command_shows_class_names(tmp_path: Path, relabel_here: Relabel) -> None:
    keys = ["n01440764/a.JPEG", "n01440764/b.JPEG", "other/c.JPEG"]
    write_label_set(tmp_path / "a", keys, uniform_maps([0, 1, 2], 3.0), 3)
    write_label_set(tmp_path / "b", keys, uniform_maps([0, 2, 2], 3.0), 3)
    done = relabel_here("compare", tmp_path / "a", tmp_path / "b")
    assert "  n01440764/b.JPEG  tench (n01440764)\n" in done.stdout
    assert "  tench (n01440764)\n" in done.stdout.split("class folders that differ most")[1]
    (tmp_path / "names.txt").write_text("other something else\n")
    done = relabel_here("compare", tmp_path / "a", tmp_path / "b", "--class-names", tmp_path / "names.txt")
    assert "  something else (other)\n" in done.stdout and "tench" not in done.stdout


def test_random_boxes_lie_within_the_image_and_cover_eight_to_a_hundred_percent_of_it() -> None:
    boxes = random_boxes(5000, torch.Generator().manual_seed(0))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 1
    assert (width * height).min() > 0.079 and (width * height).max() <= 1
    assert (width * height).mean() == pytest.approx(0.53, abs=0.03)
    inner = (width < 0.99) & (height < 0.99)  # the others were clipped to the image
    assert (width / height)[inner].min() > 0.74 and (width / height)[inner].max() < 1.35


def test_maps_of_the_central_square_are_not_compared_with_maps_of_whole_images(tmp_path: Path) -> None:
    write_label_set(tmp_path / "a", KEYS, uniform_maps([0, 1, 2], 3.0), 3, window=0.875)
    write_label_set(tmp_path / "b", KEYS, uniform_maps([0, 1, 2], 3.0), 3)
    with pytest.raises(InputError, match=r"do not cover the same part of each image \(window 0\.875 and None"):
        compare(tmp_path / "a", tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "a").images == 3
