"""A loss that is not finite is reported with its step and its images, although no step waits for the device for that.

The losses stay on the device until the next check, which fetches them all. Which images a step had need not be stored: it
follows from the seed.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from relabel.images.image_set import ImageSet
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from train.crops import TrainingBatches
from train.recipe import Recipe
from train.run_dir.checkpoint import LAST

DIVERGED = "diverged.json"
MAX_NAMED = 4  # images in the message; all are in the file


class LossMonitor:
    """Collects every step's loss on the device, and finds the ones that are not finite when it is asked to."""

    def __init__(self, image_set: ImageSet, recipe: Recipe, run: Path, group: Processes) -> None:
        self.image_set, self.recipe, self.run, self.group = image_set, recipe, run, group
        self.losses: list[tuple[Tensor, float]] = []  # since the last check: this process's loss, and the learning rate

    def add(self, loss: Tensor, lr: float) -> None:
        self.losses.append((loss, lr))

    def check(self, step: int) -> None:
        """Look at the losses since the last check, up to `step`; all processes have to.

        Raises:
            InputError: one of them is not finite, in any process. diverged.json has the step and all keys of its batch.
        """
        losses, self.losses = self.losses, []
        bad = torch.zeros(self.group.world, len(losses), device=self.group.device)
        bad[self.group.rank] = (~torch.stack([loss for loss, _ in losses]).isfinite()).float()
        places = self.group.sum(bad).nonzero().tolist()  # (process, step since the last check) of each
        if not places:
            return
        first = min(place for _, place in places)
        at, lr = step - len(losses) + first, losses[first][1]  # the number of steps before the bad one
        ranks = [rank for rank, place in places if place == first]  # all ranks are bad in the step after it
        keys = self.keys_of_step(at, ranks)
        epoch = at // (len(self.image_set) // self.recipe.batch_size) + 1
        listed = f"all in {self.run / DIVERGED}"
        if self.group.is_first:
            found = {"step": at + 1, "epoch": epoch, "lr": lr, "keys": keys}
            try:
                atomic_write(self.run / DIVERGED, (json.dumps(found, indent=2) + "\n").encode())
            except OSError as error:  # a full disk must not hide the error below
                listed = f"which could not be written to {self.run / DIVERGED} ({error.strerror})"
        more = f" and {len(keys) - MAX_NAMED} more, {listed}" if len(keys) > MAX_NAMED else ""
        raise InputError(
            f"the loss is not finite in step {at + 1} (epoch {epoch}, lr {lr:.3g}), on {', '.join(keys[:MAX_NAMED])}{more}."
            f" {remedy(self.run)}"
        )

    def keys_of_step(self, step: int, ranks: list[int]) -> list[str]:
        """The images that these processes had in a step, counted from 0: they follow from the seed."""
        batches = [
            next(iter(TrainingBatches(len(self.image_set), self.recipe, step, rank, self.group.world))) for rank in ranks
        ]
        return [self.image_set.keys[index] for batch in batches for _, index in batch]


def check_weights(model: nn.Module, step: int, lr: float, run: Path) -> None:
    """Before weights are saved: the last step may have spoilt them after its loss was computed.

    Raises:
        InputError: a weight is not finite.
    """
    if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all():
        raise InputError(f"weights are not finite after step {step} (lr {lr:.3g}), though its loss was. {remedy(run)}")


def remedy(run: Path) -> str:
    if not (run / LAST).exists():
        return "Nothing was saved yet. A smaller lr or --no-amp may help"
    return (
        f"{run / LAST} holds the last good state. --resume with --no-amp may get further; so may a new run with a smaller"
        f" lr, from there: --initial-weights {run / LAST}"
    )
