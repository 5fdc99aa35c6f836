"""Whether a folder's classes are those that a model knows."""

import functools

import numpy as np

from pipeline.class_names import wordnet
from pipeline.errors import InputError
from pipeline.images import ImageSet


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k, in the order of every model trained on it."""
    return tuple(wordnet().label_names())


def by_number(image_set: ImageSet) -> bool:
    """Whether the class folders are named 0 ... 999, which are ImageNet's classes, as in ImageNetV2."""
    return image_set.classes == tuple(map(str, range(len(imagenet_classes()))))


def class_numbers(image_set: ImageSet, classes: tuple[str, ...], whose: str, *, subset: bool = False) -> np.ndarray:
    """(classes of the folder,) int64 place of each class folder among the model's classes.

    Folders named 0 ... 999, as in ImageNetV2, are ImageNet's classes by number.

    Args:
        classes: the model's, in its order.
        whose: the model, for the message.
        subset: the folder may have some of the classes only.
    Raises:
        InputError: the folder has other classes; the first three that differ are named.
    """
    if classes == imagenet_classes() and by_number(image_set):
        return np.arange(len(classes))
    numbers = {name: i for i, name in enumerate(classes)}
    if not subset:
        refuse_other_classes(image_set, classes, whose)
    unknown = [name for name in image_set.classes if name not in numbers]
    if unknown:
        raise InputError(
            f"{image_set.source}: {len(unknown)} of {len(image_set.classes)} class folders are no classes of {whose}"
            f" ({', '.join(unknown[:3])})"
        )
    return np.array([numbers[name] for name in image_set.classes])


def refuse_other_classes(image_set: ImageSet, classes: tuple[str, ...], whose: str) -> None:
    """Raises InputError where the folder's class names are not those that a model was trained with, in order."""
    if image_set.classes == classes:
        return
    if len(image_set.classes) != len(classes):
        surplus = [f"{name} is no class of it" for name in image_set.classes if name not in set(classes)]
        missing = [f"{name} has no folder" for name in classes if name not in set(image_set.classes)]
        raise InputError(
            f"{image_set.source} has {len(image_set.classes)} class folders, {whose} was trained with {len(classes)}"
            f" classes: {'; '.join((surplus + missing)[:3])}"
        )
    differing = [f"{a} is not {b}" for a, b in zip(image_set.classes, classes, strict=True) if a != b]
    raise InputError(f"{image_set.source} has other classes than {whose}: {'; '.join(differing[:3])}")
