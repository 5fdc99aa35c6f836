"""Evaluating on a GPU, checked without one: what runs there between a batch's arrival and the fetching of its results."""

import pytest
import timm
import torch
from torch import Tensor, nn

from relabel.runtime.precision import autocast
from tests.fake_gpu import WRONG_DEVICE, fake_gpu
from tests.slow_loop import PREPROCESSING, THIN
from train.evaluation.fgsm import EPSILON, fgsm
from train.evaluation.predictions import top_classes

CLASSES, BATCH = 7, 3
SHAPE = (BATCH, 3, PREPROCESSING.size, PREPROCESSING.size)


@pytest.fixture
def classifier() -> nn.Module:
    model: nn.Module = timm.create_model("resnet10t", num_classes=CLASSES, **THIN)
    return model.eval()


@pytest.fixture(autouse=True)
def given_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of backward, which needs a driver: the attack's gradient of each pixel."""

    def given(loss: Tensor, pixels: Tensor) -> tuple[Tensor]:
        assert (loss.shape, loss.dtype, loss.device.type, loss.requires_grad) == ((), torch.float32, "cuda", True)
        return (torch.empty_like(pixels),)

    monkeypatch.setattr(torch.autograd, "grad", given)


@pytest.mark.parametrize("among", [[0, 1, 2, 3, 4, 5, 6], [4, 0, 6, 2, 5]])
def test_best_classes_are_found_on_the_gpu_without_fetching_a_number(classifier: nn.Module, among: list[int]) -> None:
    with fake_gpu() as device, torch.no_grad():
        pixels = torch.zeros(SHAPE, dtype=torch.uint8).to(device)
        with autocast(device, torch.bfloat16):
            logits = classifier.to(device)(PREPROCESSING.normalise(pixels))
        assert logits.dtype == torch.bfloat16
        best = top_classes(logits.float(), torch.tensor(among).to(device), 5)
        assert (best.shape, best.dtype, best.device.type) == ((BATCH, 5), torch.int64, "cuda")


def test_attack_runs_on_the_gpu_without_fetching_a_number(classifier: nn.Module) -> None:
    with fake_gpu() as device:
        pixels, targets = torch.zeros(SHAPE, dtype=torch.uint8).to(device), torch.zeros(BATCH, dtype=torch.int64).to(device)
        attacked = fgsm(classifier.to(device), pixels, targets, EPSILON, PREPROCESSING)
        assert (attacked.shape, attacked.dtype, attacked.device.type) == (SHAPE, torch.float32, "cuda")


# --- what the checks above would catch ------------------------------------------------------------------------------------


def test_targets_of_the_attack_left_on_the_host_are_caught(classifier: nn.Module) -> None:
    with fake_gpu() as device, pytest.raises(RuntimeError, match=WRONG_DEVICE):
        pixels = torch.zeros(SHAPE, dtype=torch.uint8).to(device)
        fgsm(classifier.to(device), pixels, torch.zeros(BATCH, dtype=torch.int64), EPSILON, PREPROCESSING)
