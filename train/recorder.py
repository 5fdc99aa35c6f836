"""At the end of an epoch: evaluate, write metrics.jsonl and TensorBoard files, draw the curves."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from relabel.images.decoding import UnavailableImage, UnreadableImage
from relabel.runtime.distributed import Processes
from train.evaluation.evaluate import Evaluation
from train.progress import summary
from train.recipe import Recipe
from train.run_dir.metrics import append_metrics, draw_curves, read_metrics, truncate_metrics
from train.run_dir.tensorboard import open_writer, write_epoch

logger = logging.getLogger(__name__)


class Recorder:
    """Records the epochs of a run. All processes call it; the first one writes.

    Args:
        epochs: how many have ended. Metrics of later ones are dropped, because they will be trained again.
        evaluate: evaluates a model on the validation images, if there are any.
        tensorboard: also write the metrics for TensorBoard.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        group: Processes,
        epochs: int,
        evaluate: Callable[[nn.Module], Evaluation] | None,
        tensorboard: bool,
    ) -> None:
        self.run, self.recipe, self.group, self.evaluate = run, recipe, group, evaluate
        if group.is_first:
            truncate_metrics(run, epochs)
        recorded = [metrics["epoch"] for metrics in read_metrics(run)]
        self.last_epoch = max(recorded, default=0)
        self.writer = open_writer(run, self.last_epoch) if tensorboard and group.is_first else None

    def catch_up(self, metrics: dict[str, Any], model: nn.Module) -> None:
        """Record the epoch that ended just before the run was interrupted, unless it is recorded already."""
        if self.group.from_first(metrics["epoch"] > self.last_epoch):
            self.record(metrics, model)
        elif self.group.is_first:
            draw_curves(self.run)  # the run may have been interrupted before they were drawn

    def record(self, metrics: dict[str, Any], model: nn.Module) -> None:
        """Evaluate the model if the recipe says so, and record the epoch. The state has been saved.

        Raises:
            UnreadableImage or UnavailableImage: a validation image cannot be read.
        """
        start_s, epoch = time.perf_counter(), metrics["epoch"]
        if self.evaluate is not None and (epoch % self.recipe.eval_epochs == 0 or epoch == self.recipe.epochs):
            self.group.sync_buffers(model)
            try:
                metrics["val"] = self.evaluate(model).summary()
            except (UnreadableImage, UnavailableImage) as error:
                raise type(error)(f"{error}. Epoch {epoch} is saved; fix the image and run again with --resume") from None
        metrics["wall_s"] += time.perf_counter() - start_s
        if self.writer is not None:
            write_epoch(self.writer, metrics)
        if self.group.is_first:
            append_metrics(self.run, metrics)
            if "val" in metrics or epoch == self.recipe.epochs:
                draw_curves(self.run)
        logger.info(summary(metrics, self.recipe))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
