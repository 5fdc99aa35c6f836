"""import-labels: the format is found, what a store cannot say is asked for, and a classifier can check a few labels."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotate.config import AnnotateConfig
from annotate.interchange.allow_list import read_plain
from annotate.interchange.fkd import FKDStore, fkd_file
from annotate.interchange.import_labels import ImportOptions, find_format, import_labels
from pipeline.verify import verify
from relabel.images.sources import find_images
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions
from relabel.labels.store import LabelStore
from tests.annotate.interchange.crop_samples import CLASSES, IMAGES, SAMPLES, copy_of, expected, sample_images
from tests.conftest import THIN, Relabel, model_options, refusal

NAMED = {"FKD": "fkd", "TinyViT": "tiny-vit", "ml-dr": "ml-dr"}


def token_label(seed: int, permuted: bool = True) -> torch.Tensor:
    """[2, 5, 6, 6] float16 as TokenLabeling makes it: a view of what lies as [2, 6, 6, 5] in the file."""
    values, classes = torch.randn(6, 6, 11, generator=torch.Generator().manual_seed(seed)).topk(5)
    stored = torch.stack([values.half(), classes.half()]).permute(0, 3, 1, 2)
    return stored if permuted else stored.contiguous()


@pytest.fixture
def token_labels(tmp_path: Path) -> Path:
    for number, key in enumerate(sample_images().keys):
        path = (tmp_path / "tokens" / key).with_suffix(".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(token_label(number), path)
    return tmp_path / "tokens"


@pytest.mark.parametrize("name", NAMED)
def test_command_finds_the_format_and_makes_a_label_set_with_their_readers_targets(
    relabel_here: Relabel, tmp_path: Path, name: str
) -> None:
    labels = tmp_path / "labels"
    told = ["--unmixed"] if name == "TinyViT" else []
    command = ["import-labels", SAMPLES / name, "--labels", labels, "--images", IMAGES, "--num-classes=1000", "--workers=1"]
    done = relabel_here(*command, *told, "--shard-size=5")
    assert done.returncode == 0, done.stderr
    assert f"is read as a store of {NAMED[name]}" in done.stdout
    assert verify(labels).findings == []
    store = LabelStore.open(labels, LabelRegions)
    assert (store.manifest.kind, store.manifest.regions, store.manifest.shard_count) == ("imported", 8, 3)
    theirs = expected(name)
    regions = store.read(store.rows(theirs["names"].tolist()))
    pixels = regions.boxes.double() * torch.from_numpy(theirs["image_sizes"]).repeat(1, 2).unsqueeze(1)
    assert np.abs(pixels.numpy() - theirs["boxes"]).max() < 0.5
    assert np.array_equal(regions.flags.numpy(), theirs["mirrored"])
    difference = np.abs(regions.dense(CLASSES).softmax(2).numpy() - theirs["targets"])
    assert difference.max() < 2e-3 and difference.mean() < 1e-4
    files = {path.name: path.read_bytes() for path in labels.iterdir()}
    (labels / "shard-00001.h5").unlink()
    assert relabel_here(*command, *told, "--shard-size=5").returncode == 0
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == files


def test_token_labels_keep_rows_and_columns_and_say_what_they_cover(token_labels: Path, tmp_path: Path) -> None:
    assert find_format(token_labels) == "token-labeling"
    options = ImportOptions(num_classes=11, crop_pct=0.875, workers=0)
    import_labels(token_labels, tmp_path / "labels", IMAGES, options=options)
    store = LabelStore.open(tmp_path / "labels", LabelMaps)
    assert store.manifest.window == 0.875 and store.keys == list(sample_images().keys)
    for row in range(12):
        scores, classes = token_label(row)
        maps = store.read(torch.tensor([row]))
        assert torch.equal(maps.scores[0], scores) and torch.equal(maps.classes[0].half(), classes)
    assert "pass --crop-pct" in refusal(
        lambda: import_labels(token_labels, tmp_path / "b", IMAGES, options=ImportOptions(num_classes=11))
    )
    for number, path in enumerate(sorted(token_labels.glob("*/*.pt"))):
        torch.save(token_label(number, permuted=False), path)
    assert find_format(token_labels) == "relabel"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["FKD"], "fkd does not store the number of classes; pass --num-classes"),
        (["FKD", "--num-classes=1000", "--axes=xy"], "--axes is for relabel, not for fkd"),
        (["FKD", "--num-classes=1000", "--target=softmax"], "--target softmax: fkd has spread and renormalised"),
        (["FKD", "--num-classes=1000", "--crop-pct=1"], "--crop-pct is for token-labeling"),
        (["FKD", "--num-classes=1000", "--checkpoint=a.pth"], "are for --model; name one"),
        (["FKD", "--num-classes=3"], "stores 5 classes per crop, and --num-classes is 3"),
        (["FKD", "--num-classes=1000", "--format=ml-dr"], "has no config.pth.tar"),
        (["TinyViT", "--num-classes=1000"], "does not say whether its samples mix two images"),
        (["TinyViT", "--num-classes=1000", "--unmixed", "--crop-scale=0.9,0.1"], "--crop-scale 0.9,0.1: expected"),
        (["TinyViT", "--num-classes=1000", "--unmixed", "--hflip=1.5"], "--hflip 1.5: expected a share"),
        (["ml-dr", "--num-classes=1000", "--regions=0"], "--regions 0: expected at least 1"),
        (["images", "--num-classes=1000"], "has none of the files of FKD"),
        (["nowhere", "--num-classes=1000"], "nowhere does not exist"),
    ],
)
def test_what_is_missing_or_of_no_use_is_named_and_nothing_is_written(
    relabel_here: Relabel, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    source, *options = arguments
    failed = relabel_here(
        *("import-labels", SAMPLES / source, "--labels", tmp_path / "labels", "--images", IMAGES, "--workers=0", *options)
    )
    assert failed.returncode == 1 and reason in failed.stderr
    assert not list(tmp_path.glob("labels/*.h5"))


def test_regions_without_images_ask_for_them(tmp_path: Path) -> None:
    message = refusal(lambda: import_labels(SAMPLES / "FKD", tmp_path / "a", None, options=ImportOptions(CLASSES)))
    assert "fkd needs the images that the store was made from; pass --images" in message


def test_invalid_files_are_all_listed_and_a_rerun_keeps_finished_shards(tmp_path: Path) -> None:
    source, options = copy_of("ml-dr", tmp_path), ImportOptions(CLASSES, shard_size=5, workers=1)
    spoilt = [source / f"{number}.pth.tar" for number in (6, 8)]
    whole = [path.read_bytes() for path in spoilt]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:200])
    message = refusal(lambda: import_labels(source, tmp_path / "labels", IMAGES, options=options))
    assert "2 invalid images in shard 1 of 3" in message and all(str(path) in message for path in spoilt)
    first = (tmp_path / "labels" / "shard-00000.h5").stat().st_mtime_ns
    for path, content in zip(spoilt, whole, strict=True):
        path.write_bytes(content)
    import_labels(source, tmp_path / "labels", IMAGES, options=options)
    assert (tmp_path / "labels" / "shard-00000.h5").stat().st_mtime_ns == first
    assert len(LabelStore.open(tmp_path / "labels", LabelRegions).check()) == 12


def test_image_with_more_crops_than_the_first_ones_asks_for_their_number(tmp_path: Path) -> None:
    source = copy_of("ml-dr", tmp_path)
    number, samples = read_plain(source / "7.pth.tar")
    torch.save((number, samples + samples[:2]), source / "7.pth.tar")
    options = ImportOptions(CLASSES, workers=0)
    message = refusal(lambda: import_labels(source, tmp_path / "labels", IMAGES, options=options))
    assert "5/5_18.JPEG has 10 crops, more than the 8 of the files looked at first; pass --regions 10" in message
    import_labels(source, tmp_path / "more", IMAGES, options=ImportOptions(CLASSES, regions=10, workers=0))
    counts = LabelStore.open(tmp_path / "more", LabelRegions).region_counts()
    assert counts.tolist() == [8] * 7 + [10] + [8] * 4


def test_image_that_has_changed_its_size_is_named_where_boxes_are_pixels(tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "images")
    with sample_images().open_image(4) as encoded:
        image, _ = encoded.decode()
    image.resize((100, 66)).save(tmp_path / "images" / sample_images().keys[4])
    message = refusal(
        lambda: import_labels(
            SAMPLES / "ml-dr", tmp_path / "labels", tmp_path / "images", options=ImportOptions(CLASSES, workers=0)
        )
    )
    assert "4.pth.tar (3/3_18.JPEG): box" in message and "not inside the image of 100 x 66 pixels" in message


@pytest.fixture
def own_store(
    relabel_here: Relabel, make_checkpoint: Callable[[int], Path], tmp_path: Path
) -> tuple[Path, Path, AnnotateConfig]:
    """Images of similar patches, FKD's store of a tiny classifier's answers to their crops, and that classifier."""
    rng = np.random.default_rng(0)
    images = tmp_path / "noise"
    for i in range(24):
        folder = images / ("cat", "dog", "eel")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shades = rng.integers(20, 236, size=3) + rng.integers(-20, 20, size=(3, 3, 3))  # alike, but not the same everywhere
        colours = Image.fromarray(shades.astype(np.uint8))
        colours.resize((90, 72), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    checkpoint = make_checkpoint(1)
    model = ["--model=resnet10t", *model_options(THIN), f"--checkpoint={checkpoint}", "--num-classes=3", "--input-size=48"]
    regions = ["--regions=6", "--topk=2", "--crop-scale=0.05,0.2", "--device=cpu", "--workers=0"]
    done = relabel_here("annotate", images, "--labels", tmp_path / "truth", *model, *regions)
    assert done.returncode == 0, done.stderr
    store = LabelStore.open(tmp_path / "truth", LabelRegions)
    for row, key in enumerate(store.keys):
        r = store.read(torch.tensor([row]))
        probs = r.dense(3).softmax(2)[0].gather(1, r.classes[0].long())
        path = (tmp_path / "fkd" / key).with_suffix(".tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            fkd_file(r.boxes[0].double().numpy(), (r.flags[0] > 0).numpy(), r.classes[0].numpy(), probs.numpy())
        )
    kwargs: dict[str, Any] = dict(THIN)
    return images, tmp_path / "fkd", AnnotateConfig("resnet10t", kwargs, checkpoint, 3, input_size=(48, 48))


def test_classifier_confirms_its_own_store_and_refuses_one_of_another_order_or_of_other_crops(
    own_store: tuple[Path, Path, AnnotateConfig], tmp_path: Path, caplog: Any
) -> None:
    images, source, teacher = own_store
    options = ImportOptions(3, workers=0, device="cpu")
    import_labels(source, tmp_path / "labels", images, "fkd", options, teacher)
    assert "resnet10t's answers differ from their crops' labels by 0.00" in caplog.text
    assert "means over 24 images" in caplog.text

    found = {path: path.read_bytes() for path in sorted(source.glob("*/*.tar"))}
    for path, content in zip(found, [*list(found.values())[5:], *list(found.values())[:5]], strict=True):
        path.write_bytes(content)
    message = refusal(lambda: import_labels(source, tmp_path / "b", images, "fkd", options, teacher))
    assert message.startswith("the labels do not suit their images") and not (tmp_path / "b").exists()

    for path, content in found.items():
        path.write_bytes(content)
        coords, flips, labels = (entry.array for entry in read_plain(path))
        torch.save([coords, flips, labels[[1, 2, 3, 4, 5, 0]].copy()], path)
    message = refusal(lambda: import_labels(source, tmp_path / "c", images, "fkd", options, teacher))
    assert message.startswith("the labels suit their images, but not their crops")
    assert FKDStore(source, find_images(images), 3).regions == 6
