"""Reports a loss that is not finite, with its step and images, without making every step wait for the device.

Losses stay on the device until the next check, which fetches them all. The images of a step need not be stored: they follow
from the seed.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from train.crops import TrainingBatches
from train.recipe import Recipe
from train.run_dir.checkpoint import LAST
from train.training_set import TrainingSet

DIVERGED = "diverged.json"
MAX_NAMED = 4  # images in the message; all are in the file


class LossMonitor:
    """Collects the loss of every step on the device; `check` finds those that are not finite.

    Attributes:
        initial_weights: the file that the run started from. The reason may be in it, or in the label maps.
    """

    def __init__(self, data: TrainingSet, initial_weights: Path | None, recipe: Recipe, run: Path, group: Processes) -> None:
        self.image_set, self.initial_weights = data.images, initial_weights
        self.stores = [store for store in (data.store, data.maps) if store is not None]
        self.recipe, self.run, self.group = recipe, run, group
        self.losses: list[tuple[Tensor, float]] = []  # since the last check: this process's loss, and the learning rate

    def add(self, loss: Tensor, lr: float) -> None:
        self.losses.append((loss, lr))

    def check(self, step: int) -> None:
        """Check the losses of the steps since the last check, up to `step`. All processes must call it.

        Raises:
            InputError: one of them is not finite, in any process. diverged.json has the step and the keys of its images.
        """
        losses, self.losses = self.losses, []
        bad = torch.zeros(self.group.world, len(losses), device=self.group.device)
        bad[self.group.rank] = (~torch.stack([loss for loss, _ in losses]).isfinite()).float()
        found = self.group.sum(bad).nonzero().tolist()  # (process, step since the last check) of each
        if not found:
            return
        first = min(position for _, position in found)
        bad_step, lr = step - len(losses) + first, losses[first][1]  # counted from 0
        ranks = [rank for rank, position in found if position == first]  # a step later the losses of all ranks are bad
        keys = self.keys_of_step(bad_step, ranks)
        epoch = bad_step // (len(self.image_set) // self.recipe.batch_size) + 1
        listed = f"all in {self.run / DIVERGED}"
        if self.group.is_first:
            report = {"step": bad_step + 1, "epoch": epoch, "lr": lr, "keys": keys}
            try:
                atomic_write(self.run / DIVERGED, (json.dumps(report, indent=2) + "\n").encode())
            except OSError as error:  # a full disk must not hide the error below
                listed = f"which could not be written to {self.run / DIVERGED} ({error.strerror})"
        more = f" and {len(keys) - MAX_NAMED} more, {listed}" if len(keys) > MAX_NAMED else ""
        raise InputError(
            f"the loss is not finite in step {bad_step + 1} (epoch {epoch}, lr {lr:.3g}), on"
            f" {', '.join(keys[:MAX_NAMED])}{more}."
            f" {self.damaged_map(keys) or self.unusable_weights(bad_step) or remedy(self.run)}"
        )

    def keys_of_step(self, step: int, ranks: list[int]) -> list[str]:
        """Keys of the images that these processes had in a step (counted from 0)."""
        batches = [
            next(iter(TrainingBatches(len(self.image_set), self.recipe, step, rank, self.group.world))) for rank in ranks
        ]
        return [self.image_set.keys[index] for batch in batches for _, index in batch]

    def damaged_map(self, keys: list[str]) -> str | None:
        """Which of these images' labels are to blame for the loss, and what to do; None if they are sound."""
        for store in self.stores if self.recipe.reads_labels else ():
            rows = store.find(keys)
            stored = store.read(rows.clamp(min=0))
            finite = stored.scores.isfinite().flatten(1).all(1) & stored.tail.isfinite().flatten(1).all(1)
            damaged = [key for key, sound in zip(keys, (finite | (rows < 0)).tolist(), strict=True) if not sound]
            if damaged:
                what = "The label map" if store.manifest.regions is None else "A region"
                return (
                    f"{what} of {damaged[0]} in {store.labels} is not finite; `relabel verify {store.labels}` finds all such"
                    " images"
                )
        return None

    def unusable_weights(self, step: int) -> str | None:
        """What to do if the loss is not finite before any weight was changed; None if a step had changed some."""
        if step > 0 or self.initial_weights is None:
            return None
        return (
            f"It is the first step, so the lr is not the reason: the weights in {self.initial_weights} may be too large; use"
            " others, or try --no-amp"
        )


def check_weights(model: nn.Module, step: int, lr: float, run: Path) -> None:
    """Check weights before they are saved: the last step changed them after its loss was computed.

    Raises:
        InputError: a weight is not finite.
    """
    if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all():
        raise InputError(
            f"weights are not finite after step {step} (lr {lr:.3g}), though its loss was finite. {remedy(run)}"
        )


def remedy(run: Path) -> str:
    if not (run / LAST).exists():
        return "Nothing was saved yet. A smaller lr or --no-amp may help"
    return (
        f"{run / LAST} holds the last good state. Try --resume with --no-amp, or a new run from these weights with a smaller"
        f" lr: --initial-weights {run / LAST}"
    )
