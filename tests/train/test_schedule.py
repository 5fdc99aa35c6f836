"""The learning rate of every step against formulas."""

import math

import pytest
import torch

from train.recipe import load_recipe
from train.schedule import create_schedule

STEPS, EPOCHS, WARMUP = 5, 20, 4  # steps per epoch


def rates(*settings: str) -> list[float]:
    recipe = load_recipe("single", [f"epochs={EPOCHS}", f"warmup_epochs={WARMUP}", "lr=0.4", *settings])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = create_schedule(optimizer, recipe, STEPS)
    found = []
    for step in range(STEPS * EPOCHS):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


WARM = [0.004 + 0.396 * step / (STEPS * WARMUP) for step in range(STEPS * WARMUP)]
AFTER = range(STEPS * WARMUP, STEPS * EPOCHS)


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        (["schedule=cosine"], [0.2 * (1 + math.cos(math.pi * step / 100)) for step in AFTER]),
        (["schedule=linear"], [0.4 * (1 - (step - 20) / 80) for step in AFTER]),
        (["schedule=step", "decay_epochs=6"], [0.4 * 0.1 ** (step // 30) for step in AFTER]),
        (["schedule=constant"], [0.4 for _ in AFTER]),
    ],
)
def test_rates_follow_the_formula(settings: list[str], after: list[float]) -> None:
    assert rates(*settings) == pytest.approx(WARM + after)
