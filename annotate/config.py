"""The settings that a label set is made with."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relabel.labels.manifest import MAX_REGIONS
from relabel.runtime.defaults import ANNOTATE_BATCH_SIZE, ANNOTATOR, SHARD_SIZE, Precision, Tail
from relabel.runtime.errors import InputError
from relabel.runtime.typed import shown


@dataclass(frozen=True)
class AnnotateConfig:
    """The settings that a label set is made with, from the options of the command line."""

    model: str = ANNOTATOR  # a relabel checkpoint names its own, which takes the default's place
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None  # own weights instead of the published ones
    num_classes: int | None = None
    topk: int | None = None  # None for TOPK, or all classes if there are fewer
    tail: Tail | None = None  # None for TAIL, or REGION_TAIL for regions
    input_size: tuple[int, int] | None = None  # rows, columns of pixels; None for the model's or the checkpoint's own
    batch_size: int = ANNOTATE_BATCH_SIZE
    workers: int | None = None  # decoding processes
    shard_size: int = SHARD_SIZE
    recentre: bool = False  # shift every map so that its mean equals the classifier's logits, whatever the kind
    flip: bool = False  # average with the map of the mirrored image
    class_token: bool = False  # accept models whose head reads a class token
    classes: str | None = None  # names of the classifier's outputs, to match with the images' classes: annotate/outputs.py
    precision: Precision = "float32"  # of the forward pass
    compile: bool = False  # with torch.compile: takes minutes at the start, then runs faster
    skip_unreadable: bool = False
    regions: int | None = None  # crops of each image to store the answers to, instead of a map
    crop_scale: tuple[float, float] | None = None  # of regions; None for CROP_SCALE
    crop_ratio: tuple[float, float] | None = None  # of regions; None for CROP_RATIO
    hflip: float | None = None  # probability that a region is mirrored; None for HFLIP
    further: tuple[tuple[str, Path | None], ...] = ()  # models and their checkpoints, whose log-probabilities are averaged


def check(config: AnnotateConfig) -> None:
    """Raises InputError for settings that no label set can be made with."""
    for name in ("topk", "batch_size", "shard_size", "regions"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise InputError(f"{name} is {shown(getattr(config, name))}; expected at least 1")
    if config.regions is None:
        for name in ("crop_scale", "crop_ratio", "hflip"):
            if getattr(config, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} needs --regions: a label map is made of the whole image")
        return
    if config.regions > MAX_REGIONS:
        raise InputError(f"--regions {shown(config.regions)}: expected at most {MAX_REGIONS}")
    for name in ("recentre", "flip", "class_token"):
        if getattr(config, name):
            raise InputError(f"--{name.replace('_', '-')} is for label maps; regions do not need it")
    if config.tail == "zero":
        raise InputError("--tail zero is for label maps; use logmeanexp or mean for regions")
    if config.hflip is not None and not 0 <= config.hflip <= 1:
        raise InputError(f"--hflip {config.hflip}: expected a probability within [0, 1]")
    check_crops(config.crop_scale, config.crop_ratio)


def check_crops(scale: tuple[float, float] | None, ratio: tuple[float, float] | None) -> None:
    """Raises InputError for ranges that no crop can be drawn from."""
    for option, pair, largest in (("--crop-scale", scale, 1.0), ("--crop-ratio", ratio, math.inf)):
        if pair is not None and not (0 < pair[0] <= pair[1] <= largest and math.isfinite(pair[1])):
            limit = f" <= {largest:g}" if math.isfinite(largest) else ""
            raise InputError(f"{option} {pair[0]:g},{pair[1]:g}: expected 0 < smallest <= largest{limit}")
