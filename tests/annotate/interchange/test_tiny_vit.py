"""TinyViT's records and seeds give the crops and targets that TinyViT's own reader gives; damaged ones are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from annotate.interchange.image_folder import image_folder_order
from annotate.interchange.tiny_vit import TinyViTStore, draw_crop
from relabel.images.sources import find_images
from tests.annotate.interchange.crop_samples import (
    CLASSES,
    IMAGES,
    SAMPLES,
    assert_as_their_reader,
    copy_of,
    expected,
    read_all,
    sample_images,
    sizes,
)
from tests.conftest import refusal

RECORD = 4 + 4 * 10  # bytes


def store_of(source: Path, num_classes: int = CLASSES) -> TinyViTStore:
    return TinyViTStore(source, sample_images(), num_classes)


def test_crops_and_targets_are_those_of_tinyvits_own_reader() -> None:
    assert_as_their_reader(store_of(SAMPLES / "TinyViT"), "TinyViT")


def test_numpys_random_numbers_are_still_those_that_tinyvit_drew() -> None:
    theirs = expected("TinyViT")
    for image, size in enumerate(sizes()):
        for epoch, seed in enumerate(theirs["seeds"][image].tolist()):
            box, mirrored = draw_crop(seed, size, (0.08, 1), (3 / 4, 4 / 3), 0.5)
            assert list(box) == theirs["boxes"][image, epoch].tolist()
            assert mirrored == theirs["mirrored"][image, epoch]
    numbers = np.random.Generator(np.random.PCG64(12345)).random(2).tolist()
    assert numbers == [0.22733602246716966, 0.31675833970975287]


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 10), (193, 0, 206, 10)),  # far too wide: the middle, 10 * 4 / 3 wide
        ((10, 400), (0, 193, 10, 206)),
    ],
)
def test_image_that_no_crop_fits_gives_its_middle_without_a_draw(size: tuple[int, int], box: tuple[int, ...]) -> None:
    draws = np.random.Generator(np.random.PCG64(3)).random(21)
    assert draw_crop(3, size, (0.9, 1), (3 / 4, 4 / 3), 0.5) == (box, bool(draws[20] < 0.5))


def test_other_crop_settings_give_other_crops() -> None:
    width, height = 200, 133
    for seed in range(50):
        (x0, y0, x1, y1), mirrored = draw_crop(seed, (width, height), (0.5, 0.6), (1, 1), 0)
        assert 0.49 < (x1 - x0) * (y1 - y0) / (width * height) < 0.61 and x1 - x0 == y1 - y0 and not mirrored


def epoch(source: Path, number: int = 0) -> Path:
    return source / f"logits_top10_epoch{number}"


def test_image_of_two_ranks_takes_the_lower_ones_crop(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    folder = epoch(source)
    values, keys = ((folder / f"rank0-{name}") for name in ("values.bin", "keys.txt"))
    (folder / "rank1-values.bin").write_bytes((folder / "rank1-values.bin").read_bytes() + values.read_bytes()[:RECORD])
    first = keys.read_text().split()[0]
    with (folder / "rank1-keys.txt").open("a") as file:
        file.write(f"{first}\n")
    other = np.frombuffer(values.read_bytes()[RECORD : 2 * RECORD], np.uint8)
    content = bytearray((folder / "rank1-values.bin").read_bytes())
    content[-RECORD:] = other.tobytes()
    (folder / "rank1-values.bin").write_bytes(content)
    assert_as_their_reader(store_of(source), "TinyViT")


def test_missing_epoch_is_a_missing_crop_and_a_missing_image_of_an_epoch_too(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    shutil.rmtree(epoch(source, 3))
    values, keys = ((epoch(source, 5) / f"rank0-{name}") for name in ("values.bin", "keys.txt"))
    gone = int(keys.read_text().split()[-1])
    values.write_bytes(values.read_bytes()[:-RECORD])
    keys.write_text("\n".join(keys.read_text().split()[:-1]))
    found = read_all(store_of(source))
    assert store_of(source).regions == 7
    for i, image in enumerate(found):
        kept = [e for e in range(8) if e != 3 and not (e == 5 and i == gone)]
        assert image.boxes.tolist() == expected("TinyViT")["boxes"][i, kept].tolist()


def test_stems_are_keys_too(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    names = [Path(key).stem for key in sample_images().keys]
    for path in source.rglob("*-keys.txt"):
        path.write_text("".join(f"{names[int(number)]}\n" for number in path.read_text().split()))
    assert_as_their_reader(store_of(source), "TinyViT")
    (epoch(source) / "rank0-keys.txt").write_text("2_18\n7_1\n2_293\n8_18\n3_18\n5_18\n")
    assert "1 keys are no images" in refusal(lambda: store_of(source))


def test_numbers_count_folders_by_name_and_then_files_in_the_order_of_bytes(tmp_path: Path) -> None:
    """As strings, keys would put "b-c/..." before "b/..."; as numbers, 18 comes before 10026."""
    for name in ("b/18.JPEG", "b/10026.JPEG", "b-c/1.png", "a/2.webp", "B/x.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = find_images(tmp_path)
    ordered = [images.keys[i] for i in image_folder_order(images)]
    assert ordered == ["B/x.JPEG", "a/2.webp", "b/10026.JPEG", "b/18.JPEG", "b-c/1.png"]
    (tmp_path / "a" / "3.gif").touch()
    assert "a/3.gif has an ending that" in refusal(lambda: image_folder_order(find_images(tmp_path)))


def test_store_of_other_images_or_of_fewer_is_refused(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    shutil.copytree(IMAGES, tmp_path / "images")
    (tmp_path / "images" / "3" / "3_18.JPEG").unlink()
    fewer = find_images(tmp_path / "images")
    message = refusal(lambda: TinyViTStore(source, fewer, CLASSES))
    assert "has image number 11, and" in message and "has 11 images" in message
    (tmp_path / "images" / "3" / "3_19.JPEG").write_bytes((IMAGES / "3/3_18.JPEG").read_bytes())
    (tmp_path / "images" / "9").mkdir()
    (tmp_path / "images" / "9" / "9_1.JPEG").write_bytes((IMAGES / "3/3_18.JPEG").read_bytes())
    more = find_images(tmp_path / "images")
    assert "1 of the 13 images have no labels there (first: 9/9_1.JPEG)" in refusal(
        lambda: TinyViTStore(source, more, CLASSES)
    )


def test_torn_files_are_named(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    values = epoch(source, 2) / "rank1-values.bin"
    values.write_bytes(values.read_bytes()[:-1])
    assert f"{values} has 263 bytes, and its 6 keys with 10 classes each need 264" in refusal(lambda: store_of(source))
    values.unlink()
    assert "has 1 files rank*-values.bin and 2 rank*-keys.txt" in refusal(lambda: store_of(source))
    assert "has no folders logits_top" in refusal(lambda: store_of(SAMPLES / "FKD"))
    shutil.copytree(epoch(source), source / "logits_top5_epoch9")
    assert "the top 5 and with the top 10" in refusal(lambda: store_of(source))


def test_record_that_cannot_be_right_is_refused_with_its_image(tmp_path: Path) -> None:
    source = copy_of("TinyViT", tmp_path)
    values = epoch(source, 2) / "rank1-values.bin"
    key = sample_images().keys[int(values.with_name("rank1-keys.txt").read_text().split()[1])]
    content = bytearray(values.read_bytes())
    content[RECORD + 4 : RECORD + 6] = np.int16(-3).tobytes()
    values.write_bytes(content)
    message = refusal(lambda: read_all(store_of(source)))
    assert f"image {key}: it has class -3" in message
    content[RECORD : RECORD + 4] = np.int32(-1).tobytes()
    values.write_bytes(content)
    assert f"image {key}: a seed is -1" in refusal(lambda: read_all(store_of(source)))
    assert "it has class " in refusal(lambda: read_all(store_of(SAMPLES / "TinyViT", 500)))
