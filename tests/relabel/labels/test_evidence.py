"""Evidence for and against a label: the sparse arithmetic equals a loop over dense maps, and sums done by hand.

Shapes: B images, C classes, k classes stored per place, H rows and W columns of a map, N regions of an image.
"""

import math

import pytest
import torch
from torch import Tensor

from relabel.labels.evidence import Evidence, evidence
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions

CLASSES = 7


def random_logits(k: int, *places: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, *places, k), largest first, with their classes, and tails (B, *places) below them."""
    generator = torch.Generator().manual_seed(k)
    scores, classes = (3 * torch.randn(*places, CLASSES, generator=generator)).topk(k)
    tail = scores[..., -1] - torch.rand(places, generator=generator)
    return scores, classes, tail


def random_maps(k: int) -> LabelMaps:
    scores, classes, tail = random_logits(k, 11, 3, 5)
    return LabelMaps(scores.movedim(3, 1), classes.movedim(3, 1), tail if k < CLASSES else torch.zeros_like(tail))


def random_regions(k: int) -> LabelRegions:
    """Of 11 images, with 4 regions at most and 0, 1, 2, ... of them in use; the others would win if they counted."""
    scores, classes, tail = random_logits(k, 11, 4)
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat(
        [torch.rand(11, 4, 2, generator=generator) / 2, torch.rand(11, 4, 2, generator=generator) / 2 + 0.5], 2
    )
    count = torch.arange(11) % 5
    unused = torch.arange(4) >= count.unsqueeze(1)
    scores[unused] = torch.tensor([90.0] + [0.0] * (k - 1))
    return LabelRegions(boxes, torch.zeros(11, 4, dtype=torch.uint8), scores, classes, tail, count)


def slow_evidence(dense: Tensor, boxes: Tensor, given: int) -> tuple[float, Tensor, int, float, Tensor]:
    """Of one image, from the logits (P, C) of its places, one place and class at a time."""
    label_score, suggestion_score = -1.0, -1.0
    for logits, box in zip(dense.double().tolist(), boxes, strict=True):
        total = sum(math.exp(logit) for logit in logits)
        for number, logit in enumerate(logits):
            probability = math.exp(logit) / total
            if number == given and probability > label_score:
                label_score, label_box = probability, box
            if probability > suggestion_score:
                suggestion, suggestion_score, suggestion_box = number, probability, box
    return label_score, label_box, suggestion, suggestion_score, suggestion_box


def assert_same(found: Evidence, image: int, expected: tuple[float, Tensor, int, float, Tensor]) -> None:
    label_score, label_box, suggestion, suggestion_score, suggestion_box = expected
    assert found.label_score[image].item() == pytest.approx(label_score, rel=1e-5)
    torch.testing.assert_close(found.label_box[image], label_box)
    assert found.suggestion[image].item() == suggestion
    assert found.suggestion_score[image].item() == pytest.approx(suggestion_score, rel=1e-5)
    torch.testing.assert_close(found.suggestion_box[image], suggestion_box)


@pytest.mark.parametrize("k", [1, 3, CLASSES])
def test_evidence_of_maps_equals_a_loop_over_the_dense_maps(k: int) -> None:
    maps, given = random_maps(k), torch.arange(11) % CLASSES
    found = evidence(maps, given, CLASSES)
    cells = [[c / 5, r / 3, (c + 1) / 5, (r + 1) / 3] for r in range(3) for c in range(5)]
    for image in range(11):
        dense = maps.dense(CLASSES)[image].flatten(1).T  # (P, C)
        assert_same(found, image, slow_evidence(dense, torch.tensor(cells), int(given[image])))


@pytest.mark.parametrize("k", [1, 3, CLASSES])
def test_evidence_of_regions_equals_a_loop_over_those_in_use(k: int) -> None:
    regions, given = random_regions(k), torch.arange(11) % CLASSES
    found = evidence(regions, given, CLASSES)
    assert not regions.count[0]
    for image in range(11):
        count = int(regions.count[image])
        if count:
            dense = regions.dense(CLASSES)[image, :count]
            assert_same(found, image, slow_evidence(dense, regions.boxes[image, :count], int(given[image])))


def test_an_image_without_regions_has_no_scores_and_no_suggestion() -> None:
    found = evidence(random_regions(3), torch.zeros(11, dtype=torch.int64), CLASSES)
    nothing = torch.tensor([True, False, False, False, False, True, False, False, False, False, True])
    assert torch.equal(found.label_score.isnan(), nothing)
    assert torch.equal(found.suggestion_score.isnan(), nothing)
    assert torch.equal(found.label_box.isnan().all(1), nothing)
    assert torch.equal(found.suggestion_box.isnan().any(1), nothing)
    assert torch.equal(found.suggestion == -1, nothing)


def test_a_label_in_no_cell_has_the_largest_probability_of_a_tail() -> None:
    # One row of two cells, 5 classes, 2 stored: totals 8 + 3 + 3 * 1 = 14 and 4 + 2 + 3 * 2 = 12
    scores = torch.tensor([[8.0, 4.0], [3.0, 2.0]]).log().view(1, 2, 1, 2)
    maps = LabelMaps(scores, torch.tensor([[0, 3], [1, 0]]).view(1, 2, 1, 2), torch.tensor([1.0, 2.0]).log().view(1, 1, 2))
    found = evidence(maps, torch.tensor([4]), 5)
    assert found.label_score.item() == pytest.approx(2 / 12)
    assert found.label_box.tolist() == [[0.5, 0, 1, 1]]
    assert found.suggestion.tolist() == [0]
    assert found.suggestion_score.item() == pytest.approx(8 / 14)
    assert found.suggestion_box.tolist() == [[0, 0, 0.5, 1]]


def test_a_small_object_is_evidence_though_the_whole_image_is_of_another_class() -> None:
    # 2 x 3 cells of two classes; only the last cell is of class 1, by 9 to 1
    scores = torch.tensor([9.0, 1.0]).log().view(1, 2, 1, 1).expand(1, 2, 2, 3).contiguous()
    classes = torch.tensor([0, 1]).view(1, 2, 1, 1).repeat(1, 1, 2, 3)
    classes[0, :, 1, 2] = torch.tensor([1, 0])
    found = evidence(LabelMaps(scores, classes, torch.zeros(1, 2, 3)), torch.tensor([1]), 2)
    assert found.label_score.item() == pytest.approx(0.9)
    torch.testing.assert_close(found.label_box, torch.tensor([[2 / 3, 1 / 2, 1, 1]]))


def test_the_types_of_a_shard_give_the_same() -> None:
    maps, given = random_maps(3), torch.arange(11) % CLASSES
    stored = maps.as_stored(CLASSES)
    as_floats = LabelMaps(stored.scores.float(), stored.classes.long(), stored.tail.float())
    for a, b in zip(
        vars(evidence(stored, given, CLASSES)).values(), vars(evidence(as_floats, given, CLASSES)).values(), strict=True
    ):
        assert torch.equal(a, b)


def test_very_small_and_large_logits_overflow_nothing() -> None:
    scores = torch.tensor([60000.0, -60000.0]).view(2, 1, 1, 1).repeat(1, 2, 1, 1)
    classes = torch.tensor([0, 1]).view(1, 2, 1, 1).repeat(2, 1, 1, 1)
    found = evidence(LabelMaps(scores, classes, torch.zeros(2, 1, 1)), torch.tensor([1, 1]), 2)
    assert found.label_score.tolist() == pytest.approx([0.5, 0.5])
