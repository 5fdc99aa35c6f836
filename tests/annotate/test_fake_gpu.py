"""Annotating on a GPU, checked without one: from a batch of decoded images to the label maps that the writer fetches."""

from typing import Any, get_args

import pytest
import timm
import torch
from torch import nn

from annotate.convert import FullyConvolutional, fully_convolutional
from annotate.forward import MapForward
from annotate.squash import Squash
from relabel.labels.maps import LabelMaps
from relabel.runtime.defaults import Tail
from tests.conftest import THIN, randomise
from tests.fake_gpu import NUMBER_IS_FETCHED, WRONG_DEVICE, fake_gpu
from tests.label_sets import manifest_of

pytestmark = pytest.mark.slow

CLASSES, TOPK = 7, 3
SIZE = (64, 96)
VIT: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}
SWIN: dict[str, Any] = {
    "img_size": SIZE,
    "window_size": 3,
    "patch_size": 8,
    "embed_dim": 8,
    "depths": (1, 1),
    "num_heads": (1, 1),
}


def annotator_of(name: str, kwargs: dict[str, Any], **options: bool) -> FullyConvolutional:
    """On the host, where its kind is measured: that fetches numbers, once."""
    classifier = randomise(timm.create_model(name, num_classes=CLASSES, **kwargs), 0)
    return fully_convolutional(classifier, SIZE, **options)


def check_maps(annotator: FullyConvolutional, outputs: list[int] | None = None, **manifest: Any) -> None:
    """Annotate five images by batches of two on the fake GPU: nothing is fetched, and the maps have the types of shards."""
    with torch.inference_mode():
        _, _, *grid = annotator(torch.zeros(1, 3, *SIZE)).shape
    classes = CLASSES if outputs is None else len(outputs)
    one = LabelMaps(torch.zeros(1, TOPK, *grid), torch.zeros(1, TOPK, *grid), torch.zeros(1, *grid))
    squash = Squash(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    with fake_gpu() as device:
        annotator.to(device)
        if outputs is not None:
            annotator.select(outputs)
        forward = MapForward(annotator, squash, manifest_of(["cat/1.JPEG"], one, classes, **manifest), 2)
        images = torch.zeros(5, 3, *SIZE, dtype=torch.uint8)
        with torch.inference_mode():
            parts = forward({"images": images})
        assert [len(part) for part in parts] == [2, 2, 1]
        for part in parts:
            for tensor, dtype in ((part.scores, torch.float16), (part.classes, torch.uint16), (part.tail, torch.float16)):
                assert tensor.device.type == "cuda" and tensor.dtype == dtype
            assert part.scores.shape[1:] == part.classes.shape[1:] == (TOPK, *grid) and part.tail.shape[1:] == (*grid,)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"recentre": True}, {"flip": True}, {"recentre": True, "flip": True}])
def test_label_maps_are_made_on_the_gpu_without_fetching_a_number(precision: str, options: dict[str, bool]) -> None:
    check_maps(annotator_of("resnet10t", THIN, **options), precision=precision)


@pytest.mark.parametrize("tail", get_args(Tail))
def test_every_tail_is_computed_on_the_gpu_without_fetching_a_number(tail: Tail) -> None:
    check_maps(annotator_of("resnet10t", THIN), tail=tail, precision="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "options"),
    [
        ("convnext_tiny", CONVNEXT, {}),
        ("swin_tiny_patch4_window7_224", SWIN, {}),
        ("vit_tiny_patch16_224", VIT | {"global_pool": "avg", "class_token": False}, {}),
        ("vit_tiny_patch16_224", VIT, {"class_token": True}),
        ("vgg11", {"mlp_ratio": 0.02}, {}),
    ],
)
def test_annotators_of_every_kind_run_on_the_gpu_without_fetching_a_number(
    name: str, kwargs: dict[str, Any], options: dict[str, bool]
) -> None:
    check_maps(annotator_of(name, kwargs, recentre=True, flip=True, **options), precision="bfloat16")


def test_outputs_are_selected_on_the_gpu_without_fetching_a_number() -> None:
    check_maps(annotator_of("resnet10t", THIN, flip=True), outputs=[4, 0, 6, 2])


# --- what the checks above would catch ------------------------------------------------------------------------------------


def test_annotator_that_looks_at_its_logits_is_caught() -> None:
    annotator = annotator_of("resnet10t", THIN)
    annotator.register_forward_hook(lambda _model, _args, logits: logits if logits.isfinite().all() else None)
    with pytest.raises(NUMBER_IS_FETCHED):
        check_maps(annotator)


def test_part_of_an_annotator_left_on_the_host_is_caught() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = torch.ones(3, 1, 1)  # not a buffer, so .to() leaves it behind

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + self.by

    annotator = annotator_of("resnet10t", THIN)
    annotator.classifier.conv1 = nn.Sequential(Offset(), annotator.classifier.conv1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=WRONG_DEVICE):
        check_maps(annotator)
