"""Measures against sums by hand, slow loops, scikit-learn and timm's ReaL class."""

import json
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from timm.data import RealLabelsImagenet

from relabel.images.classes import imagenet_classes
from relabel.images.image_set import ImageSet
from tests.label_sets import named_images
from train.evaluation.measures import (
    Measure,
    average_precision,
    class_accuracies,
    mean_average_precision,
    multilabel_accuracy,
    top_k,
)
from train.evaluation.multilabels import MultiLabels, read_multilabels, real_labels


def validation_folder(count: int) -> ImageSet:
    """The listing of ImageNet's validation set, spread over its classes; the files need not be there."""
    classes = imagenet_classes()
    keys = [f"{classes[i % 1000]}/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(count)]
    return named_images(classes, tuple(keys), [i % 1000 for i in range(count)])


def test_top_k_equals_a_count_by_hand() -> None:
    best = torch.tensor([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
    targets = torch.tensor([2, 2, 2])
    assert top_k(best, targets, 1).values.tolist() == [100, 0, 0]
    assert top_k(best, targets, 2).values.tolist() == [100, 100, 0]
    assert top_k(best, targets, 2).mean() == pytest.approx(200 / 3)


@pytest.mark.slow
def test_real_accuracy_equals_timms_on_random_predictions() -> None:
    folder = validation_folder(50_000)
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(50_000, 1000, generator=generator)
    names = [Path(key).name for key in folder.keys]
    labels = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json") or b"")
    for i in range(0, 50_000, 2):  # else one in a thousand would be right
        if labels[i]:
            logits[i, labels[i][-1]] = 2
    theirs = RealLabelsImagenet(names, topk=(1,))
    theirs.add_result(logits)
    multilabels = real_labels(folder)
    assert multilabels is not None
    measure = multilabel_accuracy(logits.topk(5).indices, multilabels, torch.from_numpy(folder.targets))
    assert measure.mean() == pytest.approx(theirs.get_accuracy(1))
    assert measure.valid.sum() == len(theirs.is_correct[1]) == 46_837
    assert 45 < measure.mean() < 55


def test_images_without_a_real_label_do_not_count_and_other_folders_have_no_real_labels() -> None:
    folder = validation_folder(3)  # ReaL gives the first of them no label
    multilabels = real_labels(folder)
    assert multilabels is not None and multilabels.valid.tolist() == [False, True, True]
    assert multilabels.classes[1].nonzero().flatten().tolist() == [795, 970]
    best = torch.tensor([[3], [970], [4]])
    measure = multilabel_accuracy(best, multilabels, torch.zeros(3).long())
    assert np.isnan(measure.values[0]) and measure.values[1:].tolist() == [100, 0]
    digits = named_images(("0", "1"), folder.keys, [0, 1, 0])
    assert real_labels(digits) is None
    renamed = named_images(folder.classes, tuple(k.replace("ILSVRC2012_val", "mine") for k in folder.keys), [0, 1, 2])
    assert real_labels(renamed) is None


def shankar_file(path: Path, keys: Sequence[str]) -> Path:
    """Annotations by hand of the first six of `keys`, two of them problematic, one of them without a right class."""
    c = imagenet_classes()
    names = [Path(key).name for key in keys]
    annotations = {
        names[0]: {"correct": [c[0], c[5]], "wrong": [c[7]], "unclear": []},
        names[1]: {"correct": [c[1]], "unclear": [c[9]]},
        names[2]: {"correct": [c[0]], "wrong": [c[1]]},
        names[3]: {"wrong": [c[1]]},
        names[4]: {"correct": [c[0]]},
        names[5]: {"correct": [c[1]]},
        "n01440764/of_imagenetv2.jpeg": {"correct": [c[0]]},
    }
    problematic = {names[4]: "drawing", names[5]: "original label incorrect"}
    path.write_text(json.dumps({"initial_annots": annotations, "problematic_images": problematic}))
    return path


def test_shankar_accuracy_is_the_mean_over_classes_with_unclear_as_right(tmp_path: Path) -> None:
    classes = imagenet_classes()
    keys = tuple(f"{classes[t]}/ILSVRC2012_val_{i:08d}.JPEG" for i, t in enumerate([0, 1, 0, 0, 0, 1, 2]))
    folder = named_images(classes, keys, [0, 1, 0, 0, 0, 1, 2])
    multilabels = read_multilabels(shankar_file(tmp_path / "human_accuracy.json", keys), folder)
    assert multilabels.valid.tolist() == [True, True, True, True, False, False, False]
    by_number = named_images(tuple(map(str, range(1000))), keys, folder.targets.tolist())
    assert torch.equal(read_multilabels(tmp_path / "human_accuracy.json", by_number).classes, multilabels.classes)
    best = torch.tensor([[5], [9], [1], [1], [0], [1], [2]])  # right: the first (correct) and the second (unclear)
    measure = multilabel_accuracy(best, multilabels, torch.from_numpy(folder.targets))
    assert measure.mean() == pytest.approx(100 * (1 / 3 + 1 / 1) / 2)  # class 0: one of three; class 1: one of one


def test_mean_over_classes_equals_a_slow_loop_on_random_images() -> None:
    rng = np.random.default_rng(0)
    values, strata = 100.0 * rng.integers(0, 2, 500), rng.integers(0, 20, 500) ** 2
    values[rng.random(500) < 0.3] = np.nan
    means = [np.nanmean(values[strata == s]) for s in np.unique(strata)]
    assert Measure(values, strata).mean() == pytest.approx(np.mean(means))
    assert Measure(values).mean() == pytest.approx(np.nanmean(values))


def test_average_precision_equals_a_sum_by_hand() -> None:
    # ranks: right, wrong, right -> (1/1 + 2/3) / 2
    assert average_precision(np.array([0.9, 0.1, 0.5]), np.array([True, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    # a tie of right and wrong counts as one step: precision 1/2 at recall 1
    assert average_precision(np.array([0.5, 0.5]), np.array([True, False])) == pytest.approx(0.5)


def test_average_precision_equals_scikit_learns_on_random_scores_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (60, 7)) / 12
    positive = rng.random((60, 7)) < np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0])
    positive[3, 0] = True
    multilabels = MultiLabels(torch.from_numpy(positive), torch.ones(60, dtype=torch.bool))
    expected = np.mean([average_precision_score(positive[:, c], scores[:, c]) for c in range(6)])  # the seventh has no image
    assert mean_average_precision(torch.from_numpy(scores), multilabels) == pytest.approx(100 * expected)


def test_average_precision_leaves_out_images_that_do_not_count() -> None:
    multilabels = MultiLabels(torch.tensor([[True], [False], [True]]), torch.tensor([True, True, False]))
    assert mean_average_precision(torch.tensor([[0.9], [0.5], [0.1]]), multilabels) == 100


def test_class_accuracies_are_means_over_each_class() -> None:
    measure = Measure(np.array([100.0, 0, 100, np.nan]))
    accuracy = class_accuracies(measure, np.array([2, 2, 0, 1]), 4)
    assert accuracy[[0, 2]].tolist() == [100, 50] and np.isnan(accuracy[[1, 3]]).all()
