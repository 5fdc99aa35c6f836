"""timm's optimizers, and how their saved state is loaded."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from torch import nn

from relabel.runtime.errors import InputError, first_line
from train.recipe import Recipe

# Where timm's defaults differ from those of an optimizer's authors, with which the reference trains. wd_ratio: the share of
# weight decay that is left for weights that AdamP projects
AUTHORS_DEFAULTS = {"adamp": {"wd_ratio": 0.1}}


def create_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """timm's optimizer, with AUTHORS_DEFAULTS; on CUDA as one fused kernel where torch has it.

    Raises:
        InputError: timm has no such optimizer.
    """
    if recipe.optimizer == "adahessian":
        raise InputError(
            "recipe: optimizer = 'adahessian' needs second derivatives, which the step does not compute; choose another"
        )
    try:
        parameters = inspect.signature(get_optimizer_class(recipe.optimizer, bind_defaults=False)).parameters
        fused = {"fused": True} if device.type == "cuda" and "fused" in parameters else {}
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_all,
            **fused,
            **AUTHORS_DEFAULTS.get(recipe.optimizer.lower(), {}),
        )
    except (ValueError, TypeError, AssertionError, ImportError) as error:  # some optimizers need other packages
        raise InputError(
            f"recipe: optimizer = {recipe.optimizer!r}: {first_line(error)}; timm.optim.list_optimizers() lists them"
        ) from error
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, except whether the optimizer was fused, which depends on the device in use."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, value in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = value
