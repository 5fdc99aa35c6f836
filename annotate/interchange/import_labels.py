"""`relabel import-labels`: make a label set from another project's store, whose format is named or found out."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from annotate.config import AnnotateConfig
from annotate.interchange.agreement import check_agreement
from annotate.interchange.fkd import FKDStore
from annotate.interchange.image_regions import RegionStore
from annotate.interchange.import_maps import import_maps
from annotate.interchange.import_regions import import_regions
from annotate.interchange.ml_dr import CONFIG, MlDrStore
from annotate.interchange.published_maps import Place, read_tensor
from annotate.interchange.tiny_vit import TinyViTStore
from relabel.images.image_set import ImageSet
from relabel.images.sources import check_outside, find_images
from relabel.runtime.defaults import CROP_RATIO, CROP_SCALE, SHARD_SIZE, AxesChoice, ForeignFormat, RegionTarget
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.typed import shown
from relabel.runtime.workers import decoding_workers

logger = logging.getLogger(__name__)

PUBLISHED_CLASSES = 1000  # of the published label maps, which are of ImageNet
TARGETS: dict[str, tuple[RegionTarget, ...]] = {"fkd": ("spread", "renormalised"), "ml-dr": ("spread", "softmax")}


@dataclass(frozen=True)
class ImportOptions:
    """What a store cannot say of itself, as the command line's options of these names; None where not given."""

    num_classes: int | None = None
    axes: AxesChoice | None = None
    target: RegionTarget | None = None
    unmixed: bool | None = None
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    flip: float | None = None
    crop_pct: float | None = None
    regions: int | None = None
    shard_size: int = SHARD_SIZE
    workers: int | None = None
    device: str | None = None


# The formats that an option is for, where it is not for all
OPTIONS_OF: dict[str, tuple[ForeignFormat, ...]] = {
    "axes": ("relabel",),
    "target": ("fkd", "ml-dr"),
    "unmixed": ("tiny-vit",),
    "crop_scale": ("tiny-vit",),
    "crop_ratio": ("tiny-vit",),
    "flip": ("tiny-vit",),
    "crop_pct": ("token-labeling",),
    "regions": ("fkd", "ml-dr"),
}
