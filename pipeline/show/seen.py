"""What `relabel show` draws of an image: its labels, from a label set or made on the spot, and crops with their targets.

Shapes: C classes, H rows and W columns of the label map.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from annotate.config import AnnotateConfig
from annotate.manifests import TOPK
from annotate.models import load_annotator, with_card
from annotate.regions import draw_regions
from annotate.sparsify import sparsify
from relabel.images.class_lists import output_names, timm_class_names
from relabel.images.classes import ClassNames, check_recorded_classes
from relabel.images.decoding import read_rgb
from relabel.labels.boxes import covered
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import label_pool
from relabel.labels.regions import MIRRORED, LabelRegions, window_of
from relabel.labels.store import LabelStore
from relabel.labels.whole_image import whole_image_target
from relabel.runtime.defaults import CROP_RATIO, CROP_SCALE
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.typed import shown

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of the image
NameOf = Callable[[int], str]  # the name of a class
MAX_CROPS = 30


@dataclass(frozen=True)
class Crop:
    """A crop with its target.

    Attributes:
        picture: as the student sees it, but for its size.
        target: (C,) probabilities.
    """

    box: Box
    picture: Image.Image
    target: Tensor
    mirrored: bool = False


@dataclass(frozen=True)
class Seen:
    """An image and what its labels say.

    Attributes:
        label: name of the ground-truth label; None if it is not known.
        label_class: its number; None if it is not one of the classes.
        whole: (C,) mean target of the whole image.
        probabilities: (C, H, W) of every cell; None for regions.
    """

    name: str
    picture: Image.Image
    label: str | None
    label_class: int | None
    name_of: NameOf
    whole: Tensor
    probabilities: Tensor | None
    crops: list[Crop]


Said = tuple[Tensor, Tensor | None, list[Crop]]


def from_label_set(labels: Path, images: Sequence[Path], boxes: list[Box], random: int, names: ClassNames) -> list[Seen]:
    """What a label set says about these image files, whose last folder and name are the key.

    Args:
        boxes: crops of every image.
        random: number of random crops, or of stored regions, of every image.
    Raises:
        InputError: the set has no labels of an image, or is of regions and boxes are given.
    """
    store = LabelStore.open(labels)
    keys = [f"{path.absolute().parent.name}/{path.name}" for path in images]
    for path, key, row in zip(images, keys, store.find(keys).tolist(), strict=True):
        if row < 0:
            raise InputError(
                f"{labels} has no labels of {path}: none of its {len(store)} keys is {key} (the first is {store.keys[0]})"
            )
    if store.manifest.regions is not None and boxes:
        raise InputError(f"{labels} holds regions, which answer for their own boxes only; leave --box out")
    classes = store.manifest.classes
    name_of = functools.partial(name_in, classes or default_classes(store.manifest.num_classes), names)
    seen = []
    for path, key in zip(images, keys, strict=True):
        picture = read_rgb(path)
        if store.manifest.window is not None:  # nothing is said about what lies outside
            width, height = picture.size
            x0, y0, x1, y1 = map(round, covered(width, height, store.manifest.window))
            picture = picture.crop((x0, y0, x1, y1))
        folder = key.split("/")[0]
        label_class = classes.index(folder) if classes is not None and folder in classes else None
        of_image = store.gather(store.rows([key]))
        if store.manifest.regions is not None:
            said: Said = said_by_regions(picture, of_image, store.manifest.num_classes, random)
        else:
            said = said_by_map(picture, of_image, store.manifest.num_classes, boxes, random, key)
        seen.append(Seen(str(path), picture, names(folder), label_class, name_of, *said))
    return seen


def made_here(
    config: AnnotateConfig, images: Sequence[Path], boxes: list[Box], random: int, names: ClassNames, device: str | None
) -> list[Seen]:
    """What an annotator says about these image files; arguments as of `from_label_set`."""
    config, card = with_card(config)
    on = choose_device(device)
    annotator, squash = load_annotator(config, on, card)
    num_classes = int(annotator.classifier.num_classes)  # type: ignore[arg-type]
    classes: Sequence[str] | None = card.classes if card is not None else default_classes(num_classes)
    if config.classes is not None:
        if card is not None:
            check_recorded_classes(card.classes, config.classes, str(config.checkpoint), "--classes")
        classes = output_names(config.classes, num_classes)
    name_of = functools.partial(name_in, classes, names)
    seen = []
    for path in images:
        picture = read_rgb(path)
        with torch.inference_mode():
            logits = annotator(squash.normalise(squash(picture).unsqueeze(0).to(on))).cpu()
        maps = sparsify(logits, min(config.topk or TOPK, num_classes), config.tail or "mean")
        folder = path.absolute().parent.name
        label_class = list(classes).index(folder) if classes is not None and folder in classes else None
        label = names(folder) if label_class is not None else None
        said = said_by_map(picture, maps, num_classes, boxes, random, path.name)
        seen.append(Seen(str(path), picture, label, label_class, name_of, *said))
    return seen


def said_by_map(picture: Image.Image, maps: LabelMaps, num_classes: int, boxes: list[Box], random: int, key: str) -> Said:
    """What the rest of Seen is made of: `whole`, `probabilities` and `crops`."""
    whole = whole_image_target(maps, num_classes)[0]
    crops = pooled_crops(picture, maps, num_classes, boxes, random, key)
    return whole, maps.dense(num_classes).softmax(1)[0], crops


def said_by_regions(picture: Image.Image, regions: LabelRegions, num_classes: int, count: int) -> Said:
    """As `said_by_map`."""
    return whole_image_target(regions, num_classes)[0], None, stored_crops(picture, regions, num_classes, count)


def pooled_crops(
    picture: Image.Image, maps: LabelMaps, num_classes: int, boxes: list[Box], random: int, key: str
) -> list[Crop]:
    """The given boxes and `random` random crops of an image, with their targets pooled from its label map."""
    width, height = picture.size
    windows = [window_of(torch.tensor(box, dtype=torch.float64), width, height) for box in boxes]
    windows += [window for window, _ in draw_regions(key, picture.size, random, CROP_SCALE, CROP_RATIO, hflip=0.0)]
    crops = []
    for left, top, right, bottom in windows:
        box = (left / width, top / height, right / width, bottom / height)
        target = label_pool(maps, torch.tensor([box]), num_classes).softmax(1)[0]
        crops.append(Crop(box, picture.crop((left, top, right, bottom)), target))
    return crops


def stored_crops(picture: Image.Image, regions: LabelRegions, num_classes: int, count: int) -> list[Crop]:
    """The first `count` regions of an image, or all if there are fewer."""
    targets, flags = regions.dense(num_classes).softmax(2)[0], regions.flags[0].tolist()
    crops = []
    for number in range(min(count, int(regions.count))):
        cut = picture.crop(window_of(regions.boxes[0, number], *picture.size))
        mirrored = bool(flags[number] & MIRRORED)
        seen = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cut
        x0, y0, x1, y1 = regions.boxes[0, number].tolist()
        crops.append(Crop((x0, y0, x1, y1), seen, targets[number], mirrored))
    return crops


def parse_box(text: str) -> Box:
    """ "0.1,0.2,0.5,0.9" as a box.

    Raises:
        InputError: these are not four rising fractions of the image.
    """
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise InputError(f"--box {shown(text)}: expected x0,y0,x1,y1 in fractions of the image, such as 0,0,0.5,1") from None
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise InputError(f"--box {shown(text)}: expected x0 < x1 and y0 < y1, within [0, 1]")
    return x0, y0, x1, y1


def default_classes(num_classes: int) -> Sequence[str] | None:
    """timm's class names of a classifier with as many outputs as an ImageNet has; None for others."""
    try:
        return timm_class_names(num_classes, "--classes")
    except InputError:
        return None


def name_in(classes: Sequence[str] | None, names: ClassNames, number: int) -> str:
    """The name of a class for people, or its number."""
    return f"class {number}" if classes is None else names(classes[number])
