"""Everything that a resumed run continues from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from relabel.models.card import ModelCard
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError, first_line
from train.optimizer import load_optimizer
from train.run_dir.checkpoint import LAST, save_checkpoint


@dataclass
class TrainingState:
    """The state of a run after `step` steps, in one process. `restore` loads what `save` has written.

    Attributes:
        model: timm's, not wrapped.
        scaler: scales a float16 loss; does nothing if not enabled.
        ema: a moving average of the weights, if the recipe has one.
        meter: (3,) float64 on the device, over this epoch and in this process: number of images, sum of their losses, number
            of those whose top-1 class is right.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    group: Processes
    step: int = 0
    meter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.meter = torch.zeros(3, dtype=torch.float64, device=self.group.device)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated and saved as the run's result: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def advance(self, counted: Tensor) -> None:
        """Count a finished step, add its (3,) counts to the meter, and update the moving average."""
        self.step += 1
        self.meter += counted
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    def save(self, run: Path, card: ModelCard, metrics: dict[str, Any] | None) -> None:
        """Write last.pt. All processes must call it; the first one writes.

        Args:
            metrics: of an epoch that has just ended, before it is evaluated and recorded.
        """
        meter = self.group.sum(self.meter.clone())
        if not self.group.is_first:
            return
        saved = {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seen": meter,
            "metrics": json.dumps(metrics),
            "card": card.to_json(),
        }
        if self.ema is not None:  # the key that makes timm, and so eval and export, prefer these weights
            saved["state_dict_ema"] = self.ema.module.state_dict()
        save_checkpoint(run / LAST, saved)

    def restore(self, saved: dict[str, Any], run: Path) -> dict[str, Any] | None:
        """Continue from what `save` has written. Returns the metrics in it.

        Raises:
            InputError: it is the state of another model or optimizer.
        """
        try:
            self.model.load_state_dict(saved["state_dict"])
            if self.ema is not None:
                self.ema.module.load_state_dict(saved["state_dict_ema"])
            load_optimizer(self.optimizer, saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"] or self.scaler.state_dict())  # empty if it was not enabled
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            raise InputError(
                f"{run / LAST} is not the state of this run ({type(error).__name__}: {first_line(error)}); restore it, or"
                " delete it to start from the beginning"
            ) from error
        self.step = saved["step"]
        if self.group.is_first:  # the saved meter is the sum over all processes
            self.meter = saved["seen"].to(self.group.device)
        metrics: dict[str, Any] | None = json.loads(saved.get("metrics", "null"))
        return metrics
