"""The k largest logits of every cell and one value for the others, compared with hand sums and a slow loop."""

import math

import numpy as np
import pytest
import torch

from annotate.sparsify import sparsify
from relabel.runtime.defaults import Tail

CELL = torch.tensor([1.0, 5.0, 3.0, -2.0, 0.5]).view(1, 5, 1, 1)


def test_scores_are_the_largest_logits_in_order_with_their_classes() -> None:
    maps = sparsify(CELL, 3, "mean")
    assert maps.scores.flatten().tolist() == [5.0, 3.0, 1.0]
    assert maps.classes.flatten().tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("mean", (1 - 2 + 0.5) / 3),
        ("logmeanexp", math.log((math.exp(1) + math.exp(-2) + math.exp(0.5)) / 3)),
        ("zero", 0.0),
    ],
)
def test_tail_matches_a_hand_sum_over_the_logits_left_out(tail: Tail, expected: float) -> None:
    assert sparsify(CELL, 2, tail).tail.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tail", ["mean", "logmeanexp", "zero"])
def test_every_cell_is_sparsified_independently(tail: Tail) -> None:
    logits = 4 * torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0)) - 3
    maps = sparsify(logits, 3, tail)
    assert maps.scores.shape == maps.classes.shape == (2, 3, 3, 5) and maps.tail.shape == (2, 3, 5)
    for image, row, column in np.ndindex(2, 3, 5):
        values = logits[image, :, row, column].tolist()
        order = sorted(range(7), key=lambda c: -values[c])
        rest = [values[c] for c in order[3:]]
        expected = {"mean": sum(rest) / 4, "logmeanexp": math.log(sum(map(math.exp, rest)) / 4), "zero": 0.0}[tail]
        assert maps.classes[image, :, row, column].tolist() == order[:3]
        assert maps.scores[image, :, row, column].tolist() == [values[c] for c in order[:3]]
        assert maps.tail[image, row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tail", ["mean", "logmeanexp", "zero"])
def test_with_all_classes_stored_the_dense_map_equals_the_logits_exactly(tail: Tail) -> None:
    logits = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    maps = sparsify(logits, 6, tail)
    assert torch.equal(maps.dense(6), logits)
    assert torch.equal(maps.tail, torch.zeros(2, 3, 5))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_mean_tail_keeps_the_sum_of_every_cells_logits(k: int) -> None:
    logits = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0)) - 7
    assert torch.allclose(sparsify(logits, k, "mean").dense(6).sum(1), logits.sum(1), atol=1e-4)


def test_logmeanexp_tail_keeps_the_softmax_denominator_of_every_cell() -> None:
    logits = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0)) - 7
    assert torch.allclose(sparsify(logits, 2, "logmeanexp").dense(6).logsumexp(1), logits.logsumexp(1), atol=1e-5)


def test_logits_of_a_bfloat16_forward_pass_are_summed_in_float32() -> None:
    logits = torch.full((1, 1001, 1, 1), -0.4, dtype=torch.bfloat16)
    logits[0, 3] = 9
    maps = sparsify(logits, 1, "mean")
    assert maps.scores.dtype == maps.tail.dtype == torch.float32
    assert maps.tail.item() == pytest.approx(float(torch.tensor(-0.4, dtype=torch.bfloat16)), abs=1e-4)
