"""Distillation: a classifier is asked about every crop while the student trains. What label maps replace.

Shapes: B images of a batch, S pixels of a crop's side, C classes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from relabel.images.classes import check_classes, class_indices
from relabel.images.image_set import ImageSet
from relabel.models.card import read_card
from relabel.models.classifier import create_classifier
from relabel.models.preprocessing import normalise
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast
from train.evaluation.eval_model import assumed_classes
from train.recipe import Recipe


@dataclass(frozen=True)
class TeacherChoice:
    """Which classifier is asked, as said on the command line.

    Attributes:
        model: timm's name; None where the checkpoint is of a run of ours, which says.
        checkpoint: its weights; the published ones if None.
        input_size: rows, columns in pixels; the model's own, or what the run was evaluated at, if None.
    """

    model: str | None = None
    checkpoint: Path | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Teacher:
    """A frozen classifier with the preprocessing it was trained with."""

    classifier: nn.Module
    input_size: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    autocast_dtype: torch.dtype | None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) crops as the student sees them, in units of uint8 -> (B, C) float32 logits."""
        images = images.float()
        if images.shape[-2:] != self.input_size:
            images = F.interpolate(images, self.input_size, mode=self.interpolation, antialias=True)
        images = normalise(images, self.mean, self.std).contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.autocast_dtype):
            logits: Tensor = self.classifier(images)
        return logits.float()


def load_teacher(
    choice: TeacherChoice | None,
    recipe: Recipe,
    image_set: ImageSet,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Teacher | None:
    """Make the classifier and put it on the device, if the recipe's target asks one.

    Raises:
        InputError: a teacher that is not asked, or none that is; a checkpoint that does not say its model; other classes
            than the folder's.
    """
    if recipe.target != "teacher":
        if choice is not None:
            raise InputError(f"--teacher: the recipe's target is {recipe.target!r}, which asks none; set target=teacher")
        return None
    if choice is None or (choice.model is None and choice.checkpoint is None):
        raise InputError("target 'teacher' asks a classifier; name it with --teacher, or give --teacher-checkpoint")
    model, kwargs, preprocessing = choice.model, choice.model_kwargs, None
    if model is None:
        assert choice.checkpoint is not None
        card = read_card(choice.checkpoint, "--teacher")
        check_classes(image_set, card.classes, str(choice.checkpoint))
        model, kwargs, preprocessing = card.arch, card.model_kwargs | kwargs, card.preprocessing
    classes = None if choice.checkpoint is None else len(image_set.classes)
    classifier = create_classifier(
        model,
        pretrained=choice.checkpoint is None,
        checkpoint=choice.checkpoint,
        num_classes=classes,
        model_kwargs=kwargs,
        weights_option="--teacher-checkpoint",
    )
    if preprocessing is None:  # it does not say which classes it knows
        whose = f"the teacher {model}"
        class_indices(image_set, assumed_classes(classifier, image_set, whose), whose)
    settings = resolve_model_data_config(classifier)
    rows, columns = choice.input_size or (
        (preprocessing.size, preprocessing.size) if preprocessing else settings["input_size"][-2:]
    )
    return Teacher(
        classifier.to(device).to(memory_format=torch.channels_last).requires_grad_(False),
        (rows, columns),
        settings["interpolation"] if settings["interpolation"] in ("bilinear", "bicubic") else "bilinear",
        settings["mean"],
        settings["std"],
        autocast_dtype,
    )
