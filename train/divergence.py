"""A loss that is not finite is named with its step and its images, though no step waits for the device to see its loss (one
by AdamP waits for it all the same, train/step.py).

The losses since the last look stay on the device; a look fetches them all. Which images a step had needs no memory either:
it follows from the seed.
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


def check_losses(
    losses: list[tuple[Tensor, float]], step: int, image_set: ImageSet, recipe: Recipe, run: Path, group: Processes
) -> None:
    """Look at the losses of the steps up to `step`; every process has to.

    Args:
        losses: of each step since the last look: this process's loss, on the device, and the learning rate.
    Raises:
        InputError: one of them is not finite, in any process. diverged.json holds the step and all keys of that batch.
    """
    bad = torch.zeros(group.world, len(losses), device=group.device)
    bad[group.rank] = (~torch.stack([loss for loss, _ in losses]).isfinite()).float()
    places = group.sum(bad).nonzero().tolist()  # (process, step since the last look) of each
    if not places:
        return
    first = min(place for _, place in places)
    at, lr = step - len(losses) + first, losses[first][1]  # steps before this one
    keys = []
    for rank in [rank for rank, place in places if place == first]:  # one that is hurt hurts all in the next step
        batch = next(iter(TrainingBatches(len(image_set), recipe, at, rank, group.world)))
        keys += [image_set.keys[index] for _, index in batch]
    epoch = at // (len(image_set) // recipe.batch_size) + 1
    place = f"all in {run / DIVERGED}"
    if group.is_first:
        found = {"step": at + 1, "epoch": epoch, "lr": lr, "keys": keys}
        try:
            atomic_write(run / DIVERGED, (json.dumps(found, indent=2) + "\n").encode())
        except OSError as error:  # a disk that is full too must not take the place of what is said below
            place = f"which {run / DIVERGED} could not take ({error.strerror})"
    more = f" and {len(keys) - MAX_NAMED} more, {place}" if len(keys) > MAX_NAMED else ""
    raise InputError(
        f"the loss is not finite in step {at + 1} (epoch {epoch}, lr {lr:.3g}), on {', '.join(keys[:MAX_NAMED])}{more}."
        f" {remedy(run)}"
    )


def check_weights(model: nn.Module, step: int, lr: float, run: Path) -> None:
    """Before weights are saved: a last step may have spoilt them after its loss was seen.

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
