"""Which output is which class: a classifier that recognises every image is not measured as one that does not, in silence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from relabel.images.classes import imagenet_classes
from tests.conftest import Randomised, Relabel, model_options
from tests.slow_loop import PREPROCESSING, THIN, images_of, save_run
from train.evaluation.run import EvalOptions, evaluate_checkpoint

CLASSES = tuple(f"class{number}" for number in range(1, 13))
PLAIN = tuple(sorted(CLASSES))  # class1, class10, class11, class12, class2 ...
MEASURED: dict[str, Any] = {"workers": 0, "device": "cpu"}
LIKE_A_RUN = {  # timm's settings with the preprocessing of a relabel checkpoint
    "input_size": (3, 16, 16),
    "test_input_size": (3, 16, 16),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": PREPROCESSING.mean,
    "std": PREPROCESSING.std,
}
KWARGS: dict[str, Any] = {**THIN, "pretrained_cfg_overlay": LIKE_A_RUN}


def write_images(root: Path, classes: tuple[str, ...]) -> list[Path]:
    """A 16x16 image of each class, always the same for a class of the same name."""
    paths = []
    for name in classes:
        rng = np.random.default_rng(list(name.encode()))
        path = root / name / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)).resize((16, 16)).save(path)
        paths.append(path)
    return paths


def recognising(paths: list[Path], outputs: list[int], count: int, randomised: Randomised) -> Any:
    """A classifier of `count` outputs, of which the nearest image's is the largest."""
    torch.manual_seed(0)
    classifier: Any = randomised(timm.create_model("resnet10t", num_classes=count, **KWARGS), 0, (16, 16))
    head = classifier.get_classifier()
    with torch.no_grad():
        features = classifier.forward_head(classifier.forward_features(images_of(paths)), pre_logits=True)
        head.weight.zero_()
        head.bias.fill_(-1e9)
        head.weight[outputs] = features
        head.bias[outputs] = -features.square().sum(1) / 2
    return classifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "val", CLASSES)
    return tmp_path / "val"


@pytest.fixture
def plain(folder: Path, randomised: Randomised) -> Path:
    """Weights of a classifier that was trained in ImageFolder's order, and recognises everything."""
    paths = [folder / name / "a.png" for name in PLAIN]
    weights = folder.parent / "plain.pth"
    torch.save(recognising(paths, list(range(12)), 12, randomised).state_dict(), weights)
    (folder.parent / "classes.txt").write_text("".join(f"{name}\n" for name in PLAIN))
    return weights


def test_order_that_nothing_proves_is_warned_of_and_named_classes_are_right(
    relabel_here: Relabel, folder: Path, plain: Path
) -> None:
    model = ["--arch=resnet10t", *model_options(KWARGS), f"--checkpoint={plain}"]
    guessed = relabel_here("eval", folder, *model, "--workers=0", "--device=cpu")
    assert guessed.returncode == 0, guessed.stderr
    assert "top-1" in guessed.stdout and " 8.33" in guessed.stdout  # class1 is first in both orders
    assert f"{plain} does not record its classes" in guessed.stdout
    assert "class2 comes before class10" in guessed.stdout and "with --classes FILE" in guessed.stdout
    named = relabel_here("eval", folder, *model, f"--classes={folder.parent / 'classes.txt'}", "--workers=0", "--device=cpu")
    assert named.returncode == 0 and " 100.00" in named.stdout and "warning" not in named.stdout, named.stderr


def test_names_that_do_not_fit_are_rejected(
    relabel_here: Relabel, folder: Path, plain: Path, randomised: Randomised, tmp_path: Path
) -> None:
    model = ["--arch=resnet10t", *model_options(KWARGS), f"--checkpoint={plain}", "--workers=0", "--device=cpu"]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(PLAIN[:-1]))
    short = relabel_here("eval", folder, *model, f"--classes={names}")
    assert short.returncode == 1 and "11 names, but the classifier has 12 outputs" in short.stderr
    card = save_run(tmp_path / "run.pth", timm.create_model("resnet10t", num_classes=12, **THIN), CLASSES)
    names.write_text("\n".join(PLAIN))
    contradicted = relabel_here("eval", folder, f"--checkpoint={card}", f"--classes={names}", "--workers=0", "--device=cpu")
    assert contradicted.returncode == 1 and "run.pth records other classes or another order" in contradicted.stderr
    write_images(tmp_path / "more", ("ant",))
    other = relabel_here("eval", tmp_path / "more", *model)
    assert other.returncode == 1 and "it has 12 classes, and there are 1 class folders; list its classes" in other.stderr


def test_two_models_with_their_outputs_in_different_orders_are_compared_by_name(
    folder: Path, plain: Path, randomised: Randomised, tmp_path: Path
) -> None:
    classifier = recognising([folder / name / "a.png" for name in CLASSES], list(range(12)), 12, randomised)
    run = save_run(tmp_path / "run.pth", classifier, CLASSES)
    result = evaluate_checkpoint(
        folder,
        EvalOptions(
            checkpoint=plain,
            arch="resnet10t",
            model_kwargs=KWARGS,
            classes=str(folder.parent / "classes.txt"),
            compare=run,
            **MEASURED,
        ),
    )
    assert result is not None and (result["top1"], result["compared_with"]["top1"]) == (100, 100)


@pytest.mark.parametrize("absent", ["removed", "empty"])
def test_classes_without_images_give_both_figures(folder: Path, randomised: Randomised, tmp_path: Path, absent: str) -> None:
    """A model that takes half of the images for classes without images."""
    paths = [folder / name / "a.png" for name in CLASSES[:4]]
    classifier = recognising([*paths, *paths[2:]], [0, 1, 2, 3, 4, 5], 12, randomised)
    with torch.no_grad():
        classifier.get_classifier().bias[4:6] += 1e-3
    run = save_run(tmp_path / "run.pth", classifier, CLASSES)
    for name in CLASSES[4:]:
        (folder / name / "a.png").unlink()
        if absent == "removed":
            (folder / name).rmdir()
    result = evaluate_checkpoint(folder, EvalOptions(checkpoint=run, **MEASURED))
    assert result is not None
    assert (result["images"], result["top1"], result["top1_among_folders"]) == (4, 50, 100)
    assert {entry["name"] for entry in result["lowest_top1"]} == {"class3", "class4"}


def test_imagenet_model_on_some_of_its_classes_gives_both_figures(
    relabel_here: Relabel, randomised: Randomised, tmp_path: Path
) -> None:
    classes = tuple(imagenet_classes()[c] for c in (3, 8, 999))
    for data_set, names in (
        ("val", classes),
        ("suite/imagenetv2-threshold0.7-format-val", ("3", "8", "999")),
        ("suite/sketch", classes),
        *((f"suite/imagenet-c/fog/{severity}", classes) for severity in "12345"),
    ):
        paths = write_images(tmp_path / data_set, names)
        if data_set == "val":
            kept = paths
        else:  # the same pictures under other names
            for path, picture in zip(paths, kept, strict=True):
                path.write_bytes(picture.read_bytes())
    classifier = recognising([*kept, kept[1]], [3, 8, 999, 500], 1000, randomised)
    with torch.no_grad():
        classifier.get_classifier().bias[500] += 1e-3  # 500 is not among the folders
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "bare.pth")
    result = evaluate_checkpoint(
        tmp_path / "val",
        EvalOptions(
            checkpoint=tmp_path / "bare.pth",
            arch="resnet10t",
            model_kwargs=KWARGS,
            suite=tmp_path / "suite",
            fgsm_epsilon=1e-6,
            **MEASURED,
        ),
    )
    assert result is not None
    found = result["suite"]
    for figures in (result, result["fgsm"], found["imagenetv2-threshold0.7"], found["imagenet-sketch"]):
        assert (figures["images"], figures["top1"], figures["top1_among_folders"]) == (
            3,
            pytest.approx(200 / 3, abs=1e-3),
            100,
        )
    corrupted = found["imagenet-c"]
    assert corrupted["corruption_error"] == pytest.approx(100 / 3, abs=1e-3)
    assert corrupted["corruption_error_among_folders"] == 0
    assert "mce" not in corrupted
    arguments = [f"--checkpoint={tmp_path / 'bare.pth'}", "--arch=resnet10t", *model_options(KWARGS)]
    shown = relabel_here("eval", tmp_path / "val", *arguments, "--workers=0", "--device=cpu")
    assert shown.returncode == 0 and "top-1 among the folders' classes" in shown.stdout and " 66.67" in shown.stdout


def test_partial_imagenet_a_is_still_a_choice_among_its_200_classes(randomised: Randomised, tmp_path: Path) -> None:
    of_a = (Path(timm.__file__).parent / "data" / "_info" / "imagenet_a_synsets.txt").read_text().split()
    index = {name: c for c, name in enumerate(imagenet_classes())}
    outside = next(name for name in imagenet_classes() if name not in of_a)
    paths = write_images(tmp_path / "suite" / "imagenet-a", tuple(of_a[:2]))
    write_images(tmp_path / "val", tuple(of_a[:2]))
    # the first image is taken for a class outside of ImageNet-A, the second for another one of it
    chosen = [index[name] for name in (of_a[0], outside, of_a[1], of_a[7])]
    classifier = recognising([paths[0], paths[0], paths[1], paths[1]], chosen, 1000, randomised)
    with torch.no_grad():
        classifier.get_classifier().bias[[chosen[1], chosen[3]]] += 1e-3
    run = save_run(tmp_path / "run.pth", classifier, imagenet_classes())
    result = evaluate_checkpoint(tmp_path / "val", EvalOptions(checkpoint=run, suite=tmp_path / "suite", **MEASURED))
    assert result is not None and (result["top1"], result["top1_among_folders"]) == (0, 100)
    figures = result["suite"]["imagenet-a"]
    assert (figures["top1"], figures["top1_among_folders"]) == (50, 100)
