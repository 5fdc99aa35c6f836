"""Token logits come from the model's own head; only models with a token for every patch are accepted."""

import pytest
import timm
import torch
from torch import nn

from relabel.runtime.errors import InputError
from train.tokens import WithTokens, token_grid

TINY = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    "more", [{}, {"global_pool": "avg"}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}]
)
def test_image_logits_are_the_models_and_token_logits_those_of_its_head_for_each_patch(more: dict[str, object]) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **TINY, **more).eval()
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 16, 24)
    logits, tokens = WithTokens(model)(images)
    torch.testing.assert_close(logits, model(images))
    assert token_grid(model, "tiny") == (2, 3) and tokens.shape == (2, 6, 5)
    features = model.forward_features(images)
    prefix = features.shape[1] - 6
    for token in range(6):
        torch.testing.assert_close(tokens[:, token], model.head(model.fc_norm(features[:, prefix + token])))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("resnet10t", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_siglip_224", {"num_classes": 5, "embed_dim": 24, "num_heads": 2, "depth": 1}),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
    ],
)
def test_model_without_a_token_for_every_patch_is_rejected_by_name(name: str, more: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"{name} \(.*\) is not one. Use a VisionTransformer of timm"):
        token_grid(timm.create_model(name, **more), name)
