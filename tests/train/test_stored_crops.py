"""Training on stored regions: the crops that were stored, with the answers that were stored for them."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import MIRRORED, PHOTOMETRIC, LabelRegions, window_of
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from tests import processes
from tests.conftest import free_port, refusal
from tests.label_sets import write_label_set
from tests.pipeline.test_verify import rewrite
from tests.train.runs import (
    DROPPED,
    GROUP_NORM,
    assert_same_weights,
    interrupted_at_image,
    run_training,
    train_as_rank,
)
from tests.train.runs import recipe as scenes_recipe
from train.augment import augment
from train.crops import Crops, RandomCrops
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe
from train.run_dir.metrics import read_metrics
from train.stored_crops import RANDOM, StoredCrops, region_numbers
from train.supervision import LabelMapTargets, RegionTargets
from train.training_set import open_training_set

N, K, CLASSES = 5, 2, 3
WIDTH, HEIGHT = 30, 24


def random_regions(images: int, counts: list[int] | None = None) -> LabelRegions:
    """N boxes of whole pixels per image, each with its own answer; images have `counts` of them."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(0, 12, (images, N, 2), generator=generator)
    boxes = torch.cat([left, left + torch.randint(4, 12, (images, N, 2), generator=generator)], 2)
    log_probs = torch.randn(images, N, CLASSES, generator=generator).mul(2).log_softmax(2)
    scores, classes = log_probs.topk(K, dim=2)
    tail = log_probs.sum(2) - scores.sum(2)  # a single class is left out
    largest = scores[:, :, :1]
    flags = torch.randint(0, 2, (images, N), generator=generator) * MIRRORED
    in_fractions = boxes.double() / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    count = torch.tensor(counts or [N] * images)
    return LabelRegions(in_fractions, flags, scores - largest, classes, tail - largest[:, :, 0], count)


@pytest.fixture
def images(data: Path) -> ImageSet:
    return find_images(data / "train")


@pytest.fixture
def labels(images: ImageSet, tmp_path: Path) -> Path:
    write_label_set(tmp_path / "regions", images.keys, random_regions(len(images)), CLASSES, shard_size=10)
    return tmp_path / "regions"


@pytest.fixture
def store(labels: Path) -> LabelStore[LabelRegions]:
    return LabelStore.open(labels, LabelRegions)


def recipe(*settings: str) -> Recipe:
    return load_recipe("regions", ["image_size=16", "batch_size=8", "colour_jitter=[0,0,0]", "lighting=0", *settings])


def crops_of(
    images: ImageSet, store: LabelStore[LabelRegions], settings: Recipe, places: list[tuple[int, int]], **options: bool
) -> Crops:
    """The crops of (epoch, index) places, with their answers."""
    stored = StoredCrops(store, torch.arange(len(images)), settings, options.get("random_too", False))
    dataset = RandomCrops(images, settings, None, stored, options.get("with_answers", True))
    return dataset[places]


def test_crops_show_the_stored_boxes_mirrored_as_stored(images: ImageSet, store: LabelStore[LabelRegions]) -> None:
    settings = recipe()
    crops = crops_of(images, store, settings, [(0, 3), (0, 20)])
    seen = augment(crops.images, crops.mirrored, crops.draws, settings)
    whole = random_regions(len(images))
    assert crops.numbers is not None and len(crops.numbers) == 8
    for crop, index, number in zip(seen, crops.indices.tolist(), crops.numbers.tolist(), strict=True):
        edges = (whole.boxes[index, number] * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).round().int().tolist()
        image = Image.open(str(images.open(images.locations[index]))).convert("RGB")
        expected = np.asarray(image.crop(edges).resize((16, 16), Image.Resampling.BILINEAR))
        if whole.flags[index, number]:
            expected = expected[:, ::-1]
        assert np.array_equal(crop.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("resident", [False, True])
def test_targets_are_the_stored_answers(images: ImageSet, store: LabelStore[LabelRegions], resident: bool) -> None:
    settings = recipe("temperature=2")
    crops = crops_of(images, store, settings, [(1, 3), (1, 20)], with_answers=not resident)
    targets = RegionTargets(store.to("cpu", resident), torch.arange(len(images)), settings).of_crops(crops, None)
    whole = random_regions(len(images))
    for target, index, number in zip(targets, crops.indices.tolist(), crops.numbers.tolist(), strict=True):  # type: ignore[union-attr]
        logits = torch.full((CLASSES,), float(whole.tail[index, number]))
        logits[whole.classes[index, number]] = whole.scores[index, number]
        torch.testing.assert_close(target, (logits / 2).softmax(0), atol=1e-3, rtol=0)


def test_every_region_is_seen_equally_often_in_a_random_order() -> None:
    seen = [number for visit in range(15) for number in region_numbers(0, 7, N, range(visit * 4, visit * 4 + 4))]
    assert Counter(seen) == dict.fromkeys(range(N), 12)
    assert all(sorted(seen[start : start + N]) == list(range(N)) for start in range(0, 60, N))
    assert seen[:N] != seen[N : 2 * N]
    assert region_numbers(0, 8, N, range(20)) != region_numbers(0, 7, N, range(20)) != region_numbers(1, 7, N, range(20))
    assert region_numbers(0, 7, 0, range(3)) == [RANDOM] * 3


def test_random_crops_join_the_regions_where_there_are_maps(
    images: ImageSet, store: LabelStore[LabelRegions], data: Path
) -> None:
    settings = recipe("region_share=0.25")
    places = [(0, index) for index in range(len(images))]
    crops = crops_of(images, store, settings, places, random_too=True)
    assert crops.numbers is not None
    random = crops.numbers == RANDOM
    assert 0.6 < float(random.float().mean()) < 0.9
    maps = LabelStore.open(data / "labels", LabelMaps)
    rows = torch.arange(len(images))
    targets = RegionTargets(store, rows, settings, LabelMapTargets(maps, rows, settings)).of_crops(crops, None)
    pooled = label_pool(maps.gather(crops.indices), crops.boxes, CLASSES).softmax(1)
    torch.testing.assert_close(targets[random], pooled[random])
    answers = RegionTargets(store, rows, settings).of_crops(crops, None)
    torch.testing.assert_close(targets[~random], answers[~random])
    again = crops_of(images, store, settings, places, random_too=True)
    assert all(torch.equal(a, b) for a, b in zip(crops.tensors(), again.tensors(), strict=True))


def test_images_without_regions_need_maps(images: ImageSet, data: Path, tmp_path: Path) -> None:
    counts = [0 if index == 4 else N - index % 3 for index in range(len(images))]
    write_label_set(tmp_path / "few", images.keys, random_regions(len(images), counts), CLASSES)
    options = TrainOptions(labels=tmp_path / "few")
    said = refusal(lambda: open_training_set(data / "train", recipe(), options, 1))
    assert said.startswith(
        f"1 of 33 images have no regions in {tmp_path / 'few'} (first: {images.keys[4]}); give label maps"
    )
    with_maps = open_training_set(data / "train", recipe(), dataclasses.replace(options, maps=data / "labels"), 1)
    assert with_maps.maps is not None
    few = LabelStore.open(tmp_path / "few", LabelRegions)
    crops = crops_of(images, few, recipe("region_share=1"), [(0, 4), (0, 5)], random_too=True)
    assert crops.numbers is not None and crops.numbers.tolist()[:4] == [RANDOM] * 4 and RANDOM not in crops.numbers[4:]


def test_changed_colours_are_told(images: ImageSet, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    regions = random_regions(len(images))
    regions.flags[9, 1] |= PHOTOMETRIC
    write_label_set(tmp_path / "regions", images.keys, regions, CLASSES)
    open_training_set(data / "train", recipe(), TrainOptions(labels=tmp_path / "regions"), 1)
    assert "the colours of some crops were changed" in caplog.text


def test_label_set_of_the_other_kind_is_refused_with_a_recipe_that_fits(labels: Path, data: Path) -> None:
    def opened(settings: Recipe, labels: Path | None = None, maps: Path | None = None) -> str:
        return refusal(lambda: open_training_set(data / "train", settings, TrainOptions(labels=labels, maps=maps), 1))

    assert "holds label maps, but target 'regions' reads regions; use another recipe, such as relabel" in opened(
        recipe(), labels=data / "labels"
    )
    assert "holds regions, but target 'localized-multi' reads label maps; use the recipe regions" in opened(
        scenes_recipe(), labels=labels
    )
    assert "a ViT's patch tokens can only be labelled by maps" in opened(
        scenes_recipe("relabel", "token_weight=0.5"), labels=labels
    )
    assert "holds regions; expected label maps here" in opened(recipe(), labels=labels, maps=labels)
    assert "--maps joins label maps to regions" in opened(scenes_recipe(), labels=data / "labels", maps=data / "labels")
    assert "target 'regions' reads regions; give a label set with --labels" in opened(recipe())


def test_tokens_and_regions_of_pasted_crops_have_no_stored_answer() -> None:
    for setting in ("token_weight=0.5", "cutmix=1"):
        if setting == "cutmix=1":
            assert recipe(setting, "cutmix_target=area").cutmix == 1
            setting = "cutmix_target=regions"
        with pytest.raises(InputError, match=r"is only for localized targets; target = 'regions' is not one"):
            recipe(setting, "cutmix=1")


def short(*settings: str) -> Recipe:
    return recipe("eval_size=16", "epochs=3", "warmup_epochs=1", "crops_per_image=2", *settings)


@pytest.mark.slow
def test_interrupted_training_on_regions_ends_in_the_same_weights(data: Path, labels: Path, tmp_path: Path) -> None:
    def run(name: str, **options: object) -> None:
        run_training(data, tmp_path / name, short("cutmix=0.5"), labels=labels, model_kwargs=DROPPED, **options)

    run("whole")
    with interrupted_at_image(19):
        run("parts")
    run("parts", resume=True, workers=2)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_two_processes_see_the_crops_of_one(data: Path, labels: Path, tmp_path: Path) -> None:
    port = free_port()
    options: dict[str, Any] = {"labels": labels, "maps": data / "labels", "model_kwargs": GROUP_NORM}
    shared = [processes.start(train_as_rank, n, port, data, tmp_path / "two", short(), **options) for n in range(2)]
    assert processes.exit_codes(shared) == [0, 0]
    run_training(data, tmp_path / "one", short(), **options)
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in two], abs=1e-4)


def test_images_that_the_set_does_not_have_get_random_crops(images: ImageSet, data: Path, tmp_path: Path) -> None:
    part = random_regions(len(images)).part(slice(1, None))
    write_label_set(tmp_path / "part", images.keys[1:], part, CLASSES)
    options = TrainOptions(labels=tmp_path / "part", maps=data / "labels")
    opened = open_training_set(data / "train", recipe(), options, 1)
    assert opened.row_of_image is not None and opened.row_of_image.tolist() == list(range(-1, len(images) - 1))
    store = LabelStore.open(tmp_path / "part", LabelRegions)
    stored = StoredCrops(store, opened.row_of_image, recipe("region_share=1"), random_too=True)
    crops = RandomCrops(images, recipe("region_share=1"), None, stored, True)[[(0, 0), (0, 1)]]
    assert crops.numbers is not None and crops.numbers.tolist()[:4] == [RANDOM] * 4 and RANDOM not in crops.numbers[4:]
    said = refusal(lambda: open_training_set(data / "train", recipe(), dataclasses.replace(options, maps=None), 1))
    assert "1 of 33 images" in said and "have no regions" in said


def test_settings_that_do_not_reach_stored_crops_are_named(
    images: ImageSet, labels: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_training_set(data / "train", recipe(), TrainOptions(labels=labels), 1)
    assert "cut and mirrored as they were stored" not in caplog.text
    settings = recipe("hflip=0", "crop_scale=[0.5,1]", "crops_per_image=8")
    open_training_set(data / "train", settings, TrainOptions(labels=labels), 1)
    assert "crop_scale, hflip: regions are cut and mirrored as they were stored" in caplog.text
    assert "crops_per_image = 8, but some images have only 5 regions" in caplog.text


def test_more_regions_than_a_row_has_room_for_are_refused_when_training_starts(labels: Path, data: Path) -> None:
    rewrite(labels, 0, lambda file: file["count"].__setitem__(3, N + 1))
    said = refusal(lambda: open_training_set(data / "train", recipe(), TrainOptions(labels=labels), 1))
    assert f"shard-00000.h5: an image has {N + 1} regions, the manifest has {N}" in said


def test_mean_target_is_the_mean_of_the_dense_targets() -> None:
    regions = random_regions(4, [N, 0, 1, 3])
    targets = regions.dense(CLASSES).softmax(2)
    expected = torch.stack(
        [t[:n].mean(0) if n else torch.zeros(CLASSES) for t, n in zip(targets, (N, 0, 1, 3), strict=True)]
    )
    torch.testing.assert_close(regions.mean_target(CLASSES), expected)


def test_box_of_a_tiny_copy_keeps_a_pixel() -> None:
    assert window_of(torch.tensor([0.1, 0.1, 0.4, 0.4]), 1, 1) == (0, 0, 1, 1)
    assert window_of(torch.tensor([0.8, 0.4, 0.95, 0.6]), 2, 2) == (1, 1, 2, 2)


@pytest.mark.slow
def test_run_with_maps_continues_after_they_have_moved(data: Path, labels: Path, tmp_path: Path) -> None:
    maps = shutil.copytree(data / "labels", tmp_path / "moved")
    with interrupted_at_image(9):
        run_training(data, tmp_path / "run", short(), labels=labels, maps=data / "labels")
    run_training(data, tmp_path / "run", short(), labels=labels, maps=maps, resume=True)
