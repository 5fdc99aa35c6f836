"""The classifiers that annotate: created with their weights, their preprocessing, and the outputs that are stored."""

import dataclasses
import logging
from typing import Any

import torch
from torch import nn

from annotate.config import AnnotateConfig
from annotate.convert import EMBEDDINGS, NO_CLASSES, FullyConvolutional, fully_convolutional
from annotate.outputs import outputs_by_name
from annotate.squash import Squash
from relabel.images.classes import (
    check_recorded_classes,
    class_indices,
    listing_advice,
    numbered_as_imagenet,
    warn_of_plain_order,
)
from relabel.images.image_set import ImageSet
from relabel.models.card import ModelCard, check_same_model, find_card
from relabel.models.classifier import create_classifier
from relabel.runtime.defaults import ANNOTATOR
from relabel.runtime.errors import InputError

logger = logging.getLogger(__name__)


def with_card(config: AnnotateConfig) -> tuple[AnnotateConfig, ModelCard | None]:
    """The settings with what a relabel checkpoint records of itself, and its card; None for other weights."""
    card = find_card(config.checkpoint) if config.checkpoint is not None else None
    return (as_recorded(config, card) if card is not None else config), card


def as_recorded(config: AnnotateConfig, card: ModelCard) -> AnnotateConfig:
    """The settings with what a relabel checkpoint records of itself: its model, arguments, class count and input size.

    Raises:
        InputError: the settings contradict it.
    """
    checkpoint = config.checkpoint
    assert checkpoint is not None
    model = config.model
    if model == ANNOTATOR:
        model = card.arch
    check_same_model(card, checkpoint, model, "--model")
    if config.num_classes not in (None, len(card.classes)):
        raise InputError(
            f"--num-classes {config.num_classes}: {checkpoint} records {len(card.classes)} classes; leave --num-classes out"
        )
    for name, value in config.model_kwargs.items():
        if card.model_kwargs.get(name, value) != value:
            logger.warning(f"--model-kwargs {name}={value}: {checkpoint} was trained with {card.model_kwargs[name]}")
    return dataclasses.replace(
        config,
        model=model,
        model_kwargs=card.model_kwargs | config.model_kwargs,
        num_classes=len(card.classes),
        input_size=config.input_size or (card.preprocessing.size, card.preprocessing.size),
    )


def outputs_for_images(
    config: AnnotateConfig, card: ModelCard | None, classifier: nn.Module, image_set: ImageSet
) -> list[int] | None:
    """The classifier's output for each class of the images, as --classes or the checkpoint says; None for all in order.

    Raises:
        InputError: the images have classes that the classifier does not have.
    """
    if card is not None:
        check_recorded_classes(card.classes, config.classes, str(config.checkpoint), "--classes")
    if config.classes is not None:
        return outputs_by_name(config.classes, classifier, image_set)
    if card is not None:
        outputs = class_indices(image_set, card.classes, str(config.checkpoint)).tolist()
        return None if outputs == list(range(len(card.classes))) else outputs
    published = config.checkpoint is None and ":" not in config.model
    if len(image_set.classes) == classifier.num_classes and not (published and numbered_as_imagenet(image_set)):
        owner = config.model if config.checkpoint is None else str(config.checkpoint)
        warn_of_plain_order(image_set, owner, listing_advice("--classes"))
    return None


def load_annotator(
    config: AnnotateConfig, device: torch.device, card: ModelCard | None = None
) -> tuple[FullyConvolutional, Squash]:
    """As `load_classifier`, and convert the classifier."""
    classifier, squash = load_classifier(config, device, card)
    annotator = fully_convolutional(
        classifier, squash.input_size, recentre=config.recentre, flip=config.flip, class_token=config.class_token
    )
    return annotator, squash


def load_classifier(config: AnnotateConfig, device: torch.device, card: ModelCard | None = None) -> tuple[nn.Module, Squash]:
    """Create the classifier, and take its preprocessing from its own timm settings.

    Args:
        card: of a relabel checkpoint, whose normalisation takes the place of timm's (`with_card`).
    """
    torch.backends.cudnn.allow_tf32 = False  # TF32 would spoil the measured kind, and a manifest's "float32" must be true
    classifier = create_classifier(
        config.model,
        pretrained=config.checkpoint is None,
        checkpoint=config.checkpoint,
        num_classes=config.num_classes,
        model_kwargs=config.model_kwargs,
        input_size=config.input_size,
    )
    published: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    if config.checkpoint is None and config.num_classes not in (None, published.get("num_classes")):
        raise InputError(
            f"the published {config.model} has {published.get('num_classes')} classes, not {config.num_classes}, so its head"
            " would be random; pass your own weights with --checkpoint"
        )
    if config.checkpoint is None and ":" not in config.model and classifier.num_classes in EMBEDDINGS:
        raise InputError(f"{config.model} cannot annotate: {NO_CLASSES}; pass a classifier's weights with --checkpoint")
    squash = Squash.of_model(classifier, config.input_size)
    if card is not None:
        recorded: Any = card.preprocessing
        squash = dataclasses.replace(squash, mean=recorded.mean, std=recorded.std)
    return classifier.to(device).to(memory_format=torch.channels_last), squash
