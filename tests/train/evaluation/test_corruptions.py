"""Corrupted images: laid out as in ImageNet-C, equal for equal seeds, worse with every severity, and checked by hand."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from relabel.images.decoding import read_rgb
from relabel.images.sources import find_images
from relabel.runtime.errors import InputError
from train.evaluation import corruptions
from train.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corruption, brightness, write_corrupted


@pytest.fixture
def image() -> Image.Image:
    """A lopsided smooth picture with some grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3)).astype(np.uint8)).resize((72, 44), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (44, 72, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_severity_changes_the_image_more_than_the_one_before(image: Image.Image, corruption: Corruption) -> None:
    original = np.asarray(image).astype(float)
    distances = []
    for severity in SEVERITIES:
        corrupted = corruption(image, severity, np.random.default_rng(0))
        assert corrupted.size == image.size and corrupted.mode == "RGB"
        distances.append(float(((np.asarray(corrupted) - original) ** 2).mean()))
    assert distances[0] > 0
    assert all(a < b for a, b in itertools.pairwise(distances)), distances


def plain_image(rgb: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (64, 64), rgb)


def test_noise_has_the_stated_strength() -> None:
    grey = plain_image((127, 127, 127))
    gaussian = np.asarray(corruptions.gaussian_noise(grey, 2, np.random.default_rng(0))) / 255
    assert gaussian.std() == pytest.approx(0.08, rel=0.03)
    shot = np.asarray(corruptions.shot_noise(grey, 2, np.random.default_rng(0))) / 255
    assert shot.std() == pytest.approx((0.498 / 100) ** 0.5, rel=0.03)  # Poisson: variance = mean / photons
    impulse = np.asarray(corruptions.impulse_noise(grey, 5, np.random.default_rng(0)))
    assert (impulse == 0).mean() == pytest.approx(0.07, abs=0.007) and (impulse == 255).mean() == pytest.approx(
        0.07, abs=0.007
    )


def test_brightness_raises_hsv_value_and_keeps_hue_and_saturation() -> None:
    bright = np.asarray(corruptions.brightness(plain_image((100, 50, 0)), 1, np.random.default_rng(0)))[0, 0]
    assert bright.tolist() == pytest.approx([125.5, 62.75, 0], abs=1)  # value 100 + 25.5, the others in proportion
    assert np.asarray(corruptions.brightness(plain_image((0, 0, 0)), 2, np.random.default_rng(0)))[0, 0].tolist() == [51] * 3


def test_contrast_shrinks_towards_the_mean_of_each_channel() -> None:
    halves = plain_image((200, 100, 0))
    halves.paste((100, 100, 0), (0, 0, 32, 64))
    flat = np.asarray(corruptions.contrast(halves, 4, np.random.default_rng(0)))
    assert flat[0, 0].tolist() == pytest.approx([145, 100, 0], abs=1) and flat[0, 63].tolist() == pytest.approx(
        [155, 100, 0], abs=1
    )


def test_corrupted_folder_has_the_same_keys_under_every_corruption_and_severity(image_folder: Path, tmp_path: Path) -> None:
    assert write_corrupted(image_folder, tmp_path / "out") == 9 * 8 * 5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(c.__name__ for c in CORRUPTIONS)
    source = find_images(image_folder)
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            folder = find_images(tmp_path / "out" / corruption.__name__ / str(severity))
            assert folder.keys == source.keys
    key = source.keys[4]
    written = read_rgb(tmp_path / "out" / "contrast" / "3" / key)
    expected = corruptions.contrast(read_rgb(image_folder / key), 3, np.random.default_rng(0))
    assert np.abs(np.asarray(written).astype(int) - np.asarray(expected)).mean() < 2, "saving changes nearly nothing"


def test_same_seed_gives_the_same_bytes_whatever_other_images_there_are(image_folder: Path, tmp_path: Path) -> None:
    write_corrupted(image_folder, tmp_path / "a")
    (image_folder / "dog" / "dog_0.JPEG").unlink()
    shutil.copy(image_folder / "dog" / "dog_3.JPEG", image_folder / "dog" / "dog_9.JPEG")
    write_corrupted(image_folder, tmp_path / "b")
    write_corrupted(image_folder, tmp_path / "c", seed=1)
    file = Path("gaussian_noise/2/dog/dog_3.JPEG")
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()
    assert (tmp_path / "b" / file).read_bytes() != (tmp_path / "b" / file).with_name("dog_9.JPEG").read_bytes()


def test_copies_of_other_formats_lose_nothing_but_what_the_corruption_takes(image_folder: Path, tmp_path: Path) -> None:
    original = Image.open(image_folder / "cat" / "cat_0.JPEG")
    original.save(image_folder / "cat" / "cat_1.webp", lossless=True)
    original.quantize(8).save(image_folder / "cat" / "cat_2.gif")
    write_corrupted(image_folder, tmp_path / "out")
    copies = find_images(tmp_path / "out" / "brightness" / "1")
    for name in ("cat_1.webp", "cat_2.gif"):
        corrupted = brightness(read_rgb(image_folder / "cat" / name), 1, np.random.default_rng(0))
        assert copies.read(copies.index(f"cat/{name}")).tobytes() == corrupted.tobytes()


def test_command_rejects_folders_that_would_be_overwritten_or_become_a_class(
    image_folder: Path, tmp_path: Path, relabel_here: Callable[..., "CompletedProcess[str]"]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    finished = relabel_here("corrupt", image_folder, tmp_path / "mine")
    assert finished.returncode == 1 and "is not empty" in finished.stderr
    with pytest.raises(InputError, match="where it would count as a class"):
        write_corrupted(image_folder, image_folder / "corrupted")
    assert relabel_here("corrupt", image_folder, tmp_path / "out").stdout == f"{tmp_path / 'out'}: 360 images\n"
