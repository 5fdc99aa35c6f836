"""The learning rate of every step, from timm's schedulers."""

from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from train.recipe import Recipe


def create_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """Linear warm-up from a hundredth of lr, then the recipe's schedule; `step_update(step)` sets the rates.

    Differs: the reference warms up from 0, and its cosine starts at the end of warm-up; here only the linear schedule does.
    """
    # The linear schedule starts at lr when warm-up ends, as in the reference; the others span all epochs, warm-up included
    warmup_prefix = recipe.schedule == "linear"
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "poly" if recipe.schedule == "linear" else recipe.schedule,
        decay_rate=1.0 if recipe.schedule == "linear" else 0.1,  # for poly this is the power
        decay_epochs=recipe.decay_epochs,
        num_epochs=recipe.epochs - (recipe.warmup_epochs if warmup_prefix else 0),
        warmup_epochs=recipe.warmup_epochs,
        warmup_prefix=warmup_prefix,
        warmup_lr=recipe.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    assert scheduler is not None
    return scheduler
