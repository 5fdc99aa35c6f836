"""ml-dr's reinforced data sets (github.com/apple/ml-dr, Faghri et al. 2023): a file per image, and one with the settings.

    STORE/config.pth.tar         the settings, of which the augmentations say what the crops' parameters mean
    STORE/INDEX.pth.tar          (INDEX, a list of N crops); INDEX is the image's number in ImageFolder

Written by torch.save, or by joblib under the same names. A crop is a dict: `prob`, k probabilities and k classes, unsorted;
and `params`, what each augmentation drew, as a dict, or as a list in the order of PARAMETERS.

Shapes: N crops, k classes stored per crop.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from annotate.interchange.allow_list import read_plain
from annotate.interchange.image_folder import image_folder_order, report
from annotate.interchange.image_regions import ImageRegions, RegionStore, image_regions
from relabel.images.image_set import ImageSet
from relabel.images.windows import Window
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC
from relabel.runtime.defaults import RegionTarget
from relabel.runtime.errors import InputError
from relabel.runtime.typed import shown

ENDING = ".pth.tar"
CONFIG = f"config{ENDING}"
CROP, FLIP, COLOURS, ERASE = "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase"
MIXING = ("mixup", "cutmix")
PARAMETERS = ("resize", "random_crop", CROP, FLIP, COLOURS, ERASE, *MIXING)  # those that have an entry in a list, in order
BEFORE_CROP = ("resize", "center_crop", "random_crop")  # after one of these, a crop is not one of the file
NOT_ERASED = -1  # the first number of an erased rectangle that was not found


class MlDrStore(RegionStore):
    """Reads ml-dr's files of an image set.

    Args:
        target: "spread", ml-dr's `densify: smooth`; or "softmax", its `densify: zeros`. The files are the same.
    Raises:
        InputError: files are missing or left over, or the augmentations are not those of crops of the file.
    """

    kind = "ml-dr"

    def __init__(self, source: Path, image_set: ImageSet, num_classes: int, target: RegionTarget = "spread") -> None:
        self.source, self.image_set, self.num_classes, self.target = source, image_set, num_classes, target
        self.augmentations = enabled_augmentations(source)
        order = image_folder_order(image_set)
        self.number = np.empty(len(order), np.int64)  # (n,) of each image in ImageFolder
        self.number[order] = np.arange(len(order))
        check_numbers(source, image_set, order)
        samples = self.samples(0)
        self.regions, self.topk = len(samples), len(samples[0]["prob"][0])

    def samples(self, index: int) -> Any:
        """The crops of an image, as stored."""
        number = int(self.number[index])
        path = self.source / f"{number}{ENDING}"
        content = read_plain(path)
        try:
            stored_number, samples = content
            if stored_number != number:
                raise InputError(f"{path} is of image {shown(stored_number)}, not of {number}; restore the file")
            if not isinstance(samples, list) or not samples:
                raise ValueError
            len(samples[0]["prob"][0])
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: expected (INDEX, a list of dicts with params and prob)") from error
        return samples

    def read(self, index: int, size: tuple[int, int]) -> ImageRegions:
        name = f"{self.source / str(self.number[index])}{ENDING} ({self.image_set.keys[index]})"
        samples = self.samples(index)
        try:
            drawn = self.parameters([sample["params"] for sample in samples])
            crops = np.array(drawn[CROP], dtype=np.float64)
            flags = flags_of(drawn, len(samples))
            probs = np.array([sample["prob"][0] for sample in samples], dtype=np.float32)
            classes = np.array([sample["prob"][1] for sample in samples], dtype=np.int64)
            if crops.shape[1:] != (4,) or probs.ndim != 2 or probs.shape != classes.shape:
                raise TypeError
        except MixedSample as error:
            raise InputError(
                f"{name}: a crop is mixed with image {shown(error.partner)}. A label set's regions are of one image each, so"
                " sets with MixUp or CutMix cannot be imported"
            ) from error
        except Exception as error:  # of whatever a damaged file holds in place of numbers
            raise InputError(
                f"{name}: its crops do not have the parameters of {', '.join(self.augmentations)}, and as many probabilities"
                f" as classes, as {self.source / CONFIG} says"
            ) from error
        top, left, rows, columns = crops.T
        boxes = np.stack((left, top, left + columns, top + rows), axis=1)
        try:
            return image_regions(boxes, flags, probs, classes, size, self.num_classes, self.target)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error

    def parameters(self, stored: list[Any]) -> dict[str, Sequence[Any]]:
        """What each augmentation drew for each of N crops, by the augmentation's name."""
        if isinstance(stored[0], dict):  # not compressed: each value is a pair, of the image and of a partner
            partners = [params.get("id2") for params in stored if any(params.get(name) is not None for name in MIXING)]
            if partners:
                raise MixedSample(partners[0])
            return {name: [params[name][0] for params in stored] for name in self.augmentations if name not in MIXING}
        columns = list(zip(*stored, strict=True))
        if any(name in MIXING for name in self.augmentations):
            partners = [partner for partner in columns.pop(0) if partner is not None]
            if partners:
                raise MixedSample(partners[0])
        return dict(zip(self.augmentations, columns, strict=True))


class MixedSample(Exception):
    """A crop that shows two images."""

    def __init__(self, partner: Any) -> None:
        super().__init__(partner)
        self.partner = partner


def flags_of(drawn: dict[str, Sequence[Any]], count: int) -> np.ndarray:
    """(N,) flags as in LabelRegions."""
    nothing = [None] * count
    mirrored = np.array([bool(mirror) for mirror in drawn.get(FLIP, nothing)])
    colours = np.array([operations is not None for operations in drawn.get(COLOURS, nothing)])
    erased = np.array([part is not None and part[0] != NOT_ERASED for part in drawn.get(ERASE, nothing)])
    flags: np.ndarray = MIRRORED * mirrored + PHOTOMETRIC * colours + ERASED * erased
    return flags


def enabled_augmentations(source: Path) -> list[str]:
    """The augmentations that have an entry in the parameters of a crop, in order.

    Raises:
        InputError: no settings; or the crops are not cut from the file.
    """
    path = source / CONFIG
    if not path.is_file():
        raise InputError(f"{source} has no {CONFIG}; expected a data set reinforced by ml-dr")
    config = read_plain(path)
    try:
        settings = config["reinforce"]["image_augmentation"]
        enabled = {name for name, options in settings.items() if options.get("enable", True)}
    except Exception as error:
        raise InputError(
            f"{path} has no reinforce.image_augmentation, which says what the crops' parameters mean"
        ) from error
    before = [name for name in BEFORE_CROP if name in enabled]
    if before or CROP not in enabled:
        found = f"{' and '.join(before)} before the crop" if before else f"no {CROP}"
        raise InputError(
            f"{path} has {found}. A label set's regions are cut from the image file, inside it; only sets with {CROP} alone"
            " can be imported"
        )
    return [name for name in PARAMETERS if name in enabled]


def check_numbers(source: Path, image_set: ImageSet, order: np.ndarray) -> None:
    """Raises InputError unless there is a file for every number of an image, and no other."""
    found = np.zeros(len(order), bool)
    surplus = []
    for path in source.iterdir():
        name = path.name.removesuffix(ENDING)
        if name == path.name or not name.isdecimal():
            continue
        if int(name) < len(order):
            found[int(name)] = True
        else:
            surplus.append(path.name)
    missing = [f"{number}{ENDING}, {image_set.keys[order[number]]}" for number in (~found).nonzero()[0]]
    report(str(source), image_set, missing, sorted(surplus))


def ml_dr_config(
    regions: int,
    topk: int,
    num_classes: int,
    side: int,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> dict[str, Any]:
    """The settings of a set of mirrored crops, as far as ml-dr's trainer reads them.

    Args:
        side: of a crop, in pixels.
        mean, std: of the annotator's normalisation of RGB values in [0, 1].
    """
    augmentations = {
        CROP: {"enable": True, "size": side},
        FLIP: {"enable": True, "p": 0.5},
        "to_tensor": {"enable": True},
        "normalize": {"enable": True, "mean": list(mean), "std": list(std)},
    }
    return {
        "num_classes": num_classes,
        "reinforce": {
            "num_samples": regions,
            "topk": topk,
            "compress": True,
            "joblib": False,
            "gzip": False,
            "image_augmentation": augmentations,
        },
    }


def ml_dr_file(
    number: int,
    windows: Sequence[Window],
    mirrored: Sequence[bool],
    classes: Sequence[Sequence[int]],
    probs: Sequence[Sequence[float]],
) -> bytes:
    """The content of an image's file, of N windows and the k classes and probabilities of each.

    Args:
        number: the image's in ImageFolder.
    """
    samples = [
        {"params": [(top, left, bottom - top, right - left), flip], "prob": (list(p), list(c))}
        for (left, top, right, bottom), flip, c, p in zip(windows, mirrored, classes, probs, strict=True)
    ]
    return saved((number, samples))


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
