"""Distillation: a teacher predicts every crop while the student trains. Label maps replace this.

Shapes: B images of a batch, S pixels of a crop's side, C classes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from relabel.images.classes import check_recorded_classes, class_indices
from relabel.images.image_set import ImageSet
from relabel.models.card import check_same_model, find_card
from relabel.models.classifier import create_classifier
from relabel.models.preprocessing import normalise
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast
from train.evaluation.eval_model import assumed_classes, class_count
from train.recipe import Recipe


@dataclass(frozen=True)
class TeacherChoice:
    """Which classifier is the teacher, as named on the command line.

    Attributes:
        model: a timm model; not needed if `checkpoint` is a relabel checkpoint, whose model card names it.
        checkpoint: the weights; the published ones if None.
        model_kwargs: passed to timm.create_model.
        input_size: rows, columns in pixels; if None, the model's own, or the evaluation size of a relabel checkpoint.
        classes: names of its outputs: a file, or "timm"; a relabel checkpoint records them.
    """

    model: str | None = None
    checkpoint: Path | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    classes: str | None = None


@dataclass(frozen=True)
class Teacher:
    """A frozen classifier with the preprocessing it was trained with.

    Attributes:
        outputs: (C,) its output for each class of the images; None if they are the same, in order.
    """

    classifier: nn.Module
    input_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    autocast_dtype: torch.dtype | None
    outputs: Tensor | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) crops as the student sees them, in units of uint8 -> (B, C) float32 logits."""
        images = images.float()
        if images.shape[-2:] != self.input_size:
            images = F.interpolate(images, self.input_size, mode=self.interpolation, antialias=True)
        images = normalise(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.autocast_dtype):
            logits: Tensor = self.classifier(images)
        return (logits if self.outputs is None else logits[:, self.outputs]).float()


def load_teacher(
    choice: TeacherChoice | None,
    recipe: Recipe,
    image_set: ImageSet,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Teacher | None:
    """Create the teacher on the device; None if the recipe's target does not come from one.

    Raises:
        InputError: a teacher that the recipe does not use, or none where it needs one; a checkpoint without a model card and
            no model to go with it; images of classes that it does not have.
    """
    if recipe.target != "teacher":
        if choice is not None:
            raise InputError(
                f"--teacher: the recipe's target is {recipe.target!r}, which uses no teacher; set target=teacher"
            )
        return None
    if choice is None or (choice.model is None and choice.checkpoint is None):
        raise InputError("target 'teacher' needs a classifier; name it with --teacher, or give --teacher-checkpoint")
    model, kwargs, checkpoint = choice.model, choice.model_kwargs, choice.checkpoint
    card = find_card(checkpoint) if checkpoint is not None else None
    if card is not None:
        assert checkpoint is not None
        model = model or card.arch
        check_same_model(card, checkpoint, model, "--teacher")
        check_recorded_classes(card.classes, choice.classes, str(checkpoint), "--teacher-classes")
        class_indices(image_set, card.classes, str(checkpoint))  # before anything is loaded
        kwargs = card.model_kwargs | kwargs
    elif model is None:
        raise InputError(f"{checkpoint} does not record which model it is; name the model with --teacher")
    num_classes = class_count(card, checkpoint, model, kwargs, image_set, "--teacher-checkpoint")
    classifier = create_classifier(
        model,
        pretrained=checkpoint is None,
        checkpoint=checkpoint,
        num_classes=num_classes,
        model_kwargs=kwargs,
        weights_option="--teacher-checkpoint",
    )
    whose = str(checkpoint) if card is not None else f"the teacher {model}"
    if card is not None:
        classes = card.classes
    else:
        published = checkpoint is None
        classes = assumed_classes(classifier, image_set, whose, choice.classes, "--teacher-classes", published=published)
    outputs = torch.from_numpy(class_indices(image_set, classes, whose))
    preprocessing = card.preprocessing if card is not None else None
    settings = resolve_model_data_config(classifier)
    rows, columns = choice.input_size or (
        (preprocessing.size, preprocessing.size) if preprocessing else settings["input_size"][-2:]
    )
    return Teacher(
        classifier.to(device).to(memory_format=torch.channels_last).requires_grad_(False),
        (rows, columns),
        settings["interpolation"] if settings["interpolation"] in ("bilinear", "bicubic") else "bilinear",
        preprocessing.mean if preprocessing else settings["mean"],
        preprocessing.std if preprocessing else settings["std"],
        autocast_dtype,
        None if torch.equal(outputs, torch.arange(len(classes))) else outputs.to(device),
    )
