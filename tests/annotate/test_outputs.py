"""A classifier has more classes than the images, in another order: its outputs are found by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import ImageNetInfo

from annotate.outputs import outputs_by_name
from relabel.images.sources import find_images
from relabel.labels.manifest import Manifest
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests.conftest import Relabel
from tests.label_sets import named_images

NAMES = ["eel", "bat\tof the kind that flies", "dog", "cat"]  # the tiny annotator's classes are cat, dog and eel
ROWS = [2, 0, 1, 0]  # rows of its head, in the order of NAMES; "bat" gets the row of "cat"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path / "names.txt"


@pytest.fixture
def shuffled(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny annotator's weights, rearranged to four classes."""
    weights = torch.load(tiny_checkpoint, weights_only=True)
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name][ROWS]
    torch.save(weights, tmp_path / "shuffled.pth")
    return tmp_path / "shuffled.pth"


def test_label_set_equals_that_of_a_classifier_with_just_the_images_classes(
    relabel_here: Relabel, image_folder: Path, tiny_options: list[str], shuffled: Path, names: Path, undisturbed: Path
) -> None:
    labels = names.parent / "labels"
    options = [*tiny_options, f"--checkpoint={shuffled}", "--num-classes=4", f"--classes={names}"]
    assert relabel_here("annotate", image_folder, "--labels", labels, *options).returncode == 0
    manifest = Manifest.load(labels)
    assert (manifest.classes, manifest.outputs) == (("cat", "dog", "eel"), (3, 2, 0))
    here, there = LabelStore.open(labels), LabelStore.open(undisturbed)
    assert here.keys == there.keys
    rows = here.rows(here.keys)
    for name in ("scores", "classes", "tail"):
        torch.testing.assert_close(
            getattr(here.gather(rows), name), getattr(there.gather(rows), name), atol=1e-3, rtol=1e-3, check_dtype=False
        )

    checked = ["verify", labels, "--images", image_folder, "--min-agreement=0", "--spot-check=5", "--device=cpu"]
    again = relabel_here(*checked, f"--checkpoint={shuffled}")
    assert again.returncode == 0 and "OK" in again.stdout, again.stdout

    (image_folder / "cat").rename(image_folder / "cow")
    other = relabel_here("verify", labels, "--images", image_folder, "--min-agreement=0")
    assert other.returncode == 1 and "different class names or order: expected cat, found cow" in other.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog\n", "2 names, but the classifier has 4 outputs"),
        ("cat\ndog\neel\ncat\n", "cat is listed twice"),
        ("cat\ndog\ncow\nbat\n", r"1 of 3 classes of .*images are not listed \(first: eel\); the list starts with cat"),
        ("cat\n\ndog\neel\n", "line 2 is empty"),
    ],
)
def test_unsuitable_list_of_names_is_rejected(
    relabel_here: Relabel,
    image_folder: Path,
    tiny_options: list[str],
    shuffled: Path,
    names: Path,
    content: str,
    message: str,
) -> None:
    names.write_text(content)
    options = [*tiny_options, f"--checkpoint={shuffled}", "--num-classes=4", f"--classes={names}"]
    failed = relabel_here("annotate", image_folder, "--labels", names.parent / "labels", *options)
    assert failed.returncode == 1
    assert re.search(message, failed.stderr)


def test_timm_option_matches_wordnet_ids_of_imagenet(image_folder: Path) -> None:
    synsets = ImageNetInfo("imagenet-22k").label_names()
    for old, new in zip(("cat", "dog", "eel"), ("n02123045", "n02084071", "n01440764"), strict=True):
        (image_folder / old).rename(image_folder / new)
    classifier: Any = torch.nn.Module()
    classifier.num_classes = 21_841
    found = outputs_by_name("timm", classifier, find_images(image_folder))
    assert [synsets[i] for i in found] == ["n01440764", "n02084071", "n02123045"]
    classifier.num_classes = 7
    with pytest.raises(InputError, match="timm has no names for a classifier of 7 classes"):
        outputs_by_name("timm", classifier, find_images(image_folder))


def test_accented_letter_of_one_character_is_the_same_as_of_two(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    (tmp_path / "names.txt").write_text(f"eau\n{one}\n", encoding="utf-8-sig")
    images = named_images((two, "eau"), (f"{two}/x.JPEG", "eau/x.JPEG"), [0, 1])
    classifier = timm.create_model("resnet10t", num_classes=2, stem_width=8, channels=(8, 8, 8, 16))
    assert outputs_by_name(str(tmp_path / "names.txt"), classifier, images) == [1, 0]
