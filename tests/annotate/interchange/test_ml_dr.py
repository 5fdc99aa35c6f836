"""ml-dr's files give the crops and targets that its own reader gives, in every form that it writes; others are refused."""

import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotate.interchange.allow_list import read_plain
from annotate.interchange.ml_dr import MlDrStore, ml_dr_config, ml_dr_file, saved
from relabel.images.sources import find_images
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC
from relabel.runtime.defaults import RegionTarget
from tests.annotate.interchange.crop_samples import (
    CLASSES,
    IMAGES,
    SAMPLES,
    assert_as_their_reader,
    copy_of,
    read_all,
    sample_images,
    targets_of,
)
from tests.conftest import refusal


def store_of(source: Path, num_classes: int = CLASSES, target: RegionTarget = "spread") -> MlDrStore:
    return MlDrStore(source, sample_images(), num_classes, target)


def rewrite(source: Path, change: Callable[[int, list[dict[str, Any]]], Any], protocol: int = 4) -> Path:
    """Save every file again with what `change` makes of its number and its crops."""
    for number in range(12):
        path = source / f"{number}.pth.tar"
        torch.save(change(*read_plain(path)), path, pickle_protocol=protocol)
    return source


def enable(source: Path, **augmentations: dict[str, Any]) -> Path:
    config = read_plain(source / "config.pth.tar")
    config["reinforce"]["image_augmentation"] |= augmentations
    torch.save(config, source / "config.pth.tar")
    return source


def with_params(params: Callable[[list[Any]], Any]) -> Callable[[int, list[dict[str, Any]]], Any]:
    return lambda number, samples: (number, [{"params": params(s["params"]), "prob": s["prob"]} for s in samples])


def test_targets_and_boxes_are_those_of_ml_drs_own_reader() -> None:
    assert_as_their_reader(store_of(SAMPLES / "ml-dr"), "ml-dr")
    assert_as_their_reader(store_of(SAMPLES / "ml-dr", target="softmax"), "ml-dr", "targets_zeros")


@pytest.mark.parametrize("protocol", [2, 5])
def test_other_protocols_are_read_alike(tmp_path: Path, protocol: int) -> None:
    source = rewrite(copy_of("ml-dr", tmp_path), lambda number, samples: (number, samples), protocol)
    assert_as_their_reader(store_of(source), "ml-dr")


@pytest.mark.parametrize("compress", [bytes, lambda pickled: zlib.compress(pickled, 3)])
def test_files_of_joblib_are_read_alike(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    source = copy_of("ml-dr", tmp_path)
    for path in source.glob("*.pth.tar"):
        if path.name != "config.pth.tar":
            path.write_bytes(compress(pickle.dumps(read_plain(path))))
    assert_as_their_reader(store_of(source), "ml-dr")


def test_parameters_that_are_not_compressed_are_read_alike(tmp_path: Path) -> None:
    def named(params: list[Any]) -> dict[str, Any]:
        crop, flip = params
        return {
            "random_resized_crop": (crop, (1, 2, 3, 4)),
            "random_horizontal_flip": (flip, not flip),
            "to_tensor": ((), ()),
        }

    assert_as_their_reader(store_of(rewrite(copy_of("ml-dr", tmp_path), with_params(named))), "ml-dr")


def test_colours_and_erased_parts_are_flagged_and_their_entries_may_be_none(tmp_path: Path) -> None:
    source = enable(
        copy_of("ml-dr", tmp_path),
        random_erase={"p": 0.25},
        rand_augment={"enable": True, "p": 0.5},
        center_crop={"enable": False, "size": 224},
    )
    rewrite(source, with_params(lambda params: [*params, None, None]))
    assert_as_their_reader(store_of(source), "ml-dr")
    rewrite(source, with_params(lambda params: [*params[:2], [(5, 0.3), (0, 0.0)], (3, 4, 50, 60)]))
    assert all((image.flags | MIRRORED == MIRRORED | PHOTOMETRIC | ERASED).all() for image in read_all(store_of(source)))
    rewrite(source, with_params(lambda params: [*params[:2], None, (-1, -1, -1, -1)]))  # no rectangle fitted
    assert all((image.flags <= MIRRORED).all() for image in read_all(store_of(source)))


def test_set_with_mixing_is_read_where_no_crop_is_mixed_and_refused_where_one_is(tmp_path: Path) -> None:
    source = enable(copy_of("ml-dr", tmp_path), cutmix={"enable": True, "alpha": 1.0}, mixup={"alpha": 1.0})
    rewrite(source, with_params(lambda params: [None, *params, None, None]))
    assert_as_their_reader(store_of(source), "ml-dr")

    def cut_mixed(params: list[Any]) -> list[Any]:
        _, crop, flip, *_ = params
        return [7, [crop, (0, 0, 9, 9)], [flip, True], None, [np.float64(0.6), 3, 4, np.int64(70), 80]]

    rewrite(source, with_params(cut_mixed))
    message = refusal(lambda: read_all(store_of(source)))
    assert "0.pth.tar (2/2_10026.JPEG): a crop is mixed with image 7" in message and "cannot be imported" in message


@pytest.mark.parametrize("name", ["resize", "random_crop", "center_crop"])
def test_crops_of_a_resized_or_padded_image_are_refused(tmp_path: Path, name: str) -> None:
    source = enable(copy_of("ml-dr", tmp_path), **{name: {"size": 32}})
    assert f"config.pth.tar has {name} before the crop" in refusal(lambda: store_of(source))
    enable(source, random_resized_crop={"enable": False}, **{name: {"enable": False}})
    assert "config.pth.tar has no random_resized_crop" in refusal(lambda: store_of(source))


def test_probabilities_that_sum_to_more_than_1_leave_nothing_to_the_rest(tmp_path: Path) -> None:
    prob = ([0.2504, 0.75], [3, 7])
    source = rewrite(copy_of("ml-dr", tmp_path), lambda number, samples: (number, [s | {"prob": prob} for s in samples]))
    found = read_all(store_of(source))
    assert (found[0].rest == 0).all()
    assert targets_of(found, 8)[0, 0, [7, 3, 0]] == pytest.approx([0.75 / 1.0004, 0.2504 / 1.0004, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, s: (n + 1, s), "0.pth.tar is of image 1, not of 0"),
        (lambda n, s: s, "0.pth.tar: expected (INDEX, a list of dicts with params and prob)"),
        (lambda n, s: (n, []), "0.pth.tar: expected (INDEX, a list"),
        (with_params(lambda p: p[:1]), "do not have the parameters of random_resized_crop, random_horizontal_flip"),
        (with_params(lambda p: [None, *p]), "do not have the parameters of random_resized_crop"),
        (with_params(lambda p: [(*p[0][:3], 500), p[1]]), "is not inside the image of 97 x 131 pixels"),
        (lambda n, s: (n, [x | {"prob": (x["prob"][0][:9], x["prob"][1])} for x in s]), "as many probabilities as classes"),
        (lambda n, s: (n, [x | {"prob": (x["prob"][0], [10**30] * 10)} for x in s]), "an integer of 13 bytes"),
        (
            lambda n, s: (n, [x | {"prob": ([9.5] * 10, x["prob"][1])} for x in s]),
            "expected probabilities that sum to at most 1",
        ),
        (lambda n, s: (n, [*s, {"params": s[0]["params"], "prob": s[0]["params"]}]), "as many probabilities as classes"),
    ],
)
def test_record_that_cannot_be_right_is_refused_by_name(tmp_path: Path, change: Any, reason: str) -> None:
    source = rewrite(copy_of("ml-dr", tmp_path), change)
    assert reason in refusal(lambda: read_all(store_of(source)))


def test_store_of_other_images_is_refused(tmp_path: Path) -> None:
    source = copy_of("ml-dr", tmp_path)
    (source / "7.pth.tar").rename(source / "12.pth.tar")
    message = refusal(lambda: store_of(source))
    assert "1 of the 12 images have no labels there (first: 7.pth.tar, 5/5_18.JPEG)" in message
    assert "1 labels there have no image (first: 12.pth.tar)" in message
    (source / "config.pth.tar").unlink()
    assert "has no config.pth.tar" in refusal(lambda: store_of(source))
    assert "has no config.pth.tar" in refusal(lambda: MlDrStore(SAMPLES / "FKD", find_images(IMAGES), CLASSES))


def test_written_files_have_the_boxes_and_targets_of_the_samples_and_torch_loads_them_safely(tmp_path: Path) -> None:
    for number, image in enumerate(read_all(store_of(SAMPLES / "ml-dr"))):
        boxes = image.boxes.astype(int).tolist()
        content = ml_dr_file(number, boxes, (image.flags > 0).tolist(), image.classes.tolist(), image.probs.tolist())
        (tmp_path / f"{number}.pth.tar").write_bytes(content)
        assert torch.load(tmp_path / f"{number}.pth.tar", weights_only=True)[0] == number
    (tmp_path / "config.pth.tar").write_bytes(saved(ml_dr_config(8, 10, CLASSES, 224)))
    assert_as_their_reader(store_of(tmp_path), "ml-dr")
    ours, theirs = (read_plain(path / "config.pth.tar")["reinforce"] for path in (tmp_path, SAMPLES / "ml-dr"))
    assert all(theirs[name] == value for name, value in ours.items() if name != "image_augmentation")
