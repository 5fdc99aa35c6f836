"""ImageNet and its relatives in miniature, real images in the published layouts, against a slow loop."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from relabel.images.classes import imagenet_classes
from relabel.images.sources import find_images
from relabel.models.preprocessing import eval_preprocessing
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.conftest import Randomised
from tests.slow_loop import THIN, images_of, logits_of, save_run
from tests.train.evaluation.test_measures import shankar_file
from train.evaluation.run import EvalOptions, evaluate_checkpoint

pytestmark = pytest.mark.slow  # the fixture writes and evaluates a data set of 1000 classes

TIMM_DATA = Path(timm.__file__).parent / "data" / "_info"


class Known(NamedTuple):
    """ImageNet in miniature.

    Attributes:
        weights: a run whose model recognises 300 classes by their validation image, mistakes 500 for others, and for
            another 200 prefers a second class that stands for the same image.
        logits: (1000, 1000) of the validation images, class by class, from a slow loop.
        numbers: of the validation images in ImageNet's validation set, class by class.
    """

    val: Path
    suite: Path
    weights: Path
    logits: Tensor
    numbers: list[int]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory, randomised: Randomised) -> Known:
    root = tmp_path_factory.mktemp("imagenet")
    classes = imagenet_classes()
    real = json.loads((TIMM_DATA / "imagenet_real_labels.json").read_text())
    numbers = [next(i + 1 for i, labels in enumerate(real) if labels == [c]) for c in range(1000)]
    rng = np.random.default_rng(0)
    paths = []
    for wordnet_id, number in zip(classes, numbers, strict=True):
        path = root / "val" / wordnet_id / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)).resize((16, 16)).save(path)
        paths.append(path)

    def link(data_set: str, class_index: int, folder: str) -> None:
        (root / "suite" / data_set / folder).mkdir(parents=True)
        os.link(paths[class_index], root / "suite" / data_set / folder / "image.jpg")

    index_of = {wordnet_id: c for c, wordnet_id in enumerate(classes)}
    for c, wordnet_id in enumerate(classes):
        link("imagenetv2-threshold0.7-format-val", c, str(c))
        link("sketch", c, wordnet_id)
    for name in ("imagenet-a", "imagenet-r"):
        for wordnet_id in (TIMM_DATA / f"{name.replace('-', '_')}_synsets.txt").read_text().split():
            link(name, index_of[wordnet_id], wordnet_id)

    classifier: Any = randomised(timm.create_model("resnet10t", num_classes=1000, **THIN), 0, (16, 16))
    head = classifier.get_classifier()
    with torch.no_grad():  # the nearest image's class
        features = classifier.forward_head(classifier.forward_features(images_of(paths)), pre_logits=True)
        order = torch.cat([torch.arange(300).roll(100), torch.arange(300, 800), torch.arange(300, 500)])
        head.weight.copy_(features[order])
        head.bias.copy_(-features[order].square().sum(1) / 2)
        head.bias[800:] += 1e-3 * head.bias.abs().mean()
    weights = save_run(root / "weights.pth", classifier, classes)
    return Known(root / "val", root / "suite", weights, logits_of(classifier, paths), numbers)


def test_every_data_set_found_is_measured_as_by_a_slow_loop(imagenet: Known, tmp_path: Path) -> None:
    folder = find_images(imagenet.val)
    labels = shankar_file(tmp_path / "human_accuracy.json", folder.keys)
    result = evaluate_checkpoint(
        imagenet.val,
        EvalOptions(checkpoint=imagenet.weights, suite=imagenet.suite, multilabels=labels, workers=0, device="cpu"),
    )
    assert result is not None
    ranked = imagenet.logits.topk(5).indices
    targets = torch.arange(1000)
    top1 = 100 * (ranked[:, 0] == targets).double().mean().item()
    top5 = 100 * (ranked == targets.unsqueeze(1)).any(1).double().mean().item()
    assert 25 < top1 < 35
    assert (result["images"], result["top1"], result["top5"]) == (1000, pytest.approx(top1), pytest.approx(top5))
    assert result["real"] == pytest.approx(top1), "each image's only ReaL label is its class"
    # four images have annotations that count; the model recognises none of the first 300 classes
    assert result["multilabel_accuracy_by_class_images"] == 4
    assert result["multilabel_accuracy_by_class"] == 0
    found = result["suite"]
    assert set(found) == {"imagenetv2-threshold0.7", "imagenet-a", "imagenet-r", "imagenet-sketch"}
    for name in ("imagenetv2-threshold0.7", "imagenet-sketch"):
        assert (found[name]["images"], found[name]["top1"], found[name]["top5"]) == (1000, result["top1"], result["top5"])
    for name in ("imagenet-a", "imagenet-r"):
        indices = torch.tensor(list(map(int, (TIMM_DATA / f"{name.replace('-', '_')}_indices.txt").read_text().split())))
        among = imagenet.logits[indices][:, indices].argmax(1)  # the benchmark's own protocol
        expected = 100 * (among == torch.arange(200)).double().mean().item()
        over_all = 100 * (ranked[indices, 0] == indices).double().mean().item()
        assert found[name]["top1"] == pytest.approx(expected)
        assert expected > over_all + 5, "otherwise the restriction would make no difference"
    assert result["absent"] == ["imagenetv2-matched-frequency", "imagenetv2-top-images", "imagenet-c", "corrupted"]
    assert [entry["name"] for entry in result["lowest_top1"]][:2] == ["tench (n01440764)", "goldfish (n01443537)"]
    assert result["highest_top1"][0]["top1"] == 100


def test_folders_named_by_number_are_imagenets_classes(imagenet: Known) -> None:
    v2 = imagenet.suite / "imagenetv2-threshold0.7-format-val"
    result = evaluate_checkpoint(v2, EvalOptions(checkpoint=imagenet.weights, workers=0, device="cpu"))
    assert result is not None and 25 < result["top1"] < 35
    assert "tench (n01440764)" in str(result["lowest_top1"]), "a class is called by its name, not its number"


def test_model_without_a_card_has_imagenets_classes(imagenet: Known, tmp_path: Path) -> None:
    state = load_torch_file(imagenet.weights)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "published.pth")
    model: dict[str, Any] = {"arch": "resnet10t", "model_kwargs": THIN, "checkpoint": tmp_path / "published.pth"}
    renamed = tmp_path / "val"
    shutil.copytree(imagenet.val, renamed, copy_function=os.link)
    (renamed / "n01440764").rename(renamed / "n01440763")
    (renamed / "n15075141").rename(renamed / "n15075142")
    with pytest.raises(InputError, match=r"expected n01440764, found n01440763; expected n15075141, found n15075142$"):
        evaluate_checkpoint(renamed, EvalOptions(**model, workers=0, device="cpu"))
    result = evaluate_checkpoint(imagenet.val, EvalOptions(**model, eval_size=16, eval_crop=1.0, workers=0, device="cpu"))
    classifier = timm.create_model("resnet10t", num_classes=1000, **THIN).eval()
    classifier.load_state_dict(state)
    preprocessing = dataclasses.replace(eval_preprocessing(classifier), size=16, crop=1.0)
    paths = [next((imagenet.val / wordnet_id).iterdir()) for wordnet_id in imagenet_classes()]
    expected = logits_of(classifier, paths, preprocessing).argmax(1) == torch.arange(1000)
    assert result is not None and result["top1"] == pytest.approx(100 * expected.double().mean().item()) != 0


def test_data_set_of_other_classes_is_rejected_before_anything_is_measured(imagenet: Known, tmp_path: Path) -> None:
    shutil.copytree(imagenet.suite / "imagenet-a", tmp_path / "imagenet-a", copy_function=os.link)
    (tmp_path / "imagenet-a" / "n01498041").rename(tmp_path / "imagenet-a" / "stingray")
    with pytest.raises(InputError, match=r"1 of 200 class folders are not classes of .*weights.pth \(stingray\)"):
        evaluate_checkpoint(imagenet.val, EvalOptions(checkpoint=imagenet.weights, suite=tmp_path, workers=0, device="cpu"))
    shutil.rmtree(tmp_path / "imagenet-a")
    with pytest.raises(InputError, match=r"holds none of imagenetv2-matched-frequency-format-val, .*imagenet-c, corrupted"):
        evaluate_checkpoint(imagenet.val, EvalOptions(checkpoint=imagenet.weights, suite=tmp_path, workers=0, device="cpu"))
