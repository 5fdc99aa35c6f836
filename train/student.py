"""The model that is trained."""

from dataclasses import dataclass

import torch
from timm.data import resolve_model_data_config
from timm.layers import convert_sync_batchnorm
from torch import nn

from relabel.models.card import ModelCard
from relabel.models.classifier import check_image_size, create_classifier
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.errors import InputError
from train.options import TrainOptions
from train.recipe import Recipe
from train.seeds import seed_of
from train.tokens import token_grid


@dataclass(frozen=True)
class Student:
    """A timm model in training mode on the training device, with its card.

    Attributes:
        token_grid: rows, columns of its patch tokens, if the recipe trains them.
    """

    model: nn.Module
    card: ModelCard
    token_grid: tuple[int, int] | None


def build_student(
    arch: str, recipe: Recipe, classes: tuple[str, ...], options: TrainOptions, device: torch.device
) -> Student:
    """Create the model with its initial weights, which depend on the recipe's seed.

    Raises:
        InputError: timm has no such model, weights that do not fit it, or sizes that it does not take.
    """
    if options.sync_bn and device.type != "cuda":
        raise InputError("--sync-bn needs CUDA: torch's SyncBatchNorm does not run on a CPU")
    if recipe.start == "pretrained" and not options.pretrained and options.initial_weights is None:
        raise InputError(
            "this recipe starts from pretrained weights (start = 'pretrained'): give --pretrained with an --arch that has"
            " some, such as resnetv2_50x1_bit.goog_in21k, or --initial-weights FILE"
        )
    torch.manual_seed(seed_of(recipe.seed))
    model: nn.Module = create_classifier(
        arch,
        pretrained=options.pretrained,
        checkpoint=options.initial_weights,
        num_classes=len(classes),
        model_kwargs=options.model_kwargs,
        new_head=True,
        weights_option="--initial-weights",
    )
    for setting in ("image_size", "eval_size"):
        check_image_size(model, arch, getattr(recipe, setting), setting)
    grid = token_grid(model, arch) if recipe.token_weight else None
    settings = resolve_model_data_config(model)
    preprocessing = Preprocessing(recipe.eval_size, recipe.eval_crop, "bilinear", settings["mean"], settings["std"])
    card = ModelCard(arch, options.model_kwargs, classes, preprocessing, recipe.loss)
    if options.sync_bn:
        model = convert_sync_batchnorm(model)
    model = model.to(device).to(memory_format=torch.channels_last).train()  # the layout that tensor cores prefer
    return Student(model, card, grid)
