"""The model to evaluate, with its classes: a relabel checkpoint, other weights of a timm model, or published weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from relabel.images.class_lists import output_names
from relabel.images.classes import (
    class_indices,
    imagenet_classes,
    listing_advice,
    numbered_as_imagenet,
    warn_of_plain_order,
)
from relabel.images.image_set import ImageSet
from relabel.models.card import ModelCard, find_card, read_card
from relabel.models.classifier import classes_in_checkpoint, create_classifier
from relabel.models.preprocessing import Preprocessing, eval_preprocessing
from relabel.runtime.defaults import Loss
from relabel.runtime.errors import InputError


@dataclass(frozen=True)
class EvalModel:
    """A classifier and what has to be known to evaluate it.

    Attributes:
        weights: the checkpoint's path, or "published".
        classes: name of each output's class folder.
        loss: what it was trained with.
        recorded: the checkpoint records the classes.
    """

    arch: str
    weights: str
    classifier: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    loss: Loss
    recorded: bool = False


def load_eval_model(
    checkpoint: Path | None,
    arch: str | None,
    model_kwargs: dict[str, Any] | None,
    image_set: ImageSet,
    *,
    size: int | None = None,
    crop: float | None = None,
    names: str | None = None,
) -> EvalModel:
    """Create the model and check that the image folder's classes are among its own.

    A relabel checkpoint has a model card with its classes; `names` tells those of other models. Without it, models with
    1,000 classes are taken to have ImageNet's, and those with another number the folder's, in order.

    Args:
        checkpoint: a relabel checkpoint, or weights of `arch`; published weights of `arch` if None.
        size, crop: override those of the model's own preprocessing.
        names: of the outputs: a file, or "timm".
    Raises:
        InputError: neither checkpoint nor arch, a checkpoint without a model card and no arch, or a folder of another class.
    """
    if checkpoint is None and arch is None:
        raise InputError("nothing to evaluate: give --checkpoint, or --arch for published weights")
    card = None
    if checkpoint is not None:
        card = find_card(checkpoint) if arch is not None else read_card(checkpoint, "--arch")
    if card is not None:
        class_indices(image_set, card.classes, str(checkpoint))  # before anything is loaded
        arch, model_kwargs = card.arch, card.model_kwargs
    assert arch is not None
    num_classes = class_count(card, checkpoint, arch, model_kwargs, image_set, "--checkpoint")
    try:
        classifier = create_classifier(
            arch, pretrained=checkpoint is None, checkpoint=checkpoint, num_classes=num_classes, model_kwargs=model_kwargs
        )
    except InputError as error:
        if card is None or str(checkpoint) in str(error):
            raise
        raise InputError(f"{checkpoint}, by its model card: {error}") from error
    whose = str(checkpoint) if checkpoint is not None else f"the published {arch}"
    if card is not None:
        classes = card.classes
    else:
        classes = assumed_classes(classifier, image_set, whose, names, "--classes", published=checkpoint is None)
    class_indices(image_set, classes, whose)
    preprocessing = card.preprocessing if card is not None else eval_preprocessing(classifier)
    preprocessing = dataclasses.replace(preprocessing, size=size or preprocessing.size, crop=crop or preprocessing.crop)
    return EvalModel(
        arch,
        str(checkpoint or "published"),
        classifier,
        classes,
        preprocessing,
        card.loss if card is not None else "ce",
        recorded=card is not None,
    )


def class_count(
    card: ModelCard | None,
    checkpoint: Path | None,
    model: str,
    model_kwargs: dict[str, Any] | None,
    image_set: ImageSet,
    weights_option: str,
) -> int | None:
    """How many classes the model is created for: its card's, else those of the checkpoint's head, else the images'.

    None for published weights, whose model has its own number.
    """
    if card is not None:
        return len(card.classes)
    if checkpoint is None:
        return None
    return classes_in_checkpoint(checkpoint, model, model_kwargs, weights_option) or len(image_set.classes)


def assumed_classes(
    classifier: nn.Module, image_set: ImageSet, whose: str, names: str | None, option: str, *, published: bool
) -> tuple[str, ...]:
    """The classes of a model without a card: those that are named, ImageNet's if there are 1,000, else the folder's.

    Where only the order of the folders says which output is which, and another program might order them otherwise, a
    warning says so.

    Args:
        names: a file, or "timm"; given as `option`.
        published: its weights are timm's, so 1,000 classes are ImageNet's.
    Raises:
        InputError: names that do not fit the model; or another number of classes than folders.
    """
    count = int(classifier.num_classes)  # type: ignore[arg-type]
    if names is not None:
        return output_names(names, count, option)
    if count == len(imagenet_classes()):
        if numbered_as_imagenet(image_set) and not published:
            warn_of_plain_order(image_set, whose, listing_advice(option))
        return imagenet_classes()
    if count != len(image_set.classes):
        raise InputError(
            f"{whose} does not fit {image_set.source}: it has {count} classes, and there are {len(image_set.classes)} class"
            f" folders; {listing_advice(option)}"
        )
    warn_of_plain_order(image_set, whose, listing_advice(option))
    return image_set.classes
