"""Convert one small classifier of every timm family: it has the listed kind, and its map fits the image.

All weights are random, including norms and heads: with their initial zeros and ones, every map would look right.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import is_model_in_modules
from torch import nn

from annotate.convert import REJECTED, fully_convolutional
from annotate.zoo.survey import probe
from annotate.zoo.table import SUPPORTED, load_table
from relabel.models.classifier import create_classifier
from relabel.runtime.errors import InputError

SIZE = (64, 96)
# By module of timm.models: the smallest classifier with published weights (or the smallest one, made thin), the cells of its
# map, and the pixels where 64x96 does not work (larger windows or stems, patches of 14, position tables that need a square,
# efficientformer's only size).
FAMILIES: dict[str, tuple[Any, ...]] = {
    "beit": ("beit_base_patch16_224", (4, 6)),
    "byoanet": ("eca_botnext26ts_256", (2, 3)),
    "byobnet": ("test_byobnet", (2, 3)),
    "cait": ("cait_xxs24_224", (4, 6)),
    "convit": ("convit_tiny", (4, 4), (64, 64)),
    "convmixer": ("convmixer_768_32", (9, 13)),
    "convnext": ("test_convnext", (2, 3)),
    "cpubone": ("cpubone_nano", (2, 3)),
    "csatv2": ("csatv2", (1, 2), (96, 128)),
    "cspnet": ("cs3darknet_focus_s", (2, 3)),
    "cspnext": ("cspnext_tiny", (2, 3)),
    "davit": ("davit_tiny", (2, 3)),
    "deepseek_vit": ("deepseek_vit_412m", (4, 6), (56, 84)),
    "deit": ("deit_tiny_patch16_224", (4, 6)),
    "densenet": ("densenet121", (2, 3)),
    "dla": ("dla46x_c", (2, 3)),
    "dpn": ("dpn68", (2, 3)),
    "edgenext": ("edgenext_xx_small", (2, 3)),
    "efficientformer": ("efficientformer_l1", (7, 7), (224, 224)),
    "efficientformer_v2": ("efficientformerv2_s0", (2, 3)),
    "efficientnet": ("test_efficientnet", (2, 3)),
    "efficientvit_mit": ("efficientvit_b0", (2, 3)),
    "efficientvit_msra": ("efficientvit_m0", (1, 2)),
    "eva": ("eva02_tiny_patch14_336", (4, 6)),
    "fasternet": ("fasternet_t0", (2, 3)),
    "fastvit": ("fastvit_t8", (2, 3)),
    "focalnet": ("focalnet_tiny_srf", (2, 3)),
    "gcvit": ("gcvit_xxtiny", (2, 3)),
    "gemma4_vit": ("gemma4_vit_167m", (4, 6)),
    "ghostnet": ("ghostnet_100", (2, 3)),
    "hardcorenas": ("hardcorenas_b", (2, 3)),
    "hgnet": ("hgnetv2_b0", (2, 3)),
    "hiera": ("hiera_tiny_224", (2, 3)),
    "hieradet_sam2": ("hieradet_small", (2, 3)),
    "hrnet": ("hrnet_w18_small", (2, 3)),
    "iformer": ("iformer_t", (2, 3)),
    "inception_next": ("inception_next_atto", (2, 3)),
    "inception_resnet_v2": ("inception_resnet_v2", (1, 2), (96, 128)),
    "inception_v3": ("inception_v3", (1, 2), (96, 128)),
    "inception_v4": ("inception_v4", (1, 2), (96, 128)),
    "lcnetv2": ("lcnetv2_small", (2, 3)),
    "levit": ("levit_128s", (1, 2)),
    "lowformer": ("lowformer_b0", (2, 3)),
    "mambaout": ("mambaout_femto", (2, 3)),
    "maxxvit": ("maxvit_rmlp_pico_rw_256", (2, 3)),
    "metaformer": ("caformer_s18", (2, 3)),
    "mlp_mixer": ("resmlp_12_224", (4, 6)),
    "mobilenetv3": ("mobilenetv3_small_050", (2, 3)),
    "mobilenetv5": ("mobilenetv5_base", (16, 16)),  # for any image size
    "mobilevit": ("mobilevit_xxs", (2, 3)),
    "mvitv2": ("mvitv2_tiny", (2, 2), (64, 64)),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", (4, 6)),
    "nasnet": ("nasnetalarge", (2, 3)),
    "nest": ("nest_tiny_jx", (4, 4), (64, 64)),
    "nextvit": ("nextvit_small", (2, 3)),
    "nfnet": ("test_nfnet", (2, 3)),
    "pnasnet": ("pnasnet5large", (2, 3)),
    "pvt_v2": ("pvt_v2_b0", (2, 3)),
    "qwen3_vit": ("qwen3_vit_88m", (4, 6)),
    "rdnet": ("rdnet_tiny", (2, 3)),
    "regnet": ("regnetx_002", (2, 3)),
    "repghost": ("repghostnet_050", (2, 3)),
    "repvit": ("repvit_m1", (2, 3)),
    "res2net": ("res2next50", (2, 3)),
    "resnest": ("resnest14d", (2, 3)),
    "resnet": ("test_resnet", (2, 3)),
    "resnetv2": ("resnetv2_18", (2, 3)),
    "rexnet": ("rexnet_100", (2, 3)),
    "selecsls": ("selecsls60", (1, 2)),
    "senet": ("legacy_seresnet18", (2, 3)),
    "sequencer": ("sequencer2d_s", (4, 6)),
    "shvit": ("shvit_s1", (1, 2)),
    "sknet": ("skresnet18", (2, 3)),
    "starnet": ("starnet_s1", (2, 3)),
    "swiftformer": ("swiftformer_xs", (2, 3)),
    "swin_transformer": ("swin_tiny_patch4_window7_224", (2, 3)),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", (2, 3)),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_ns_224", (2, 3)),
    "tiny_vit": ("tiny_vit_5m_224", (2, 3)),
    "tnt": ("tnt_s_legacy_patch16_224", (4, 6)),
    "tresnet": ("tresnet_m", (2, 3)),
    "twins": ("twins_svt_small", (2, 3)),
    "vgg": ("vgg11", (2, 3)),
    "visformer": ("visformer_tiny", (2, 3)),
    "vision_transformer": ("test_vit", (4, 6)),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", (2, 3)),
    "vision_transformer_relpos": ("vit_srelpos_small_patch16_224", (4, 6)),
    "vision_transformer_sam": ("samvit_base_patch16_224", (4, 6)),
    "vitamin": ("vitamin_small_224", (4, 6)),
    "volo": ("volo_d1_224", (4, 6)),
    "vovnet": ("ese_vovnet19b_dw", (2, 3)),
    "xception": ("legacy_xception", (2, 3)),
    "xception_aligned": ("xception41p", (2, 3)),
    "xcit": ("xcit_nano_12_p8_224", (8, 12)),
}
FAST = {
    "convnext",
    "efficientnet",
    "levit",
    "mobilenetv3",
    "nfnet",
    "regnet",
    "resnet",
    "swin_transformer",
    "vision_transformer",
}
THIN = {"depth": 1, "embed_dim": 64, "num_heads": 2}
KWARGS: dict[str, dict[str, Any]] = {  # for families whose smallest model is too large for a test
    "deepseek_vit": THIN,
    "gemma4_vit": THIN,
    "mobilenetv5": {"channel_multiplier": 0.1},
    "qwen3_vit": THIN,
    "vgg": {"mlp_ratio": 0.02},
    "vision_transformer_sam": THIN,
}
WITHOUT_A_MAP = {  # with the reason
    "coat": ("coat_tiny", "its features (list) are not a single feature map"),
    "crossvit": ("crossvit_tiny_240", "its features (list) are not a single feature map"),
    "efficientvim": ("efficientvim_m1", "its features (list) are not a single feature map"),
    "pit": ("pit_ti_224", "its features are a class token, not a feature map"),
}


def test_every_timm_family_is_tested_or_listed_with_a_reason() -> None:
    known = [*FAMILIES, *WITHOUT_A_MAP]
    assert len(known) == len(set(known))
    assert [model for model in timm.list_models() if not is_model_in_modules(model, known)] == []


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    """The kind of each published architecture in the table that was measured."""
    return {row.model.split(".")[0]: row.kind for row in load_table() if row.kind}


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in FAST else pytest.mark.slow) for f in FAMILIES])
@torch.inference_mode()
def test_family_has_the_listed_kind_and_its_map_has_the_expected_grid_and_mean(
    family: str, listed: dict[str, str], randomised: Callable[..., nn.Module]
) -> None:
    model, cells, size = (*FAMILIES[family], SIZE)[:3]
    assert is_model_in_modules(model, [family])
    kwargs = KWARGS.get(family, {})
    kind = listed[model] if model in listed else probe(model, kwargs | {"num_classes": 7}, size).kind
    torch.manual_seed(0)
    classifier = create_classifier(model, num_classes=7, input_size=size, model_kwargs=kwargs)
    classifier = randomised(classifier, size=size)
    if kind not in SUPPORTED:
        with pytest.raises(InputError) as caught:
            fully_convolutional(classifier, size, class_token=True)
        assert REJECTED[kind] in str(caught.value)
        return
    annotator = fully_convolutional(classifier, size, class_token=True)
    assert annotator.kind == kind
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    logits, maps = classifier(images), annotator(images)
    assert maps.shape == (2, 7, *cells)
    assert maps.std((2, 3)).mean() > 1e-3 * logits.std(), "a uniform map would prove nothing"
    difference = float((maps.mean((2, 3)) - logits).abs().max() / logits.std())
    assert difference < 1e-4 if kind == "exact" else difference > 1e-2
    annotator.recentre = True
    assert float((annotator(images).mean((2, 3)) - logits).abs().max() / logits.std()) < 1e-4


@pytest.mark.parametrize("family", WITHOUT_A_MAP)
def test_family_without_a_map_is_rejected_with_the_reason(family: str, randomised: Callable[..., nn.Module]) -> None:
    model, reason = WITHOUT_A_MAP[family]
    with pytest.raises(InputError) as caught:
        fully_convolutional(randomised(create_classifier(model, num_classes=7)), class_token=True)
    assert str(caught.value) == f"{model} cannot annotate: {reason}"
