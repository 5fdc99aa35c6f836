"""TinyViT's saved logits (github.com/microsoft/Cream, TinyViT, Wu et al. 2022): a record per image and epoch, with a seed.

    STORE/logits_top{K}_epoch{E}/rank{R}-keys.txt       a key per line: the image's number in ImageFolder, or its stem
                                 rank{R}-values.bin     for each line 4 + 4 K bytes: int32 seed, K int16 classes, K float16
                                                        probabilities, largest first

The crop is not stored. It is drawn again from its seed, for which NumPy's PCG64 must give the same numbers for ever, and the
image must have the size that it had. Samples that mix two images have the same form, so the user has to say that there
are none.

Shapes: N epochs, k classes stored per crop, n images, W and H pixels of the image.
"""

import bisect
import math
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.random import PCG64, Generator

from annotate.interchange.image_folder import image_folder_order, listed, report
from annotate.interchange.image_regions import ImageRegions, RegionStore, image_regions
from relabel.images.image_set import ImageSet
from relabel.labels.regions import MIRRORED
from relabel.runtime.defaults import CROP_SCALE, HFLIP
from relabel.runtime.errors import InputError

EPOCH_FOLDER = re.compile(r"logits_top(\d+)_epoch(\d+)")
VALUES, KEYS = "-values.bin", "-keys.txt"
RATIO = (3 / 4, 4 / 3)  # of TinyViT's settings: smallest and largest width / height
TRIES = 10  # to draw a crop that fits into the image
NO_RECORD = -1
ROW = np.dtype(np.int32)


@dataclass(frozen=True)
class Epoch:
    """An epoch's records: the files of its ranks, in order, and the number of each file's first record among all of them."""

    values: list[Path]
    starts: list[int]


class TinyViTStore(RegionStore):
    """Reads TinyViT's records of an image set.

    Args:
        crop_scale, crop_ratio, hflip: what crops were drawn from: TinyViT's AUG.SCALE, AUG.RATIO and chance of mirroring.
    Raises:
        InputError: files are missing or of the wrong size, or the keys are not those of the images.
    """

    kind = "tiny-vit"

    def __init__(
        self,
        source: Path,
        image_set: ImageSet,
        num_classes: int,
        crop_scale: tuple[float, float] = CROP_SCALE,
        crop_ratio: tuple[float, float] = RATIO,
        hflip: float = HFLIP,
    ) -> None:
        self.source, self.image_set, self.num_classes = source, image_set, num_classes
        self.crop_scale, self.crop_ratio, self.hflip = self.settings = crop_scale, crop_ratio, hflip
        self.topk, folders = epoch_folders(source)
        self.regions = len(folders)
        self.record = np.dtype([("seed", "<i4"), ("classes", "<i2", (self.topk,)), ("probs", "<f2", (self.topk,))])
        self.epochs: list[Epoch] = []
        self.rows = tempfile.TemporaryFile()  # noqa: SIM115  (an epoch after the other; 300 of ImageNet take 1.5 GB)
        find = ImageKeys(image_set)
        labelled = np.zeros(len(image_set), bool)
        for folder in folders:
            epoch, rows = self.index(folder, find)
            self.epochs.append(epoch)
            self.rows.write(rows.tobytes())
            labelled |= rows != NO_RECORD
        self.rows.flush()
        report(str(source), image_set, [image_set.keys[i] for i in (~labelled).nonzero()[0].tolist()], [])

    def index(self, folder: Path, find: "ImageKeys") -> tuple[Epoch, np.ndarray]:
        """The records of an epoch, and (n,) which of them is each image's; NO_RECORD if none is."""
        rows = np.full(len(self.image_set), NO_RECORD, ROW)
        values, starts = rank_files(folder), [0]
        for path in values:
            indices = find(path.with_name(path.name.replace(VALUES, KEYS)))
            expected = len(indices) * self.record.itemsize
            if path.stat().st_size != expected:
                raise InputError(
                    f"{path} has {path.stat().st_size} bytes, and its {len(indices)} keys with {self.topk} classes each need"
                    f" {expected}: it is truncated, or not of these keys"
                )
            unseen = rows[indices] == NO_RECORD  # images that fill up a batch are in two ranks: the lower one counts
            numbers = np.arange(starts[-1], starts[-1] + len(indices), dtype=ROW)
            rows[indices[unseen][::-1]] = numbers[unseen][::-1]
            starts.append(starts[-1] + len(indices))
        return Epoch(values, starts), rows

    def read(self, index: int, size: tuple[int, int]) -> ImageRegions:
        records = [self.read_record(number, index) for number in range(self.regions)]
        found = np.array([record for record in records if record is not None], dtype=self.record)
        try:
            if (found["seed"] < 0).any():
                raise ValueError(f"a seed is {found['seed'].min()}; expected one that is not negative")
            crops = [draw_crop(seed, size, *self.settings) for seed in found["seed"].tolist()]
            boxes, mirrored = (np.array(part) for part in zip(*crops, strict=True))
            return image_regions(boxes, mirrored * MIRRORED, found["probs"], found["classes"], size, self.num_classes)
        except ValueError as error:
            raise InputError(f"{self.source}, image {self.image_set.keys[index]}: {error}") from error

    def read_record(self, number: int, index: int) -> np.void | None:
        """The record of an image in an epoch, if it has one."""
        at = (number * len(self.image_set) + index) * ROW.itemsize
        row = int(np.frombuffer(os.pread(self.rows.fileno(), ROW.itemsize, at), ROW)[0])
        if row == NO_RECORD:
            return None
        epoch = self.epochs[number]
        rank = bisect.bisect_right(epoch.starts, row) - 1
        offset = (row - epoch.starts[rank]) * self.record.itemsize
        record: np.void = np.fromfile(epoch.values[rank], self.record, 1, offset=offset)[0]
        return record


def epoch_folders(source: Path) -> tuple[int, list[Path]]:
    """k, and the folders of all epochs in order."""
    found = {path: EPOCH_FOLDER.fullmatch(path.name) for path in source.glob("logits_top*_epoch*")}
    numbers = {path: (int(match[1]), int(match[2])) for path, match in found.items() if match and path.is_dir()}
    if not numbers:
        raise InputError(f"{source} has no folders logits_top{{K}}_epoch{{E}}; expected TinyViT's saved logits")
    ks = sorted({k for k, _ in numbers.values()})
    if len(ks) > 1:
        raise InputError(f"{source} has epochs with the top {ks[0]} and with the top {ks[1]} classes; separate them")
    return ks[0], sorted(numbers, key=lambda path: numbers[path][1])


def rank_files(folder: Path) -> list[Path]:
    """The files of values of all ranks, in order of the ranks."""
    ranks = {path: path.name.removeprefix("rank").removesuffix(VALUES) for path in folder.glob(f"rank*{VALUES}")}
    files = sorted((path for path, rank in ranks.items() if rank.isdecimal()), key=lambda path: int(ranks[path]))
    without = [path for path in files if not path.with_name(path.name.replace(VALUES, KEYS)).is_file()]
    keys = list(folder.glob(f"rank*{KEYS}"))
    if not files or without or len(files) != len(keys):
        raise InputError(
            f"{folder} has {len(files)} files rank*{VALUES} and {len(keys)} rank*{KEYS}; expected one of each for every rank"
        )
    return files


class ImageKeys:
    """Finds images by TinyViT's keys: numbers in ImageFolder, or, of ImageNet-22k, stems of file names."""

    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set
        self.order = image_folder_order(image_set)

    def __call__(self, path: Path) -> np.ndarray:
        """(m,) index in the image set of each of the keys in a file."""
        try:
            keys = path.read_text(encoding="utf-8").split()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text; expected a key per line") from error
        if all(map(str.isdecimal, keys)):
            numbers = np.array(keys, dtype=np.int64)
            if len(numbers) and numbers.max() >= len(self.order):
                raise InputError(
                    f"{path} has image number {numbers.max()}, and {self.image_set.source} has {len(self.order)} images"
                    " (numbers from 0); pass the images that the store was made from, all of them"
                )
            found: np.ndarray = self.order[numbers]
            return found
        unknown = [key for key in keys if key not in self.by_stem]
        if unknown:
            raise InputError(
                f"{path}: {len(unknown)} keys are no images of {self.image_set.source} (first: {listed(unknown)}); pass the"
                " images that the store was made from"
            )
        return np.array([self.by_stem[key] for key in keys])

    @cached_property
    def by_stem(self) -> dict[str, int]:
        stems = {PurePosixPath(key).stem: i for i, key in enumerate(self.image_set.keys)}
        if len(stems) < len(self.image_set):
            raise InputError(
                f"{self.image_set.source}: {len(self.image_set) - len(stems)} images have the name of another one, and this"
                " store knows images by their names alone"
            )
        return stems


def draw_crop(
    seed: int, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], hflip: float
) -> tuple[tuple[int, int, int, int], bool]:
    """x0, y0, x1, y1 in pixels, and whether the crop is mirrored, as TinyViT draws them.

    Args:
        size: width and height of the image in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        hflip: probability of mirroring.
    """
    width, height = size
    draws = iter(Generator(PCG64(seed)).random(2 * TRIES + 3).tolist())
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        area = width * height * (next(draws) * (scale[1] - scale[0]) + scale[0])
        aspect = math.exp(next(draws) * (high - low) + low)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            y0 = min(int(next(draws) * (height - h + 1)), height - h)
            x0 = min(int(next(draws) * (width - w + 1)), width - w)
            break
    else:
        w, h = width, height
        if width / height < ratio[0]:
            h = round(width / ratio[0])
        elif width / height > ratio[1]:
            w = round(height * ratio[1])
        x0, y0 = (width - w) // 2, (height - h) // 2
    return (x0, y0, x0 + w, y0 + h), next(draws) < hflip
