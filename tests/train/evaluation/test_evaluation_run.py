"""`relabel eval` from end to end: ImageNet-C's layout, two models, several processes; against a slow loop."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from relabel.images.sources import find_images
from relabel.models.preprocessing import Preprocessing
from relabel.models.weights import load_torch_file
from relabel.runtime.errors import InputError
from tests.conftest import Randomised, Relabel, model_options
from tests.processes import relabel_in_two
from tests.slow_loop import PREPROCESSING, THIN, logits_of, save_run
from train.evaluation.corruption_error import ALEXNET_ERROR
from train.evaluation.corruptions import write_corrupted
from train.evaluation.measures import Measure
from train.evaluation.run import EvalOptions, best_and_worst_classes, evaluate_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def three_classes(image_folder: Path, tmp_path: Path, randomised: Randomised) -> Callable[[int], Path]:
    """`three_classes(seed)`: weights of a run on the image folder's classes."""

    def save(seed: int) -> Path:
        torch.manual_seed(seed)
        classifier = randomised(timm.create_model("resnet10t", num_classes=3, **THIN), seed, (16, 16))
        return save_run(tmp_path / f"weights-{seed}.pth", classifier, ("cat", "dog", "eel"))

    return save


def errors_in(root: Path, classifier: nn.Module, preprocessing: Preprocessing) -> dict[str, float]:
    """The error of each corruption, averaged over severities, from a slow loop."""
    errors = {}
    for corruption in sorted(p.name for p in root.iterdir()):
        wrong = []
        for severity in "12345":
            folder = find_images(root / corruption / severity)
            best = logits_of(classifier, [Path(folder.source, key) for key in folder.keys], preprocessing).argmax(1)
            wrong.append((best.numpy() != folder.targets).mean())
        errors[corruption] = 100 * float(np.mean(wrong))
    return errors


@pytest.mark.slow
def test_mce_is_given_only_for_a_complete_imagenet_c(three_classes: Callable[[int], Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for corruption in ALEXNET_ERROR:
        for severity in "12345":
            for name in ("cat", "dog", "eel"):
                folder = tmp_path / "suite" / "imagenet-c" / corruption / severity / name
                folder.mkdir(parents=True)
                Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / "a.JPEG")
    images = tmp_path / "suite" / "imagenet-c" / "snow" / "1"
    weights = three_classes(0)
    given: dict[str, Any] = {"checkpoint": weights, "suite": tmp_path / "suite", "workers": 0, "device": "cpu"}
    whole = evaluate_checkpoint(images, EvalOptions(**given, eval_crop=0.5))
    assert whole is not None
    classifier = timm.create_model("resnet10t", num_classes=3, **THIN).eval()
    classifier.load_state_dict(load_torch_file(weights))
    # The images are cropped already, so eval_crop does not apply
    errors = errors_in(tmp_path / "suite" / "imagenet-c", classifier, PREPROCESSING)
    assert len(set(errors.values())) > 3
    found = whole["suite"]["imagenet-c"]
    assert {name: found[f"error_{name}"] for name in ALEXNET_ERROR} == pytest.approx(errors, abs=1e-3)
    assert found["corruption_error"] == pytest.approx(np.mean(list(errors.values())), abs=1e-3)
    by_hand = np.mean([errors[name] / share for name, share in ALEXNET_ERROR.items()])
    assert found["mce"] == pytest.approx(by_hand, abs=1e-3) and found["missing"] == []

    shutil.rmtree(tmp_path / "suite" / "imagenet-c" / "fog" / "4")
    shutil.rmtree(tmp_path / "suite" / "imagenet-c" / "frost")
    part = evaluate_checkpoint(images, EvalOptions(**given))
    assert part is not None
    found = part["suite"]["imagenet-c"]
    assert found["missing"] == ["frost", "fog (severity 4)"]
    assert not {"mce", "error_fog", "error_frost"} & set(found)
    del errors["fog"], errors["frost"]
    assert found["corruption_error"] == pytest.approx(np.mean(list(errors.values())), abs=1e-3)

    (tmp_path / "suite" / "imagenet-c" / "snow" / "3" / "cat" / "a.JPEG").rename(images.parent / "3" / "cat" / "b.JPEG")
    with pytest.raises(InputError, match=r"snow/3 has different images from .*gaussian_noise/1 \(first: cat/a.JPEG\)"):
        evaluate_checkpoint(images, EvalOptions(**given))


@pytest.fixture
def everything(image_folder: Path, three_classes: Callable[[int], Path], tmp_path: Path) -> list[object]:
    """Options that make `relabel eval` compare two models by every measure that applies."""
    write_corrupted(image_folder, tmp_path / "suite" / "corrupted")
    folder = find_images(image_folder)
    shown = {key: {"classes": [key.split("/")[0], *(["eel"] if i % 2 else [])]} for i, key in enumerate(folder.keys)}
    (tmp_path / "multilabels.json").write_text(json.dumps({"images": shown}))
    models = [f"--checkpoint={three_classes(0)}", f"--compare={three_classes(1)}"]
    return [
        *("eval", image_folder, *models, f"--suite={tmp_path / 'suite'}", "--fgsm", "--fgsm-epsilon=2/255"),
        *(f"--multilabels={tmp_path / 'multilabels.json'}", "--workers=0", "--device=cpu", "--batch-size=4"),
    ]


def test_comparison_is_one_table_and_one_json(everything: list[object], relabel_here: Relabel, tmp_path: Path) -> None:
    done = relabel_here(*everything, f"--output={tmp_path / 'both.json'}")
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both.json").read_text())
    options = EvalOptions(
        checkpoint=tmp_path / "weights-1.pth",
        suite=tmp_path / "suite",
        fgsm_epsilon=2 / 255,
        multilabels=tmp_path / "multilabels.json",
        workers=0,
        device="cpu",
    )
    second = evaluate_checkpoint(tmp_path / "images", options)
    assert second is not None
    assert {**both["compared_with"], "absent": second["absent"]} == {
        name: value for name, value in second.items() if not name.endswith("est_top1")
    }
    for mine, other in (
        (both, second),
        (both["fgsm"], second["fgsm"]),
        (both["suite"]["corrupted"], second["suite"]["corrupted"]),
    ):
        assert len(mine["differences"]) >= 2 and "multilabel_map" not in mine["differences"]
        for measure, found in mine["differences"].items():
            assert found["difference"] == pytest.approx(mine[measure] - other[measure], abs=2e-4)
            assert found["low"] <= found["difference"] <= found["high"]
            assert found["excludes_zero"] == (found["low"] > 0 or found["high"] < 0)
    for words in (
        ["images", "top-1", "9", f"{both['top1']:.2f}", f"{second['top1']:.2f}"],
        ["images,", "FGSM", "2/255", "multi-label", "accuracy", "9", f"{both['fgsm']['multilabel_accuracy']:.2f}"],
        ["corrupted", "under", "pixelate", "9", f"{both['suite']['corrupted']['error_pixelate']:.2f}"],
    ):
        assert any(line.split()[: len(words)] == words for line in done.stdout.splitlines()), words
    assert "absent: imagenetv2-matched-frequency, " in done.stdout and "corrupted" not in done.stdout.split("absent: ")[1]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(everything: list[object], relabel_here: Relabel, tmp_path: Path) -> None:
    assert relabel_here(*everything, f"--output={tmp_path / 'one.json'}").returncode == 0
    both = relabel_in_two(*everything, f"--output={tmp_path / 'two.json'}")
    assert [done.returncode for done in both] == [0, 0], both
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
    assert [done.stdout.count("data set") for done in both] == [1, 0]


def test_models_of_other_classes_and_impossible_options_are_rejected(
    image_folder: Path, three_classes: Callable[[int], Path], relabel_here: Relabel, tmp_path: Path
) -> None:
    mine = f"--checkpoint={three_classes(0)}"
    other = timm.create_model("resnet10t", num_classes=3, **THIN)
    save_run(tmp_path / "other.pth", other, ("cat", "cow", "eel"))
    for options, message in (
        (
            [mine, f"--compare={tmp_path / 'other.pth'}"],
            "other.pth: different class names or order: expected cow, found dog",
        ),
        ([mine, "--fgsm-epsilon=4/255"], "--fgsm-epsilon is the step of --fgsm; give --fgsm too"),
        ([mine, "--compare-arch=resnet10t"], "--compare-arch resnet10t is the model of --compare; give that too"),
        ([mine, "--amp-dtype=float16"], "--amp-dtype float16 has no effect in float32"),
        ([mine, "--fgsm", "--fgsm-epsilon=8/0"], "--fgsm-epsilon '8/0': expected a fraction"),
        ([mine, "--fgsm", "--fgsm-epsilon=8"], "--fgsm-epsilon 8: expected a share"),
        ([mine, "--eval-crop=2"], "--eval-crop 2.0: expected a share"),
        ([mine, f"--suite={image_folder / 'none'}"], "is not a folder; expected one that holds"),
        ([], "nothing to evaluate"),
    ):
        done = relabel_here("eval", image_folder, *options, "--workers=0", "--device=cpu")
        assert done.returncode == 1 and message in done.stderr, (options, done.stderr)


def test_two_checkpoints_without_a_card_may_have_different_archs(
    image_folder: Path, tmp_path: Path, relabel_here: Relabel
) -> None:
    for arch in ("resnet10t", "resnet14t"):
        torch.manual_seed(0)
        torch.save(timm.create_model(arch, num_classes=3, **THIN).state_dict(), tmp_path / f"{arch}.pth")
    models = [f"--checkpoint={tmp_path / 'resnet10t.pth'}", f"--compare={tmp_path / 'resnet14t.pth'}", "--arch=resnet10t"]
    models += model_options(THIN)
    options = ["--compare-arch=resnet14t", "--amp", "--eval-size=32", "--workers=0", "--device=cpu"]
    done = relabel_here("eval", image_folder, *models, *options, f"--output={tmp_path / 'both.json'}")
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both.json").read_text())
    for result, arch in ((both, "resnet10t"), (both["compared_with"], "resnet14t")):
        assert (result["arch"], result["precision"]) == (arch, "bfloat16")


def test_classes_without_images_are_neither_best_nor_worst() -> None:
    found = best_and_worst_classes(Measure(np.array([100.0, 0.0, 50.0])), np.array([0, 2, 4]), ["a", "b", "c", "d", "e"])
    assert found == {"lowest_top1": [{"name": "c", "top1": 0.0}], "highest_top1": [{"name": "a", "top1": 100.0}]}


@pytest.mark.parametrize(
    ("top1", "lowest", "highest"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 50, 20, 0], "abcde", "hi"),
        ([100, 100, 100, 100, 50, 100, 100, 100, 100, 100], "e", "jihgf"),
        ([0] * 10, "", ""),
        ([100] * 10, "", ""),
    ],
)
def test_classes_with_the_lowest_top1_of_all_are_not_listed_as_the_highest(
    top1: list[int], lowest: str, highest: str
) -> None:
    found = best_and_worst_classes(Measure(np.array(top1, dtype=float)), np.arange(10), list("abcdefghij"))
    assert ["".join(entry["name"] for entry in found[f"{which}_top1"]) for which in ("lowest", "highest")] == [
        lowest,
        highest,
    ]


def test_output_replaces_an_earlier_result_but_nobody_elses_file(
    image_folder: Path, three_classes: Callable[[int], Path], relabel_here: Relabel, tmp_path: Path
) -> None:
    command = ["eval", image_folder, f"--checkpoint={three_classes(0)}", "--workers=0", "--device=cpu"]
    precious, result, link = (tmp_path / name for name in ("precious", "result.json", "link"))
    link.symlink_to(precious)
    for content in ("a list", '{"arch": "resnet10t", "recipe": {}}', "[" * 100_000):  # the second as in run.json
        precious.write_text(content)
        for path in (precious, link):
            done = relabel_here(*command, f"--output={path}")
            assert done.returncode == 1 and f"{path} exists and is not an earlier result" in done.stderr
        assert precious.read_text() == content
    assert "name a file in it" in relabel_here(*command, f"--output={tmp_path}").stderr
    assert "--force replaces the file of --output" in relabel_here(*command, "--force").stderr
    assert relabel_here(*command, "--output=/dev/full").stderr.count('"images": 9') == 1, (
        "a result that cannot be written is shown"
    )
    for _ in range(2):
        done = relabel_here(*command, f"--output={result}")
        assert done.returncode == 0, done.stderr
    link.unlink()
    link.symlink_to(result)
    assert relabel_here(*command, f"--output={link}").returncode == 0 and link.is_symlink()
    assert relabel_here(*command, f"--output={precious}", "--force").returncode == 0
    assert precious.read_bytes() == result.read_bytes() and json.loads(precious.read_text())["images"] == 9
