"""The loss of a student's output.

Shapes: B crops of a batch, C classes, T patch tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from train.recipe import Recipe
from train.supervision import as_probabilities


def target_loss(logits: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """Mean loss of (B, C) logits against (B, C) probabilities or (B,) classes."""
    if recipe.loss == "ce":
        return F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
    target = as_probabilities(target, logits.shape[1])
    target = torch.lerp(target, torch.full_like(target, 1 / logits.shape[1]), recipe.label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def loss_with_tokens(
    output: Tensor | tuple[Tensor, Tensor], target: Tensor, token_target: Tensor | None, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """The loss, and the (B, C) float32 logits of whole crops, of a student's output with or without token logits.

    Args:
        output: (B, C) logits, or those and (B, T, C) token logits.
        token_target: (B, T, C) probabilities or (B, T) classes.
    """
    if isinstance(output, Tensor):
        logits = output.float()
        return target_loss(logits, target, recipe), logits
    logits, token_logits = (part.float() for part in output)
    assert token_target is not None
    token_loss = target_loss(token_logits.flatten(0, 1), token_target.flatten(0, 1), recipe)
    return target_loss(logits, target, recipe) + recipe.token_weight * token_loss, logits
