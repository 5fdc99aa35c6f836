"""Evaluation against counts by hand, with real images and a classifier whose answers are known."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from relabel.images.classes import check_classes
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.distributed import Processes, processes
from relabel.runtime.errors import InputError
from tests.conftest import leased, refusal, wait_until
from tests.label_sets import named_images
from train.evaluation.evaluate import evaluate
from train.evaluation.multilabels import read_multilabels

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(size=8, crop=1.0, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
ALONE = Processes(0, 1, torch.device("cpu"))
CLASSES = 7


class ReadsRed(nn.Module):
    """Predicts class round(red / 10); ranks the others by their distance from it, lower ones first."""

    def forward(self, images: Tensor) -> Tensor:
        predicted = images[:, 0].mean((1, 2)) * 255 / 10
        classes = torch.arange(CLASSES)
        return -(classes - predicted.unsqueeze(1) + 0.1).abs()


@pytest.fixture
def folder(tmp_path: Path) -> ImageSet:
    """8 images of one colour each; the folder is the label, the red is what ReadsRed predicts."""
    for i, (target, predicted) in enumerate([(0, 0), (0, 1), (1, 1), (2, 6), (3, 3), (4, 0), (5, 5), (6, 6)]):
        (tmp_path / str(target)).mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (10 * predicted, 0, 0)).save(tmp_path / str(target) / f"{i}.png")
    return find_images(tmp_path)


def test_counts_equal_those_by_hand(folder: ImageSet, tmp_path: Path) -> None:
    # right: images 0, 2, 4, 6, 7. In the top 5: image 1 (predicted 1, then 0), 3 (6 down to 2), 5 (0 up to 4)
    shown = {key: {"classes": [key.split("/")[0]]} for key in folder.keys}
    shown["0/1.png"]["classes"] = ["0", "1"]  # the predicted class is shown too
    shown["2/3.png"]["classes"] = ["2", "5"]  # the predicted class is not
    (tmp_path / "multilabels.json").write_text(json.dumps({"images": shown}))
    multilabels = read_multilabels(tmp_path / "multilabels.json", folder)
    result = evaluate(ReadsRed(), folder, PREPROCESSING, ALONE, multilabels=multilabels, batch_size=3)
    assert result.summary() == {"images": 8, "top1": 62.5, "top5": 100.0, "multilabel_accuracy": 75.0}


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_average_precision_ranks_by_the_probability_that_was_trained(
    folder: ImageSet, tmp_path: Path, loss: Literal["ce", "bce"]
) -> None:
    shown = {key: {"classes": [key.split("/")[0], "3"] if i % 2 else ["6"]} for i, key in enumerate(folder.keys)}
    (tmp_path / "multilabels.json").write_text(json.dumps({"images": shown}))
    multilabels = read_multilabels(tmp_path / "multilabels.json", folder)

    class Shifts(ReadsRed):
        """Adds the same number to all logits, which does not change a softmax."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + images[:, 0, 0, :1] * 100

    result = evaluate(Shifts(), folder, PREPROCESSING, ALONE, multilabels=multilabels, average_precision_of=loss)
    red = torch.tensor([0, 1, 1, 6, 3, 0, 5, 6]).view(8, 1, 1, 1) * 10 / 255  # the red of each image
    logits = Shifts()(red)
    positive = multilabels.classes.numpy()
    present = np.flatnonzero(positive.any(0))
    expected = {
        name: 100 * np.mean([average_precision_score(positive[:, c], scores[:, c]) for c in present])
        for name, scores in (("ce", logits.softmax(1).numpy()), ("bce", logits.sigmoid().numpy()))
    }
    assert result.figures["multilabel_map"] == pytest.approx(expected[loss])
    assert abs(expected["ce"] - expected["bce"]) > 1


def test_top5_counts_only_the_five_best(folder: ImageSet, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (0, 0, 0)).save(tmp_path / "6" / "far.png")  # predicted: 0 to 4; 6 is the seventh
    assert evaluate(ReadsRed(), find_images(tmp_path), PREPROCESSING, ALONE).summary()["top5"] == pytest.approx(
        100 * 8 / 9, abs=1e-3
    )


def test_model_is_left_in_the_mode_it_was_in(folder: ImageSet) -> None:
    model = ReadsRed().train()
    evaluate(model, folder, PREPROCESSING, ALONE)
    assert model.training


def test_centre_crop_keeps_the_centre(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((10, 0, 0), (15, 5, 25, 15))  # the middle 10x10
    image.save(tmp_path / "0" / "a.png")
    seen: list[Tensor] = []

    class Looks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.zeros(len(images), 1)

    evaluate(Looks(), find_images(tmp_path), Preprocessing(10, 0.5, "bilinear", (0.0,) * 3, (1.0,) * 3), ALONE)
    assert seen[0].shape == (1, 3, 10, 10)
    assert float(seen[0][0, 0].median() * 255) == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has neither the layout"),
        ("no json", "is not JSON"),
        ('{"images": {}}', "has no entry for 8 of 8 images"),
        ('{"images": {"0/0.png": {"names": []}}}', "has neither the layout"),
    ],
)
def test_multilabel_file_of_another_layout_is_rejected(folder: ImageSet, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "multilabels.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_multilabels(tmp_path / "multilabels.json", folder)


def test_multilabel_class_without_a_folder_is_named(folder: ImageSet, tmp_path: Path) -> None:
    shown = {key: {"classes": ["zebra"]} for key in folder.keys}
    (tmp_path / "multilabels.json").write_text(json.dumps({"images": shown}))
    with pytest.raises(InputError, match=r"0/0\.png shows 'zebra', which is not a class folder"):
        read_multilabels(tmp_path / "multilabels.json", folder)


def test_other_class_names_are_rejected_with_the_first_that_differ(folder: ImageSet) -> None:
    with pytest.raises(InputError, match="expected one, found 1; expected three, found 3"):
        check_classes(folder, ("0", "one", "2", "three", "4", "5", "6"), "weights.pth")
    with pytest.raises(
        InputError,
        match=r"classes of weights\.pth: expected 2 classes, found 7: 2 is unknown; 3 is unknown; 4 is",
    ):
        check_classes(folder, ("0", "1"), "weights.pth")


def test_decoding_process_that_dies_is_reported(folder: ImageSet, tmp_path: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children")
    before = children.read_text().split()

    def workers() -> list[str]:
        return [child for child in children.read_text().split() if child not in before]

    def kill_the_worker() -> None:
        wait_until(workers, 60, "a decoding process")
        os.kill(int(workers()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_worker)
    killer.start()
    with (
        leased(tmp_path / "3" / "4.png"),  # blocks the worker that reads it
        pytest.raises(InputError, match=r"a decoding process died: DataLoader worker .*use fewer --workers"),
        processes("cpu"),
    ):
        evaluate(ReadsRed(), folder, PREPROCESSING, ALONE, workers=1)
    killer.join(60)


@pytest.mark.parametrize(
    "content",
    [
        '{"images": {"a/0.png": {"classes": "a"}}}',
        '{"images": {"a/0.png": {"classes": null}}}',
        '{"images": {"a/0.png": {"classes": [["a"]]}}}',
        '{"images": {"a/0.png": ["a"]}}',
        '{"images": "a/0.png"}',
        '{"images": null}',
        "[]",
        "[" * 100_000,
        '{"initial_annots": {"0.png": {"correct": "a"}}, "problematic_images": {}}',
        '{"initial_annots": {"0.png": {"correct": [["a"]]}}, "problematic_images": {}}',
        '{"initial_annots": {"0.png": null}, "problematic_images": {}}',
        '{"initial_annots": [], "problematic_images": {}}',
        '{"initial_annots": {}, "problematic_images": [[]]}',
        '{"initial_annots": {}}',
    ],
)
def test_labels_of_a_wrong_type_are_named_with_their_file(tmp_path: Path, content: str) -> None:
    images = named_images(("a",), ("a/0.png",), [0])
    (tmp_path / "multilabels.json").write_text(content)
    assert str(tmp_path / "multilabels.json") in refusal(lambda: read_multilabels(tmp_path / "multilabels.json", images))
