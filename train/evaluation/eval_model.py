"""The model to evaluate, with its classes: a relabel checkpoint, other weights of a timm model, or published weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from relabel.images.classes import class_indices, imagenet_classes
from relabel.images.image_set import ImageSet
from relabel.models.card import find_card, read_card
from relabel.models.classifier import create_classifier
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
    """

    arch: str
    weights: str
    classifier: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    loss: Loss


def load_eval_model(
    checkpoint: Path | None,
    arch: str | None,
    model_kwargs: dict[str, Any] | None,
    image_set: ImageSet,
    *,
    size: int | None = None,
    crop: float | None = None,
) -> EvalModel:
    """Create the model and check that its classes are the image folder's.

    A relabel checkpoint has a model card with its classes. Other models with 1,000 classes are taken to have ImageNet's, and
    those with another number the folder's, in order.

    Args:
        checkpoint: a relabel checkpoint, or weights of `arch`; published weights of `arch` if None.
        size, crop: override those of the model's own preprocessing.
    Raises:
        InputError: neither checkpoint nor arch, a checkpoint without a model card and no arch, or classes that differ from
            the folder's.
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
    classifier = create_classifier(
        arch,
        pretrained=checkpoint is None,
        checkpoint=checkpoint,
        num_classes=len(image_set.classes) if checkpoint is not None else None,
        model_kwargs=model_kwargs,
    )
    whose = str(checkpoint) if checkpoint is not None else f"the published {arch}"
    classes = card.classes if card is not None else assumed_classes(classifier, image_set, whose)
    class_indices(image_set, classes, whose)
    preprocessing = card.preprocessing if card is not None else eval_preprocessing(classifier)
    preprocessing = dataclasses.replace(preprocessing, size=size or preprocessing.size, crop=crop or preprocessing.crop)
    return EvalModel(
        arch, str(checkpoint or "published"), classifier, classes, preprocessing, card.loss if card is not None else "ce"
    )


def assumed_classes(classifier: nn.Module, image_set: ImageSet, whose: str) -> tuple[str, ...]:
    """The classes of a model without a card: ImageNet's if there are 1,000, else the folder's, if there are as many."""
    count = int(classifier.num_classes)  # type: ignore[arg-type]
    if count == len(imagenet_classes()):
        return imagenet_classes()
    if count != len(image_set.classes):
        raise InputError(f"{whose} has {count} classes, {image_set.source} has {len(image_set.classes)} class folders")
    return image_set.classes
