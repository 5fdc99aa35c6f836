"""The progress of an epoch: a bar where there is a terminal, and the figures that are recorded at its end."""

import time
from typing import Any

from tqdm import tqdm

from train.recipe import Recipe
from train.state import TrainingState


class EpochProgress:
    """One epoch, from its start or from where a resumed run continues it, to its end."""

    def __init__(self, state: TrainingState, steps_per_epoch: int, recipe: Recipe) -> None:
        self.state, self.group, self.recipe = state, state.group, recipe
        self.epoch, done = divmod(state.step, steps_per_epoch)
        self.bar = tqdm(
            total=steps_per_epoch * recipe.batch_size,
            initial=done * recipe.batch_size,
            desc=f"epoch {self.epoch + 1}/{recipe.epochs}",
            unit="img",
            leave=False,
            disable=None if self.group.is_first and self.epoch < recipe.epochs else True,
        )
        self.images_before = float(self.group.sum(state.meter[:1].clone()))
        self.start_s = time.perf_counter()

    def update(self) -> None:
        self.bar.update(self.recipe.batch_size)

    def show(self) -> None:
        """Show the epoch's loss and top-1 so far. Waits for the device."""
        images, loss, right = self.state.meter.tolist()
        self.bar.set_postfix(loss=f"{loss / images:.3f}", top1=f"{100 * right / images:.1f}", refresh=False)

    def finish(self) -> dict[str, Any]:
        """The metrics of the finished epoch; the state's meter starts again from zero."""
        self.close()
        wall_s = time.perf_counter() - self.start_s
        images, loss, right = self.group.sum(self.state.meter).tolist()
        self.state.meter.zero_()
        return {
            "epoch": self.epoch + 1,
            "step": self.state.step,
            "loss": loss / images,
            "top1": 100 * right / images,
            "lr": self.state.lr,
            "images_per_s": (images - self.images_before) / wall_s,
            "wall_s": wall_s,
        }

    def close(self) -> None:
        self.bar.close()


def summary(metrics: dict[str, Any], recipe: Recipe) -> str:
    """One line for the log."""
    line = (
        f"epoch {metrics['epoch']:>{len(str(recipe.epochs))}}/{recipe.epochs}  loss {metrics['loss']:.3f}"
        f"  top-1 {metrics['top1']:.1f}  {metrics['images_per_s']:.0f} img/s"
    )
    for name, value in metrics.get("val", {}).items():
        if not name.endswith("images"):
            line += f"  val {name} {value:.2f}"
    return line
