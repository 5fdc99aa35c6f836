"""FGSM against a classifier whose gradient is known by hand, and against a slow step in normalised units."""

import pytest
import torch
from torch import Tensor, nn

from relabel.models.preprocessing import Preprocessing
from train.evaluation.fgsm import EPSILON, fgsm

PREPROCESSING = Preprocessing(2, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.1, 0.4))


class Weighs(nn.Module):
    """Scores class 1 against class 0 by a weighted sum of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1).expand(3, 2, 2).clone())

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_step_moves_away_from_the_class_by_the_sign_of_the_gradient() -> None:
    pixels = torch.full((2, 3, 2, 2), 100, dtype=torch.uint8)
    attacked = fgsm(Weighs(), pixels, torch.tensor([1, 0]), 8 / 255, PREPROCESSING)
    # for class 1, red helps, green harms and blue does nothing: red goes down, green up; for class 0 the other way round
    assert attacked[0, :, 0, 0].tolist() == pytest.approx([92, 108, 100])
    assert attacked[1, :, 0, 0].tolist() == pytest.approx([108, 92, 100])


def test_pixels_stay_valid() -> None:
    pixels = torch.tensor([3, 250, 7], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    attacked = fgsm(Weighs(), pixels, torch.tensor([1]), 8 / 255, PREPROCESSING)
    assert attacked[0, :, 1, 1].tolist() == pytest.approx([0, 255, 7])


def test_attack_equals_a_slow_one_in_normalised_units() -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    preprocessing = Preprocessing(6, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.1, 0.4))
    pixels = torch.randint(0, 256, (5, 3, 6, 6), dtype=torch.uint8)
    targets = torch.tensor([0, 1, 2, 3, 0])
    attacked = fgsm(classifier, pixels, targets, EPSILON, preprocessing)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    for i in range(5):
        x = ((pixels[i] / 255 - mean) / std).requires_grad_()
        loss = nn.functional.cross_entropy(classifier(x.unsqueeze(0)), targets[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, x)
        moved = (x.detach() + gradient.sign() * (8 / 255) / std) * std + mean  # a step of 8/255 is this long after scaling
        torch.testing.assert_close(attacked[i] / 255, moved.clamp(0, 1), rtol=0, atol=1e-5)
    assert (attacked - pixels).abs().max() <= 8 + 1e-4
