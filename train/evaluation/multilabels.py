"""All the classes that each image shows, from relabel's labels JSON, from Shankar et al. 2020, or from ReaL.

    relabel        {"images": {KEY: {"classes": [NAME, ...]}}}, a key for every image of the folder
    Shankar et al. {"initial_annots": {FILE: {"correct": [WNID, ...], "wrong": [...], "unclear": [...]}},
                    "problematic_images": {FILE: ...}}; github.com/modestyachts/evaluating_machine_accuracy_on_imagenet
    ReaL           Beyer et al. 2020; the labels come with timm

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
from relabel.runtime.typed import parse_json, typed

LAYOUTS = 'the layout {"images": {KEY: {"classes": [NAME, ...]}}} nor that of Shankar et al. ("initial_annots")'
VALIDATION_FILE = "ILSVRC2012_val_{:08d}"


@dataclass(frozen=True)
class MultiLabels:
    """Which classes count as right for each image.

    Attributes:
        classes: (N, C) bool.
        valid: (N,) bool, the images that count.
        mean_over_classes: accuracy is the mean over the folders' classes of the mean over a class's images. Shankar et al.
            2020 define it so because they leave out problematic images, more of some classes than of others.
    """

    classes: Tensor
    valid: Tensor
    mean_over_classes: bool = False


def read_multilabels(path: Path, image_set: ImageSet) -> MultiLabels:
    """Read a labels JSON of either layout.

    Raises:
        InputError: no such file, another layout, images without an entry, or a class without a folder.
    """
    if not path.is_file():
        raise InputError(f"labels JSON {path} {'is not a regular file' if path.exists() else 'does not exist'}")
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not JSON: {type(error).__name__} {error}") from error
    if isinstance(content, dict) and "initial_annots" in content:
        return from_shankar(content, path, image_set)
    try:
        images = typed(content, dict[str, Any])["images"]
        classes_of = {key: typed(images[key]["classes"], list[str]) for key in image_set.keys if key in images}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} has neither {LAYOUTS}: {type(error).__name__} {error}") from error
    missing = [key for key in image_set.keys if key not in classes_of]
    if missing:
        raise InputError(
            f"{path} has no entry for {len(missing)} of {len(image_set)} images (first: {', '.join(missing[:3])})"
        )
    class_index = {name: i for i, name in enumerate(image_set.classes)}
    classes = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    for i, key in enumerate(image_set.keys):
        classes[i, named_class_indices(classes_of[key], class_index, key, path, image_set)] = True
    return MultiLabels(classes, torch.ones(len(image_set), dtype=torch.bool))


def from_shankar(content: dict[str, Any], path: Path, image_set: ImageSet) -> MultiLabels:
    """Classes under `correct` and `unclear` are right; problematic images and those without an annotation do not count.

    The classes in the file are WordNet ids, even if the class folders are named 0 ... 999.
    """
    names = imagenet_classes() if numbered_as_imagenet(image_set) else image_set.classes
    class_index = {name: i for i, name in enumerate(names)}
    classes = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    valid = torch.zeros(len(image_set), dtype=torch.bool)
    try:
        annotations = typed(content["initial_annots"], dict[str, dict[str, Any]])
        problematic = set(content["problematic_images"])
        for i, key in enumerate(image_set.keys):
            file = PurePosixPath(key).name
            if file in annotations and file not in problematic:
                judgements = (annotations[file].get(judgement, []) for judgement in ("correct", "unclear"))
                right = [name for names in judgements for name in typed(names, list[str])]
                classes[i, named_class_indices(right, class_index, key, path, image_set)] = True
                valid[i] = True
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} has "initial_annots", but not the layout of Shankar et al.: {type(error).__name__} {error}'
        ) from error
    if not valid.any():
        raise InputError(
            f"{path} annotates none of the {len(image_set)} images of {image_set.source} (first: {image_set.keys[0]})"
        )
    return MultiLabels(classes, valid, mean_over_classes=True)


def named_class_indices(
    names: Iterable[str], class_index: dict[str, int], key: str, path: Path, image_set: ImageSet
) -> list[int]:
    for name in names:
        if name not in class_index:
            raise InputError(f"{path}: {key} shows {name!r}, which is not a class folder of {image_set.source}")
    return [class_index[name] for name in names]


def real_labels(image_set: ImageSet) -> MultiLabels | None:
    """ReaL labels if the folder holds ImageNet validation images by class, else None. Images without labels do not count."""
    if image_set.classes != imagenet_classes():
        return None
    data = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
    assert data is not None, "the ReaL labels come with timm"
    labels_of = {VALIDATION_FILE.format(i): labels for i, labels in enumerate(json.loads(data), start=1)}
    classes = torch.zeros(len(image_set), len(image_set.classes), dtype=torch.bool)
    for i, key in enumerate(image_set.keys):
        classes[i, labels_of.get(PurePosixPath(key).stem, [])] = True
    valid = classes.any(1)
    return MultiLabels(classes, valid) if valid.any() else None
