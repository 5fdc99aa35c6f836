"""Token-level logits of vision transformers, for token-level targets (TokenLabeling, Jiang et al. 2021, arXiv 2104.10858).

The model's own head reads the patch tokens too, so the trained weights are those of a plain timm model.

Shapes: B images of a batch, C classes, N rows and M columns of patch tokens, D features.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from relabel.runtime.errors import InputError


class WithTokens(nn.Module):
    """A timm VisionTransformer whose forward pass returns logits of the image and of each patch token."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> (B, C) logits and (B, N * M, C) logits of the patch tokens, row by row."""
        features = self.module.forward_features(images)  # (B, prefix + N * M, D)
        patches = features[:, self.module.num_prefix_tokens :]
        token_logits = self.module.head(self.module.head_drop(self.module.fc_norm(patches)))
        return self.module.forward_head(features), token_logits


def token_grid(model: Any, name: str) -> tuple[int, int]:
    """N, M of the patch tokens of a model that `WithTokens` accepts.

    Raises:
        InputError: the model is not a vision transformer with one token for every patch and a plain head.
    """
    plain = (
        isinstance(model, VisionTransformer)
        and type(model).forward_head is VisionTransformer.forward_head  # no second head, as distilled ones have
        and model.attn_pool is None
        and model.patch_drop.__class__ is nn.Identity  # otherwise tokens are dropped, and it is unknown which
        and not model.dynamic_img_size
    )
    if not plain:
        raise InputError(
            f"token_weight needs a student with a token for every patch and a single head that reads tokens; {name}"
            f" ({type(model).__name__}) is not one. Use a VisionTransformer of timm, such as deit_small_patch16_224, without"
            " patch dropout, or set token_weight=0"
        )
    rows, columns = model.patch_embed.grid_size
    return rows, columns
