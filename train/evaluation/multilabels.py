"""All the classes that each image shows, from a labels JSON of ours, from Shankar et al. 2020, or from ReaL.

    ours           {"images": {KEY: {"classes": [NAME, ...]}}}, a key for every image of the folder
    Shankar et al. {"initial_annots": {FILE: {"correct": [WNID, ...], "wrong": [...], "unclear": [...]}},
                    "problematic_images": {FILE: ...}}; github.com/modestyachts/evaluating_machine_accuracy_on_imagenet
    ReaL           Beyer et al. 2020; timm carries the labels

Shapes: N images, C classes.
"""

import json
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from relabel.images.classes import imagenet_classes, numbered_as_imagenet
from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

LAYOUTS = '{"images": {KEY: {"classes": [NAME, ...]}}} nor that of Shankar et al. ("initial_annots")'
VALIDATION_FILE = "ILSVRC2012_val_{:08d}"


@dataclass(frozen=True)
class MultiLabels:
    """Which classes count as right for each image.

    Attributes:
        classes: (N, C) bool.
        judged: (N,) bool: the images that count.
        mean_over_classes: accuracy is the mean over the folders' classes of the mean over a class's images. So it is defined
            where problematic images were left out, more of some classes than of others (Shankar et al. 2020).
    """

    classes: Tensor
    judged: Tensor
    mean_over_classes: bool = False


def read_multilabels(path: Path, image_set: ImageSet) -> MultiLabels:
    """Read a labels JSON, of either layout.

    Raises:
        InputError: no such file, another layout, images without an entry, or a class that is no folder.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"labels JSON {path} does not exist") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not JSON: {type(error).__name__} {error}") from error
    if isinstance(content, dict) and "initial_annots" in content:
        return from_shankar(content, path, image_set)
    try:
        images = content["images"]
        classes_of = {key: images[key]["classes"] for key in image_set.keys if key in images}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is neither {LAYOUTS}: {type(error).__name__} {error}") from error
    missing = [key for key in image_set.keys if key not in classes_of]
    if missing:
        raise InputError(
            f"{path} says nothing of {len(missing)} of {len(image_set)} images (first: {', '.join(missing[:3])})"
        )
    numbers = {name: i for i, name in enumerate(image_set.classes)}
    shown = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    for i, key in enumerate(image_set.keys):
        shown[i, named_class_indices(classes_of[key], numbers, key, path, image_set)] = True
    return MultiLabels(shown, torch.ones(len(image_set), dtype=torch.bool))


def from_shankar(content: dict[str, Any], path: Path, image_set: ImageSet) -> MultiLabels:
    """`correct` and `unclear` count as right; images that nobody annotated, and problematic ones, do not count.

    Its classes are WordNet ids, also where the folder's are ImageNet's by number.
    """
    numbers = {
        name: i for i, name in enumerate(imagenet_classes() if numbered_as_imagenet(image_set) else image_set.classes)
    }
    shown = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    judged = torch.zeros(len(image_set), dtype=torch.bool)
    try:
        annotations, problematic = content["initial_annots"], set(content["problematic_images"])
        for i, key in enumerate(image_set.keys):
            file = PurePosixPath(key).name
            if file in annotations and file not in problematic:
                right = [*annotations[file].get("correct", []), *annotations[file].get("unclear", [])]
                shown[i, named_class_indices(right, numbers, key, path, image_set)] = True
                judged[i] = True
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} has "initial_annots", but is not of the layout of Shankar et al.: {type(error).__name__} {error}'
        ) from error
    if not judged.any():
        raise InputError(
            f"{path} annotates none of the {len(image_set)} images of {image_set.source} (first: {image_set.keys[0]})"
        )
    return MultiLabels(shown, judged, mean_over_classes=True)


def named_class_indices(
    names: Iterable[str], numbers: dict[str, int], key: str, path: Path, image_set: ImageSet
) -> list[int]:
    for name in names:
        if name not in numbers:
            raise InputError(f"{path}: {key} shows {name!r}, which is no class folder of {image_set.source}")
    return [numbers[name] for name in names]


def real_labels(image_set: ImageSet) -> MultiLabels | None:
    """ReaL, where the folder holds images of ImageNet's validation set by class. Images without a label do not count."""
    if image_set.classes != imagenet_classes():
        return None
    data = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
    assert data is not None, "timm carries it"
    labels_of = {VALIDATION_FILE.format(i): labels for i, labels in enumerate(json.loads(data), start=1)}
    shown = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    for i, key in enumerate(image_set.keys):
        shown[i, labels_of.get(PurePosixPath(key).stem, [])] = True
    judged = shown.any(1)
    return MultiLabels(shown, judged) if judged.any() else None
