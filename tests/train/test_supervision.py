"""Targets of a batch, by hand; and refusals where label set and images do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.images import ImageSet
from pipeline.shards import LabelMaps, LabelStore
from tests.label_sets import write_label_set
from train.crops import Crops
from train.recipe import load
from train.supervision import LabelMapTargets, loss_of, match_labels

KEYS = ("cat/a.JPEG", "cat/b.JPEG", "dog/c.JPEG")


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """1x2 cells, 3 classes, top-1, tail 0. Image a: class 0 left, 1 right; b: 2 twice; c: 1 left, 2 right; logits 4, 2."""
    scores = torch.tensor([4.0, 2.0]).view(1, 1, 1, 2).expand(3, 1, 1, 2)
    classes = torch.tensor([[0, 1], [2, 2], [1, 2]]).view(3, 1, 1, 2)
    write_label_set(tmp_path / "labels", KEYS, LabelMaps(scores, classes, torch.zeros(3, 1, 2)), num_classes=3)
    return LabelStore.open(tmp_path / "labels").to("cpu")


def images(classes: tuple[str, ...], keys: tuple[str, ...], targets: list[int]) -> ImageSet:
    """Images by name alone; none of them is read here."""
    return ImageSet("images", classes, keys, np.array(targets), np.array(keys), open=Path)


def batch(indices: list[int], boxes: list[list[float]]) -> Crops:
    return Crops(torch.empty(0), torch.tensor(boxes), torch.tensor(indices), torch.zeros(len(indices), dtype=torch.int64))


LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("target", "logits"),
    [
        ("localized-multi", [[4.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),  # the cell under the crop
        ("global-multi", [[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]]),  # the mean of both cells
    ],
)
def test_multi_targets_are_the_softmax_of_the_pooled_logits(
    store: LabelStore, target: str, logits: list[list[float]]
) -> None:
    targets = LabelMapTargets(store, torch.tensor([0, 1, 2]), load("relabel", [f"target={target}"]))
    torch.testing.assert_close(targets(batch([0, 2], [LEFT, RIGHT])), torch.tensor(logits).softmax(1))


@pytest.mark.parametrize(("target", "classes"), [("localized-single", [1, 2]), ("global-single", [0, 1])])
def test_single_targets_are_the_largest_class_of_the_pooled_logits(
    store: LabelStore, target: str, classes: list[int]
) -> None:
    targets = LabelMapTargets(store, torch.tensor([0, 1, 2]), load("relabel", [f"target={target}"]))
    assert targets(batch([0, 2], [RIGHT, RIGHT])).tolist() == classes


def test_images_in_another_order_find_their_own_maps(store: LabelStore) -> None:
    folder = images(("cat", "dog", "eel"), KEYS[::-1], [1, 0, 0])
    rows = match_labels(store, folder)
    assert rows.tolist() == [2, 1, 0]
    targets = LabelMapTargets(store, rows, load("relabel", ["target=global-single"]))
    assert targets(batch([1], [LEFT])).tolist() == [2]  # image 1 of this folder is b


def test_images_without_a_map_are_counted_and_named(store: LabelStore) -> None:
    folder = images(("cat", "dog", "eel"), (*KEYS, "eel/x.JPEG", "eel/y.JPEG"), [0, 0, 1, 2, 2])
    with pytest.raises(InputError, match=r"2 of 5 images .* have no label map .*first: eel/x\.JPEG, eel/y\.JPEG"):
        match_labels(store, folder)


def test_label_set_of_another_class_count_is_refused(store: LabelStore) -> None:
    with pytest.raises(InputError, match=r"maps of 3 classes, the images have 2"):
        match_labels(store, images(("cat", "dog"), KEYS, [0, 0, 1]))


def test_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    softmax = load("single")
    by_hand = -(probabilities * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss_of(logits, probabilities, softmax), by_hand)
    torch.testing.assert_close(loss_of(logits, torch.tensor([1, 2]), softmax), -logits.log_softmax(1)[[0, 1], [1, 2]].mean())

    sigmoid = load("single", ["loss=bce"])
    each = -(probabilities * F.logsigmoid(logits) + (1 - probabilities) * F.logsigmoid(-logits))
    torch.testing.assert_close(loss_of(logits, probabilities, sigmoid), each.sum(1).mean())
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(loss_of(logits, torch.tensor([1, 2]), sigmoid), loss_of(logits, one_hot, sigmoid))
