"""timm's optimizers, and the state they are saved with."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from torch import nn

from relabel.runtime.errors import InputError, first_line
from train.recipe import Recipe

# An optimiser's arguments where timm's defaults are not its authors'. Of weights that AdamP projects, the share of weight
# decay that is left: the reference trains with AdamP's own
OWN_DEFAULTS = {"adamp": {"wd_ratio": 0.1}}


def create_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """timm's optimiser, on CUDA as one fused kernel where torch has it, with OWN_DEFAULTS.

    Raises:
        InputError: timm has no such optimiser.
    """
    if recipe.optimizer == "adahessian":
        raise InputError(
            "recipe: optimizer = 'adahessian' needs second derivatives, which the step does not make; name another"
        )
    try:
        takes = inspect.signature(get_optimizer_class(recipe.optimizer, bind_defaults=False)).parameters
        fused = {"fused": True} if device.type == "cuda" and "fused" in takes else {}
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_all,
            **fused,
            **OWN_DEFAULTS.get(recipe.optimizer.lower(), {}),
        )
    except (ValueError, TypeError, AssertionError, ImportError) as error:  # of packages that are not there, too
        raise InputError(
            f"recipe: optimizer = {recipe.optimizer!r}: {first_line(error)}; timm.optim.list_optimizers() lists them"
        ) from error
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state, but not whether it was fused: that is for the device it trains on now."""
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, of_group in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = of_group
