"""The data sets that ImageNet models are tested on, found in a folder by the names under which they are published.

imagenetv2-matched-frequency-format-val    Recht et al. 2019; folders 0 ... 999 are class numbers
imagenetv2-threshold0.7-format-val
imagenetv2-top-images-format-val
imagenet-a, imagenet-r                     Hendrycks et al. 2021; 200 classes, and the model chooses only among these
imagenet-sketch, or sketch                 Wang et al. 2019; all classes
imagenet-c/CORRUPTION/SEVERITY             Hendrycks & Dietterich 2019; 15 corruptions, severities 1 ... 5
corrupted/CORRUPTION/SEVERITY              any images, written by `relabel corrupt`
"""

import dataclasses
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.images.classes import class_indices
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images, from_folder
from relabel.runtime.errors import InputError
from train.evaluation.corruption_error import IMAGENET_C_CORRUPTIONS
from train.evaluation.corruptions import SEVERITIES

PLAIN = {  # name: possible names of its folder
    "imagenetv2-matched-frequency": ("imagenetv2-matched-frequency-format-val",),
    "imagenetv2-threshold0.7": ("imagenetv2-threshold0.7-format-val",),
    "imagenetv2-top-images": ("imagenetv2-top-images-format-val",),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
    "imagenet-sketch": ("imagenet-sketch", "sketch"),
}
SUBSETS = ("imagenet-a", "imagenet-r")  # whose classes are some of the model's
CORRUPTED = ("imagenet-c", "corrupted")


@dataclass(frozen=True)
class Benchmark:
    """A data set of one folder.

    Attributes:
        class_indices: (number of class folders,) index of each among the model's classes.
        choices: the classes among which the benchmark lets the model choose; None for all.
    """

    name: str
    image_set: ImageSet
    class_indices: np.ndarray
    choices: np.ndarray | None

    @property
    def targets(self) -> np.ndarray:
        """(N,) class of each image, among the model's."""
        targets: np.ndarray = self.class_indices[self.image_set.targets]
        return targets


@dataclass(frozen=True)
class CorruptedImages:
    """The same images under several corruptions.

    Attributes:
        folders: by corruption, the folders of severity 1 to 5, all of them with the same images.
        class_indices: (number of class folders,) index of each among the model's classes.
        missing: corruptions of the benchmark that are absent, or lack a severity.
        published: it is ImageNet-C itself, whose images are cropped already.
    """

    root: Path
    folders: dict[str, list[ImageSet]]
    class_indices: np.ndarray
    missing: list[str]
    published: bool

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def images(self) -> ImageSet:
        """The images of one corruption; keys and labels are the same in all of them."""
        return next(iter(self.folders.values()))[0]

    @property
    def targets(self) -> np.ndarray:
        """(N,) class of each image, among the model's."""
        targets: np.ndarray = self.class_indices[self.images.targets]
        return targets


def find_benchmarks(
    suite: Path, classes: tuple[str, ...], whose: str
) -> tuple[list[Benchmark | CorruptedImages], list[str]]:
    """The data sets in a folder, and the names of those that are absent.

    Args:
        classes: the model's, in order; whose: the model, for messages.
    Raises:
        InputError: no such folder, none of the data sets in it, or one whose classes differ from the model's.
    """
    if not suite.is_dir():
        raise InputError(f"--suite {suite} is not a folder; expected one that holds {', '.join([*PLAIN, *CORRUPTED])}")
    found: list[Benchmark | CorruptedImages] = []
    for name, folder_names in PLAIN.items():
        folder = next((suite / f for f in folder_names if (suite / f).is_dir()), None)
        if folder is not None:
            image_set = find_images(folder)
            indices = class_indices(image_set, classes, whose, numbered=name.startswith("imagenetv2"))
            found.append(Benchmark(name, image_set, indices, choices(name, indices, classes) if name in SUBSETS else None))
    found += [find_corrupted(suite / name, classes, whose) for name in CORRUPTED if (suite / name).is_dir()]
    absent = [name for name in (*PLAIN, *CORRUPTED) if name not in {benchmark.name for benchmark in found}]
    if not found:
        names = [name for folder_names in PLAIN.values() for name in folder_names]
        raise InputError(f"--suite {suite} holds none of {', '.join([*names, *CORRUPTED])}")
    return found, absent


def choices(name: str, indices: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The classes of a published subset of ImageNet, of which some folders may be absent; or the folders' own classes."""
    data = pkgutil.get_data("timm.data", f"_info/{name.replace('-', '_')}_synsets.txt")
    assert data is not None, "the classes of ImageNet-A and -R come with timm"
    published = set(data.decode().split())
    if {classes[i] for i in indices} <= published <= set(classes):
        return np.flatnonzero([name in published for name in classes])
    return np.sort(indices)


def find_corrupted(root: Path, classes: tuple[str, ...], whose: str) -> CorruptedImages:
    """The corruptions in ROOT/CORRUPTION/SEVERITY/CLASS/* that have all severities; of ImageNet-C, only the 15 of mCE.

    Raises:
        InputError: no corruption has all severities, classes differ from the model's, or folders have different images.
    """
    published = root.name == "imagenet-c"
    subfolders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    missing = []
    folders: dict[str, list[ImageSet]] = {}
    first: ImageSet | None = None
    for corruption in IMAGENET_C_CORRUPTIONS if published else subfolders:
        absent = [severity for severity in SEVERITIES if not (root / corruption / str(severity)).is_dir()]
        if absent:
            severities = f" (severity {', '.join(map(str, absent))})" if len(absent) < len(SEVERITIES) else ""
            missing.append(f"{corruption}{severities}")
            continue
        folders[corruption] = []
        for severity in SEVERITIES:
            image_set = from_folder(root / corruption / str(severity))
            first = image_set if first is None else first
            if image_set.keys != first.keys:
                differing = sorted(set(image_set.keys) ^ set(first.keys))[0]
                raise InputError(
                    f"{image_set.source} has different images from {first.source} (first: {differing}); complete them"
                )
            # All folders share one list of keys
            folders[corruption].append(dataclasses.replace(first, source=image_set.source, open=image_set.open))
    if first is None:
        raise InputError(f"{root} has no corruption with severities 1 to 5; expected {root}/CORRUPTION/SEVERITY/CLASS/*")
    return CorruptedImages(root, folders, class_indices(first, classes, whose), missing, published)
