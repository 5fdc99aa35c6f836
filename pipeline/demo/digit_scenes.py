"""The embedded data set, "digit scenes": JPEG files in ImageNet's layout, made from data bundled with scikit-learn.

Each scene shows one to three handwritten digits of different classes on a crop of a photograph. As in ImageNet, the
ground-truth label (the folder) is only one of the objects, drawn in proportion to its area. The JSON lists all of them.

    DIR/train/CLASS/*.JPEG
    DIR/val/CLASS/*.JPEG
    DIR/annotator/train/CLASS/*.JPEG    one digit per image, to train the annotator
    DIR/train.json, DIR/val.json        {"images": {KEY: {"classes": [NAME, ...], "boxes": [[x0, y0, x1, y1], ...]}}};
                                        boxes are in fractions of the image; training does not read train.json

The three splits share no glyph, and validation backgrounds come from another part of the photographs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_folder

SIDE = 64  # pixels of a scene
SMALLEST, LARGEST = 18, 40  # pixels of a digit's side
CLASSES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
VAL_FROM = 0.7  # as a share of a photograph's width: validation backgrounds lie to the right of it, others to the left
QUALITY = 90  # of the JPEG files
TRIES = 64  # placements drawn at once; the first one without overlap is used


@dataclass(frozen=True)
class Digit:
    """A digit placed in a scene: its class, and its square in pixels."""

    target: int
    left: int
    top: int
    side: int


def write_scenes(folder: Path, train_images: int, val_images: int, annotator_images: int, seed: int) -> None:
    """Write the three splits. The same seed gives the same bytes.

    Raises:
        InputError: the folder is not empty, scikit-learn is not installed, or the disk cannot be written.
    """
    for name, count in (("train", train_images), ("val", val_images), ("annotator", annotator_images)):
        if count < 10 * len(CLASSES):
            raise InputError(f"{count} {name} images; expected at least {10 * len(CLASSES)}, so that every class has some")
    photographs, glyphs = bundled()
    pools = split_glyphs(glyphs, np.random.default_rng([seed, 0]))
    plan = (
        ("annotator", "annotator/train", annotator_images, 1, (0.0, VAL_FROM)),
        ("train", "train", train_images, 3, (0.0, VAL_FROM)),
        ("val", "val", val_images, 3, (VAL_FROM, 1.0)),
    )
    with atomic_folder(folder) as unfinished:
        for number, (name, place, count, most_digits, columns) in enumerate(plan, start=1):
            rng = np.random.default_rng([seed, number])
            backgrounds = [p[:, round(columns[0] * p.shape[1]) : round(columns[1] * p.shape[1])] for p in photographs]
            write_split(unfinished / place, name, count, most_digits, backgrounds, pools[name], rng)
            print(f"{folder / place}: {count} scenes with {'one digit' if most_digits == 1 else 'one to three digits'}")


def bundled() -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """scikit-learn's two photographs, (rows, columns, 3) uint8, and for each class its digits, (8, 8) in [0, 1]."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise InputError("the digit scenes need scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    by_class = [[g / 16.0 for g in digits.images[digits.target == c]] for c in range(len(CLASSES))]
    return list(load_sample_images().images), by_class


def split_glyphs(glyphs: list[list[np.ndarray]], rng: np.random.Generator) -> dict[str, list[list[np.ndarray]]]:
    """Disjoint sets of glyphs: of each class 40% for the annotator, 40% for train and 20% for val."""
    pools: dict[str, list[list[np.ndarray]]] = {"annotator": [], "train": [], "val": []}
    for class_glyphs in glyphs:
        order = rng.permutation(len(class_glyphs))
        first, second = round(0.4 * len(order)), round(0.8 * len(order))
        for split, part in zip(pools, np.split(order, [first, second]), strict=True):
            pools[split].append([class_glyphs[i] for i in part])
    return pools


def write_split(
    split: Path,
    name: str,
    count: int,
    most_digits: int,
    backgrounds: list[np.ndarray],
    pool: list[list[np.ndarray]],
    rng: np.random.Generator,
) -> None:
    """Write SPLIT/CLASS/NAME_00000.JPEG ... and SPLIT.json."""
    for class_name in CLASSES:
        (split / class_name).mkdir(parents=True)
    images = {}
    for i in range(count):
        digits = place_digits(int(rng.integers(1, most_digits + 1)), rng)
        scene = background(backgrounds, rng)
        for digit in digits:
            glyph = pool[digit.target][int(rng.integers(len(pool[digit.target])))]
            paint(scene, glyph, digit, rng)
        areas = np.array([digit.side**2 for digit in digits], dtype=float)
        label = digits[int(rng.choice(len(digits), p=areas / areas.sum()))]
        key = f"{CLASSES[label.target]}/{name}_{i:05d}.JPEG"
        Image.fromarray(scene.round().astype(np.uint8)).save(split / key, "JPEG", quality=QUALITY)
        images[key] = {
            "classes": [CLASSES[d.target] for d in digits],
            "boxes": [[d.left / SIDE, d.top / SIDE, (d.left + d.side) / SIDE, (d.top + d.side) / SIDE] for d in digits],
        }
    split.with_suffix(".json").write_text(json.dumps({"images": images}, sort_keys=True))


def place_digits(count: int, rng: np.random.Generator) -> list[Digit]:
    """Squares of random sizes at random positions that do not overlap, each with a different class."""
    targets = rng.permutation(len(CLASSES))[:count]
    while True:
        sides = rng.integers(SMALLEST, LARGEST + 1, size=(TRIES, count))
        starts = rng.integers(0, SIDE - sides[:, :, None] + 1, size=(TRIES, count, 2))  # left, top
        stops = starts + sides[:, :, None]
        apart = (starts[:, :, None] >= stops[:, None]) | (stops[:, :, None] <= starts[:, None])  # (TRIES, a, b, axis)
        clear = (apart.any(3) | np.eye(count, dtype=bool)).all((1, 2))
        if clear.any():
            i = int(clear.argmax())
            return [
                Digit(int(t), int(left), int(top), int(side))
                for t, (left, top), side in zip(targets, starts[i], sides[i], strict=True)
            ]


def background(photographs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(64, 64, 3) float crop of a photograph, with its contrast halved around mid-grey so that any ink is legible on it."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    top = int(rng.integers(0, photograph.shape[0] - SIDE + 1))
    left = int(rng.integers(0, photograph.shape[1] - SIDE + 1))
    crop = photograph[top : top + SIDE, left : left + SIDE].astype(np.float64)
    return 128 + (crop - 128) / 2


def paint(scene: np.ndarray, glyph: np.ndarray, digit: Digit, rng: np.random.Generator) -> None:
    """Paint a glyph over the scene, in light or dark ink at random."""
    ink = rng.uniform(215, 255) if rng.random() < 0.5 else rng.uniform(0, 40)
    image = Image.fromarray((glyph * 255).astype(np.uint8)).resize((digit.side, digit.side), Image.Resampling.BICUBIC)
    cover = np.asarray(image, dtype=np.float64)[:, :, None] / 255
    rows, columns = slice(digit.top, digit.top + digit.side), slice(digit.left, digit.left + digit.side)
    scene[rows, columns] = (1 - cover) * scene[rows, columns] + cover * ink
