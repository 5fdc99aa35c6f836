"""The manifest of the label set that the settings produce."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from annotate.config import AnnotateConfig
from annotate.convert import FullyConvolutional
from annotate.squash import Squash
from relabel.images.image_set import ImageSet, keys_digest
from relabel.labels.manifest import PUBLISHED, Manifest, Member
from relabel.models.weights import weights_from_hub, weights_in_folder
from relabel.runtime.defaults import CROP_RATIO, CROP_SCALE, HFLIP, REGION_TAIL, TAIL
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of

TOPK = 5  # logits kept per cell by default, as in the paper
REGION_TOPK = 10  # per region, as ml-dr and TinyViT keep


def build_manifest(
    config: AnnotateConfig,
    annotator: FullyConvolutional,
    squash: Squash,
    image_set: ImageSet,
    outputs: list[int] | None = None,
) -> Manifest:
    """The manifest of the set of label maps that these settings produce."""
    device = next(annotator.parameters()).device
    with torch.inference_mode():
        _, num_classes, rows, columns = annotator(torch.zeros(1, 3, *squash.input_size, device=device)).shape
    of_model = member(config, annotator.classifier, squash, outputs)
    return Manifest(
        **vars(of_model),
        num_classes=num_classes,
        kind=annotator.kind,
        precision=config.precision,
        topk=topk_of(config, num_classes, TOPK, of_model.outputs),
        tail=config.tail or TAIL,
        grid=(rows, columns),
        recentre=config.recentre,
        flip=config.flip,
        **of_images(config, image_set, num_classes),
    )


def build_region_manifest(
    config: AnnotateConfig, members: Sequence[Member], num_classes: int, image_set: ImageSet
) -> Manifest:
    """The manifest of the set of regions that these settings and models produce."""
    first, *further = members
    return Manifest(
        **vars(first),
        num_classes=num_classes,
        kind="exact",
        precision=config.precision,
        topk=topk_of(config, num_classes, REGION_TOPK, first.outputs),
        tail=config.tail or REGION_TAIL,
        grid=None,
        regions=config.regions,
        crop_scale=config.crop_scale or CROP_SCALE,
        crop_ratio=config.crop_ratio or CROP_RATIO,
        hflip=HFLIP if config.hflip is None else config.hflip,
        ensemble=tuple(further) or None,
        **of_images(config, image_set, num_classes),
    )


def member(config: AnnotateConfig, classifier: nn.Module, squash: Squash, outputs: list[int] | None) -> Member:
    """What a manifest records of a model."""
    own_weights = config.checkpoint or weights_in_folder(config.model)
    weights = own_weights or weights_from_hub(classifier)
    return Member(
        model=config.model if config.checkpoint or ":" in config.model else tagged_name(classifier),
        model_kwargs=config.model_kwargs,
        weights=own_weights.name if own_weights else PUBLISHED,
        weights_sha256=sha256_of(weights) if weights else None,
        input_size=squash.input_size,
        mean=squash.mean,
        std=squash.std,
        interpolation=squash.interpolation,
        outputs=tuple(outputs) if outputs is not None else None,
        num_outputs=num_outputs(classifier) if outputs is not None else None,
    )


def num_outputs(classifier: nn.Module) -> int:
    return int(classifier.num_classes)  # type: ignore[arg-type]


def of_images(config: AnnotateConfig, image_set: ImageSet, num_classes: int) -> dict[str, Any]:
    """What a manifest records of the images, and of the versions."""
    return {
        "image_count": len(image_set),
        "image_digest": keys_digest(image_set.keys),
        "shard_size": config.shard_size,
        "classes": tuple(image_set.classes) if len(image_set.classes) == num_classes else None,
        "timm_version": timm.__version__,
        "torch_version": torch.__version__,
    }


def topk_of(config: AnnotateConfig, num_classes: int, default: int, outputs: Sequence[int] | None) -> int:
    """The number of logits to keep, which the classifier must have."""
    topk = config.topk or min(default, num_classes)
    if topk > num_classes:
        selected = " (selected with --classes)" if outputs is not None else ""
        raise InputError(
            f"--topk {topk}: {config.model} gives only {num_classes} classes{selected}; use at most {num_classes}"
        )
    return topk


def tagged_name(classifier: nn.Module) -> str:
    """timm's full name of the published weights. The default tag may change between timm versions; this makes it visible."""
    settings: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    return ".".join(filter(None, (settings["architecture"], settings.get("tag"))))
