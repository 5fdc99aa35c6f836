"""What a training run says of its progress: a bar where there is a terminal, a line per epoch anywhere."""

from typing import Any

from tqdm import tqdm

from relabel.runtime.distributed import Processes
from train.recipe import Recipe


def progress(step: int, steps_per_epoch: int, recipe: Recipe, group: Processes) -> tqdm:
    epoch, in_epoch = divmod(step, steps_per_epoch)
    return tqdm(
        total=steps_per_epoch * recipe.batch_size,
        initial=in_epoch * recipe.batch_size,
        desc=f"epoch {epoch + 1}/{recipe.epochs}",
        unit="img",
        leave=False,
        disable=None if group.is_first and epoch < recipe.epochs else True,
    )


def summary(metrics: dict[str, Any], recipe: Recipe) -> str:
    line = (
        f"epoch {metrics['epoch']:>{len(str(recipe.epochs))}}/{recipe.epochs}  loss {metrics['loss']:.3f}"
        f"  top-1 {metrics['top1']:.1f}  {metrics['images_per_s']:.0f} img/s"
    )
    for name, value in metrics.get("val", {}).items():
        if not name.endswith("images"):
            line += f"  val {name} {value:.2f}"
    return line
