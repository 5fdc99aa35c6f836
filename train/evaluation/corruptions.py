"""Corrupted copies of an image folder, laid out as ImageNet-C is: OUT/CORRUPTION/SEVERITY/CLASS/*.

Eight of the corruptions of Hendrycks & Dietterich 2019, those that need only numpy and Pillow, with the strengths that the
authors chose for images of 64 pixels (Tiny ImageNet-C, github.com/hendrycks/robustness, make_tinyimagenet_c.py). Strengths
in pixels, such as a blur's, are weak on larger images.

An image's noise depends only on (seed, corruption, severity, key): the same seed gives the same bytes, in any order.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from relabel.images.sources import check_outside, find_images
from relabel.runtime.files import atomic_folder

SEVERITIES = (1, 2, 3, 4, 5)
QUALITY = 95  # of JPEG files; above ImageNet-C's 85, so that saving hardly adds to the corruption

Corruption = Callable[[Image.Image, int, np.random.Generator], Image.Image]  # the int is a severity


def from_unit(pixels: np.ndarray) -> Image.Image:
    """(rows, columns, 3) values, clipped to [0, 1]."""
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


def unit(image: Image.Image) -> np.ndarray:
    """(rows, columns, 3) float64 in [0, 1]."""
    return np.asarray(image) / 255.0


def gaussian_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    scale = (0.04, 0.08, 0.12, 0.15, 0.18)[severity - 1]
    return from_unit(unit(image) + rng.normal(0, scale, (image.height, image.width, 3)))


def shot_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    photons = (250, 100, 50, 30, 15)[severity - 1]  # of a white pixel
    return from_unit(rng.poisson(unit(image) * photons) / photons)


def impulse_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> Image.Image:
    share = (0.01, 0.02, 0.05, 0.08, 0.14)[severity - 1]  # of the values; half of them become black, half white
    drawn = rng.random((image.height, image.width, 3))
    return from_unit(np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, unit(image))))


def gaussian_blur(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur((0.5, 0.75, 1, 1.25, 1.5)[severity - 1]))


def brightness(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    """Raises the value of HSV, the largest of a pixel's three channels, and the others in proportion."""
    pixels = unit(image)
    value = pixels.max(2, keepdims=True)
    raised = (value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]).clip(max=1)
    return from_unit(np.where(value > 0, pixels / np.where(value > 0, value, 1) * raised, raised))


def contrast(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    pixels = unit(image)
    mean = pixels.mean((0, 1))
    return from_unit((pixels - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean)


def pixelate(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    share = (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]  # of the pixels along each side
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def jpeg_compression(image: Image.Image, severity: int, _: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=(65, 58, 50, 40, 25)[severity - 1])
    return Image.open(buffer).convert("RGB")


CORRUPTIONS: tuple[Corruption, ...] = (
    gaussian_noise,
    shot_noise,
    impulse_noise,
    gaussian_blur,
    brightness,
    contrast,
    pixelate,
    jpeg_compression,
)


def write_corrupted(images: Path | str, folder: Path, seed: int = 0) -> int:
    """Write every image of an image folder under every corruption and severity, by its key. Returns the number of files.

    Raises:
        InputError: `images` is not a source of images, `folder` is not empty or is inside `images`, or the disk cannot be
            written.
    """
    check_outside(folder, images, "the folder")
    source = find_images(images)
    with atomic_folder(folder) as unfinished:
        for corruption in CORRUPTIONS:
            for severity in SEVERITIES:
                for name in source.classes:
                    (unfinished / corruption.__name__ / str(severity) / name).mkdir(parents=True)
        for index, key in enumerate(tqdm(source.keys, desc="corrupt", unit="img", disable=None)):
            image = source.read(index)
            for number, corruption in enumerate(CORRUPTIONS):
                for severity in SEVERITIES:
                    rng = np.random.default_rng([seed, number, severity, zlib.crc32(key.encode())])
                    save_image(corruption(image, severity, rng), unfinished / corruption.__name__ / str(severity) / key)
    return len(source) * len(CORRUPTIONS) * len(SEVERITIES)


def save_image(image: Image.Image, path: Path) -> None:
    """Save as JPEG, nearly without loss, if the suffix says so; else as PNG, which readers recognise under any name."""
    if Image.registered_extensions().get(path.suffix.lower()) == "JPEG":
        image.save(path, "JPEG", quality=QUALITY, subsampling=0)
    else:
        image.save(path, "PNG")
