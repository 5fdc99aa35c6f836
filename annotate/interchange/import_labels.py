"""`relabel import-labels`: make a label set from another project's store, whose format is named or found out."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from annotate.config import AnnotateConfig, check_crops
from annotate.interchange.agreement import check_agreement
from annotate.interchange.fkd import ENDING, FKDStore
from annotate.interchange.image_regions import RegionStore
from annotate.interchange.import_maps import import_maps
from annotate.interchange.import_regions import import_regions
from annotate.interchange.ml_dr import CONFIG, MlDrStore
from annotate.interchange.published_maps import Place, read_tensor
from annotate.interchange.tiny_vit import EPOCH_FOLDER, RATIO, TinyViTStore
from relabel.images.image_set import ImageSet
from relabel.images.sources import check_outside, find_images
from relabel.runtime.defaults import CROP_SCALE, HFLIP, SHARD_SIZE, AxesChoice, ForeignFormat, RegionTarget
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
    hflip: float | None = None
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
    "hflip": ("tiny-vit",),
    "crop_pct": ("token-labeling",),
    "regions": ("fkd", "ml-dr"),
}


def import_labels(
    source: Path,
    labels: Path,
    images: Path | str | None,
    kind: ForeignFormat | None = None,
    options: ImportOptions = ImportOptions(),
    teacher: AnnotateConfig | None = None,
) -> None:
    """Make a label set from another project's store.

    Args:
        images: those that the store was made from; label maps can do without.
        kind: the store's format; None to find out.
        teacher: the classifier that made the store, or one that is as good, to check a few of the labels with.
    Raises:
        InputError: an option is missing or not for this format, the store is not of these images, files are invalid, or the
            teacher does not confirm them.
    """
    check_numbers(options)
    kind = kind or find_format(source)
    check_options(kind, options)
    num_classes = options.num_classes or (PUBLISHED_CLASSES if kind == "relabel" else None)
    if num_classes is None:
        raise InputError(f"{source}: {kind} does not store the number of classes; pass --num-classes")
    if kind in ("relabel", "token-labeling"):
        import_stored_maps(source, labels, images, kind, num_classes, options, teacher)
        return
    if images is None:
        raise InputError(f"{source}: {kind} needs the images that the store was made from; pass --images")
    check_outside(labels, images, "--labels")
    workers = decoding_workers(options.workers)
    image_set = find_images(images)
    target = options.target or "spread"
    store = open_store(kind, source, image_set, num_classes, target, options)
    if store.topk > num_classes:
        raise InputError(
            f"{source} stores {store.topk} classes per crop, and --num-classes is {num_classes}; check --num-classes"
        )
    if options.regions is not None:
        store.regions = options.regions
    if teacher is not None:
        logger.info(check_agreement(store, image_set, teacher, num_classes, choose_device(options.device)))
    import_regions(source, labels, image_set, store, num_classes, target, options.shard_size, workers)


def import_stored_maps(
    source: Path,
    labels: Path,
    images: Path | str | None,
    kind: ForeignFormat,
    num_classes: int,
    options: ImportOptions,
    teacher: AnnotateConfig | None,
) -> None:
    if kind == "token-labeling" and options.crop_pct is None:
        raise InputError(
            f"{source}: TokenLabeling's maps cover the central square of each image, as much of it as its crop_pct said;"
            " pass --crop-pct (1 for the published maps)"
        )
    axes: AxesChoice = options.axes or ("auto" if kind == "relabel" and teacher is not None else "yx")
    if teacher is not None and axes != "auto":
        raise InputError(f"--model and its options are for regions and --axes auto; {kind} maps are read as {axes}")
    import_maps(
        source,
        labels,
        num_classes,
        axes,
        images,
        options.shard_size,
        teacher,
        options.workers,
        options.device,
        options.crop_pct,
    )


def open_store(
    kind: ForeignFormat,
    source: Path,
    image_set: ImageSet,
    num_classes: int,
    target: RegionTarget,
    options: ImportOptions,
) -> RegionStore:
    if kind == "fkd":
        return FKDStore(source, image_set, num_classes, target)
    if kind == "ml-dr":
        return MlDrStore(source, image_set, num_classes, target)
    if not options.unmixed:
        raise InputError(
            f"{source}: TinyViT's store does not say whether its samples mix two images (AUG.MIXUP and AUG.CUTMIX). Mixed"
            " ones cannot be imported, as a region is of one image. TinyViT's default settings mix, those for ImageNet-22k"
            " do not; if this store was saved without, pass --unmixed"
        )
    hflip = HFLIP if options.hflip is None else options.hflip
    scale, ratio = options.crop_scale or CROP_SCALE, options.crop_ratio or RATIO
    logger.info(
        f"{source}: crops are drawn again with --crop-scale {scale[0]:g},{scale[1]:g}, --crop-ratio {ratio[0]:.6g},"
        f"{ratio[1]:.6g} and --hflip {hflip:g}"
    )
    return TinyViTStore(source, image_set, num_classes, scale, ratio, hflip)


def check_options(kind: ForeignFormat, options: ImportOptions) -> None:
    """Raises InputError for an option that this format has no use for."""
    for name, kinds in OPTIONS_OF.items():
        if getattr(options, name) is not None and kind not in kinds:
            raise InputError(f"--{name.replace('_', '-')} is for {' and '.join(kinds)}, not for {kind}; leave it out")
    if options.target is not None and options.target not in TARGETS[kind]:
        raise InputError(f"--target {options.target}: {kind} has {' and '.join(TARGETS[kind])}")


def check_numbers(options: ImportOptions) -> None:
    """Raises InputError for a number that no store could have."""
    for name in ("num_classes", "shard_size", "regions"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {shown(value)}: expected at least 1")
    for name in ("crop_pct", "hflip"):
        value = getattr(options, name)
        if value is not None and not (0 <= value <= 1 and (value or name == "hflip")):
            raise InputError(f"--{name.replace('_', '-')} {shown(value)}: expected a share, at most 1")
    check_crops(options.crop_scale, options.crop_ratio)


def find_format(source: Path) -> ForeignFormat:
    """Which program's store a folder or a tar is.

    Raises:
        InputError: it is none.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist; expected another project's labels")
    if source.is_file():  # a tar
        return "relabel"
    kind = format_of_folder(source)
    logger.info(f"{source} is read as a store of {kind}; --format names another one")
    return kind


def format_of_folder(source: Path) -> ForeignFormat:
    if (source / CONFIG).is_file():
        return "ml-dr"
    if any(EPOCH_FOLDER.fullmatch(path.name) for path in source.iterdir()):
        return "tiny-vit"
    for folder, _, names in os.walk(source):
        for name in names:
            if name.endswith(ENDING):
                return "fkd"
            if name.endswith(".pt"):
                stored = read_tensor(Place(Path(folder), name))
                return "token-labeling" if stored.stride(1) == 1 and not stored.is_contiguous() else "relabel"
    raise InputError(
        f"{source} has none of the files of FKD (CLASS/NAME.tar), TinyViT (logits_top{{K}}_epoch{{E}}), ml-dr ({CONFIG}),"
        " ReLabel and TokenLabeling (CLASS/NAME.pt)"
    )
