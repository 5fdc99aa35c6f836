"""The options of a training run besides its images, model and recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relabel.runtime.defaults import SAVE_MINUTES, HalfPrecision
from relabel.runtime.errors import InputError
from train.teacher import TeacherChoice


@dataclass(frozen=True)
class TrainOptions:
    """Where things are, and how the run is executed. The training settings are in the recipe.

    Attributes:
        labels: the label set that the recipe's target reads, if it reads one.
        maps: for target regions: label maps for the crops that are not stored regions.
        val: validation images of the same classes, evaluated as often as the recipe says.
        multilabels: JSON with all the classes that each validation image shows.
        teacher: the classifier that the recipe's target comes from, if it needs one.
        model_kwargs: passed to timm.create_model.
        initial_weights, pretrained: start from these weights instead of random ones; the head is reinitialised if class
            counts differ.
        workers: decoding processes; this process's share of the cores if None.
        device: cpu, cuda or cuda:N; CUDA if there is one, if None.
        amp: half precision; on CUDA only, if None.
        amp_dtype: bfloat16 if None, or float16 with a scaled loss.
        compile: use torch.compile; takes minutes at the start.
        sync_bn: batch norm statistics over the images of all processes instead of each one's own.
        save_every: minutes between saves of last.pt within an epoch. It is always saved after an epoch, before evaluation.
        resume: continue from last.pt, if there is one; on a CPU the weights are those of a run without interruption.
        tensorboard: also write the metrics to RUN/tensorboard.

    Raises:
        InputError: options that contradict one another.
    """

    labels: Path | None = None
    val: Path | str | None = None
    multilabels: Path | None = None
    teacher: TeacherChoice | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    initial_weights: Path | None = None
    pretrained: bool = False
    workers: int | None = None
    device: str | None = None
    amp: bool | None = None
    amp_dtype: HalfPrecision | None = None
    compile: bool = False
    sync_bn: bool = False
    save_every: float = SAVE_MINUTES
    resume: bool = False
    tensorboard: bool = False
    maps: Path | None = None

    def __post_init__(self) -> None:
        if self.multilabels is not None and self.val is None:
            raise InputError("--multilabels describes validation images; give them with --val")
        if self.pretrained and self.initial_weights is not None:
            raise InputError("--pretrained and --initial-weights are two sets of weights to start from; leave one out")
        if not self.save_every > 0:
            raise InputError(f"--save-every {self.save_every}: expected a positive number of minutes")
