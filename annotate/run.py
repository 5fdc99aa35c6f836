"""Stage one: run every image through the annotator once and store its sparse label map in a shard."""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from annotate.convert import EMBEDDINGS, NO_CLASSES, REJECTED, FullyConvolutional, fully_convolutional
from annotate.forward import MapForward
from annotate.label_folder import finish, prepare, write_lock
from annotate.loop import annotate_shards
from annotate.outputs import outputs_by_name
from annotate.squash import Squash
from relabel.images.classes import (
    check_recorded_classes,
    class_indices,
    listing_advice,
    numbered_as_imagenet,
    warn_of_plain_order,
)
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.sources import check_outside, find_images
from relabel.labels.manifest import PUBLISHED, Manifest
from relabel.models.card import ModelCard, check_same_model, find_card
from relabel.models.classifier import create_classifier
from relabel.models.weights import weights_from_hub, weights_in_folder
from relabel.runtime.defaults import ANNOTATE_BATCH_SIZE, ANNOTATOR, SHARD_SIZE, TAIL, Precision, Tail
from relabel.runtime.distributed import processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from relabel.runtime.workers import decoding_workers

logger = logging.getLogger(__name__)

TOPK = 5  # logits kept per cell by default, as in the paper


@dataclass(frozen=True)
class AnnotateConfig:
    """The settings that a label set is made with, from the options of the command line."""

    model: str = ANNOTATOR  # a relabel checkpoint names its own, which takes the default's place
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None  # own weights instead of the published ones
    num_classes: int | None = None
    topk: int | None = None  # None for TOPK, or all classes if there are fewer
    tail: Tail = TAIL
    input_size: tuple[int, int] | None = None  # rows, columns of pixels; None for the model's or the checkpoint's own
    batch_size: int = ANNOTATE_BATCH_SIZE
    workers: int | None = None  # decoding processes
    shard_size: int = SHARD_SIZE
    recentre: bool = False  # shift every map so that its mean equals the classifier's logits, whatever the kind
    flip: bool = False  # average with the map of the mirrored image
    class_token: bool = False  # accept models whose head reads a class token
    classes: str | None = None  # names of the classifier's outputs, to match with the images' classes: annotate/outputs.py
    precision: Precision = "float32"  # of the forward pass
    compile: bool = False  # with torch.compile: takes minutes at the start, then runs faster
    skip_unreadable: bool = False


def annotate(images: Path | str, labels: Path, config: AnnotateConfig, device: str | None = None) -> None:
    """Write the label set of an image folder; a rerun keeps finished shards and makes the rest.

    Args:
        images: any source that relabel/images/sources.py reads, such as ROOT/CLASS/*.JPEG.
        labels: the label set's folder; created if missing.
    Raises:
        InputError: no images, a model that cannot annotate, a folder that holds a different label set, unreadable images
            (all of a shard's are listed, after the pass over it), or a disk error. Finished shards are kept.
    """
    for name in ("topk", "batch_size", "shard_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; expected at least 1")
    workers = decoding_workers(config.workers)
    check_outside(labels, images, "--labels")
    image_set = find_images(images)
    card = find_card(config.checkpoint) if config.checkpoint is not None else None
    if card is not None:
        config = as_recorded(config, card)
    with processes(device) as group:
        annotator, squash = load_annotator(config, group.device)
        if card is not None:
            recorded: Any = card.preprocessing
            squash = dataclasses.replace(squash, mean=recorded.mean, std=recorded.std)
        outputs = outputs_for_images(config, card, annotator, image_set)
        if outputs is not None:
            annotator.select(outputs)
        if annotator.kind == "token":
            logger.warning(f"{annotator.name}: {REJECTED['token']}; look at its maps before you train on them")
        manifest = build_manifest(config, annotator, squash, image_set, outputs)
        if manifest.num_classes != len(image_set.classes):
            logger.warning(
                f"{annotator.name} has {manifest.num_classes} classes, but {image_set.source} has {len(image_set.classes)};"
                f" train accepts these maps only for images with {manifest.num_classes} classes. Use --classes to match"
                " outputs by name"
            )
        forward = MapForward(annotator, squash, manifest, config.batch_size)
        if config.compile:
            forward.compile()
        try:
            labels.mkdir(parents=True, exist_ok=True)
            with write_lock(labels, group):
                pending = prepare(labels, manifest, group, config.skip_unreadable)
                mine = pending[group.rank :: group.world]
                annotate_shards(image_set, labels, mine, manifest, forward, group, workers, config.skip_unreadable)
                group.barrier()
                if group.is_first:
                    finish(labels, manifest)
        except OSError as error:
            raise InputError(
                f"annotating into {labels} stopped: {error}. Finished shards are kept; rerun to continue"
            ) from error


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
    check_recorded_classes(card.classes, config.classes, str(checkpoint), "--classes")
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
    config: AnnotateConfig, card: ModelCard | None, annotator: FullyConvolutional, image_set: ImageSet
) -> list[int] | None:
    """The classifier's output for each class of the images, as --classes or the checkpoint says; None for all in order.

    Raises:
        InputError: the images have classes that the classifier does not have.
    """
    if config.classes is not None:
        return outputs_by_name(config.classes, annotator.classifier, image_set)
    if card is not None:
        outputs = class_indices(image_set, card.classes, str(config.checkpoint)).tolist()
        return None if outputs == list(range(len(card.classes))) else outputs
    published = config.checkpoint is None and ":" not in config.model
    if len(image_set.classes) == annotator.classifier.num_classes and not (published and numbered_as_imagenet(image_set)):
        owner = config.model if config.checkpoint is None else str(config.checkpoint)
        warn_of_plain_order(image_set, owner, listing_advice("--classes"))
    return None


def load_annotator(config: AnnotateConfig, device: torch.device) -> tuple[FullyConvolutional, Squash]:
    """Create the classifier, convert it, and take its preprocessing from its own timm settings."""
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
    annotator = fully_convolutional(
        classifier.to(device).to(memory_format=torch.channels_last),
        squash.input_size,
        recentre=config.recentre,
        flip=config.flip,
        class_token=config.class_token,
    )
    return annotator, squash


def build_manifest(
    config: AnnotateConfig,
    annotator: FullyConvolutional,
    squash: Squash,
    image_set: ImageSet,
    outputs: list[int] | None = None,
) -> Manifest:
    """The manifest of the label set that these settings produce."""
    device = next(annotator.parameters()).device
    with torch.inference_mode():
        _, num_classes, rows, columns = annotator(torch.zeros(1, 3, *squash.input_size, device=device)).shape
    topk = config.topk or min(TOPK, num_classes)
    if topk > num_classes:
        selected = " (selected with --classes)" if outputs is not None else ""
        raise InputError(
            f"--topk {topk}: {config.model} gives only {num_classes} classes{selected}; use at most {num_classes}"
        )
    own_weights = config.checkpoint or weights_in_folder(config.model)
    weights = own_weights or weights_from_hub(annotator.classifier)
    return Manifest(
        model=config.model if config.checkpoint or ":" in config.model else tagged_name(annotator.classifier),
        model_kwargs=config.model_kwargs,
        weights=own_weights.name if own_weights else PUBLISHED,
        weights_sha256=sha256_of(weights) if weights else None,
        num_classes=num_classes,
        kind=annotator.kind,
        input_size=squash.input_size,
        mean=squash.mean,
        std=squash.std,
        interpolation=squash.interpolation,
        precision=config.precision,
        topk=topk,
        tail=config.tail,
        grid=(rows, columns),
        image_count=len(image_set),
        image_digest=keys_digest(image_set.keys),
        shard_size=config.shard_size,
        classes=tuple(image_set.classes) if len(image_set.classes) == num_classes else None,
        outputs=tuple(outputs) if outputs is not None else None,
        num_outputs=annotator.classifier.num_classes if outputs is not None else None,  # type: ignore[arg-type]
        recentre=config.recentre,
        flip=config.flip,
        timm_version=timm.__version__,
        torch_version=torch.__version__,
    )


def tagged_name(classifier: nn.Module) -> str:
    """timm's full name of the published weights. The default tag may change between timm versions; this makes it visible."""
    settings: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    return ".".join(filter(None, (settings["architecture"], settings.get("tag"))))
