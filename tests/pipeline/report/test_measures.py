"""The numbers of a report against slow loops and hand sums, and the choice of its images."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.report.choice import List, choose, confused_pairs, lists_of
from pipeline.report.measures import Measures, difference, measure
from pipeline.report.summary import agreement, table_of_classes, table_of_pairs
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from tests.label_sets import write_label_set
from tests.pipeline.report.report_sets import random_maps, random_regions

CLASSES = ("ant", "bee", "cat")


def uniform_map(cells: list[list[int]], logit: float) -> LabelMaps:
    """One map: the class of every cell, all with the same logit."""
    classes = torch.tensor([[cells]])
    return LabelMaps(torch.full(classes.shape, logit), classes, torch.zeros(1, *classes.shape[2:]))


def measured(folder: Path, maps: LabelMaps, given: list[int]) -> Measures:
    keys = [f"x/{number}.JPEG" for number in range(len(given))]
    write_label_set(folder, keys, maps, len(CLASSES), shard_size=2)
    return measure(LabelStore.open(folder), np.arange(len(given)), np.array(given))


def test_numbers_of_an_image_are_those_of_a_hand_sum(tmp_path: Path) -> None:
    found = measured(tmp_path / "labels", uniform_map([[0, 0, 0, 2], [0, 0, 2, 2]], 4.0), [2])
    ant, cat, bee = 4 * 5 / 8, 4 * 3 / 8, 0.0  # a map of this size is pooled over the whole image with equal weights
    total = sum(map(math.exp, (ant, bee, cat)))
    probs = [math.exp(logit) / total for logit in (ant, bee, cat)]
    assert found.top1.tolist() == [0]
    assert found.label_prob[0] == pytest.approx(probs[2], abs=1e-5)
    assert found.margin[0] == pytest.approx(probs[2] - probs[0], abs=1e-5)
    assert found.entropy[0] == pytest.approx(-sum(p * math.log(p) for p in probs), abs=1e-5)
    assert found.area[0] == pytest.approx(3 / 8) and found.shown.tolist() == [2]
    assert found.label_score[0] == pytest.approx(math.exp(4) / (math.exp(4) + 2), abs=1e-5)


def test_area_and_classes_equal_a_slow_loop_over_cells(tmp_path: Path) -> None:
    maps = random_maps(7, 3, 2, (3, 5))
    given = [0, 1, 2, 0, 1, 2, 2]
    found = measured(tmp_path / "labels", maps, given)
    for number, label in enumerate(given):
        cells = maps.dense(3)[number].argmax(0).flatten().tolist()
        assert found.area[number] == pytest.approx(cells.count(label) / 15)
        assert found.shown[number] == len(set(cells))


def test_absent_regions_have_no_part_in_the_shares(tmp_path: Path) -> None:
    regions = random_regions(2, 3, 2, 4)
    regions.count[1] = 1
    tops = regions.classes[:, :, 0].tolist()
    write_label_set(tmp_path / "labels", ["x/0.JPEG", "x/1.JPEG"], regions, 3)
    found = measure(LabelStore.open(tmp_path / "labels"), np.arange(2), np.array([tops[0][0], tops[1][0]]))
    assert found.area.tolist() == [tops[0].count(tops[0][0]) / 4, 1.0]


def test_difference_is_half_the_sum_of_the_differences_of_probabilities(tmp_path: Path) -> None:
    for name, cells in (("a", [[0, 0]]), ("b", [[1, 1]])):
        write_label_set(tmp_path / name, ["x/0.JPEG"], uniform_map(cells, 3.0), 3)
    stores = [LabelStore.open(tmp_path / name) for name in "ab"]
    one, rest = math.exp(3) / (math.exp(3) + 2), 1 / (math.exp(3) + 2)
    [found] = difference(stores[0], stores[1], np.array([0]), np.array([0])).tolist()
    assert found == pytest.approx(one - rest, abs=1e-5)


def by_hand(area: list[float], given: list[int], suggestion: list[int]) -> Measures:
    """Images of which only these three matter; the probability of the label rises from the first to the last."""
    zeros, rising = np.zeros(len(given), np.float32), np.linspace(0, 1, len(given), dtype=np.float32)
    labels, others = np.array(given, np.int32), np.array(suggestion, np.int32)
    return Measures(
        labels, others, rising, rising, zeros, np.array(area), np.ones_like(labels), rising, others, np.ones_like(rising)
    )


def test_tables_count_classes_and_pairs() -> None:
    measures = by_hand(area=[0, 0, 0, 0.5, 0], given=[0, 0, 0, 0, 2], suggestion=[1, 2, 1, 1, 0])
    pairs = confused_pairs(measures)
    assert [(given, other, numbers.tolist()) for given, other, numbers in pairs] == [
        (0, 1, [0, 2]),
        (0, 2, [1]),
        (2, 0, [4]),
    ]
    rows, count = table_of_classes(measures, pairs, 3)
    assert count == 2 and {(row.number, row.images, row.nowhere, row.confused) for row in rows} == {
        (0, 4, 3, (1, 2)),
        (2, 1, 1, (0, 1)),
    }
    first = table_of_pairs(measures, pairs)[0]
    assert (first.given, first.suggestion, first.images, first.share) == (0, 1, 2, 0.5)
    counts = {count.name: count.count for count in agreement(measures, "cells")}
    assert counts["the ground-truth label is nowhere"] == 4 and counts["the ground-truth label is somewhere"] == 1


def test_worst_images_come_first_and_random_ones_are_an_even_sample() -> None:
    area = [0.0, 0.3] * 500
    lists = {entry.name: entry for entry in lists_of(by_hand(area, [0] * 1000, [1] * 1000), [])}
    assert lists["worst"].total == 500 and lists["worst"].candidates[:3].tolist() == [0, 2, 4]
    assert sorted(lists["random"].candidates.tolist()) == list(range(1000))
    assert sum(entry.share for entry in lists.values()) == pytest.approx(1)
    of_two = lists_of(by_hand(area, [0] * 1000, [1] * 1000), [], difference=np.linspace(0, 1, 1000))
    assert of_two[0].name == "different" and of_two[0].candidates[0] == 999


def test_lists_get_their_shares_of_the_room() -> None:
    lists = [
        List("a", "", "", 0.75, 60, np.arange(60)),
        List("b", "", "", 0.25, 60, np.arange(59, -1, -1)),
        List("group", "", "", 1e-9, 3, np.array([59, 30, 0]), ranked=False),
    ]
    admitted: list[int] = []

    def admit(number: int) -> bool:
        if len(admitted) == 20:
            return False
        admitted.append(number)
        return True

    shown = choose(lists, admit)
    assert len(set(admitted)) == 20
    assert shown["a"] == list(range(14)) and shown["b"] == list(range(59, 54, -1))
    assert shown["group"] == [59, 30, 0], "in its own order, whichever list they were chosen from"


def test_images_that_several_lists_want_are_taken_once() -> None:
    lists = [List("a", "", "", 0.5, 4, np.array([3, 1, 2, 0])), List("b", "", "", 0.5, 2, np.array([3, 2]))]
    admitted: list[int] = []

    def admit(number: int) -> bool:
        admitted.append(number)
        return True

    shown = choose(lists, admit)
    assert sorted(admitted) == [0, 1, 2, 3] and shown == {"a": [3, 1, 2, 0], "b": [3, 2]}
