"""`relabel show`: checks what is asked for, looks, and writes the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from annotate.config import AnnotateConfig
from pipeline.show.figure import draw
from pipeline.show.seen import MAX_CROPS, from_label_set, made_here, parse_box
from relabel.images.classes import ClassNames
from relabel.runtime.defaults import ANNOTATOR
from relabel.runtime.errors import InputError
from relabel.runtime.files import check_output, write_output
from relabel.runtime.typed import shown

MAX_IMAGES = 20  # more make a picture that nobody can look at
SOFTWARE = "relabel show"  # in the PNG: by this a file is known to be one of ours


@dataclass(frozen=True)
class ShowOptions:
    """Where the labels come from, and which crops are drawn; see `relabel show --help`."""

    labels: Path | None = None
    model: str | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    num_classes: int | None = None
    classes: str | None = None
    input_size: tuple[int, int] | None = None
    boxes: tuple[str, ...] = ()
    random: int | None = None
    class_names: Path | None = None
    force: bool = False
    device: str | None = None


def show(images: Sequence[Path], output: Path, options: ShowOptions) -> str:
    """Draw these images into a PNG; says what is in it.

    Raises:
        InputError: contradicting options, an image without labels, or an output that cannot be written.
    """
    boxes = [parse_box(text) for text in options.boxes]
    random = options.random if options.random is not None else 0 if boxes else 3
    if random < 0 or len(boxes) + random > MAX_CROPS:
        raise InputError(f"--random {shown(random)} with {len(boxes)} --box: expected 0 to {MAX_CROPS} crops")
    if len(images) > MAX_IMAGES:
        raise InputError(f"{len(images)} images: expected at most {MAX_IMAGES} in a picture; run it again for the others")
    if output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: expected a name that ends in .png")
    check_output(output, is_ours, options.force)
    names = ClassNames(options.class_names)
    if options.labels is not None:
        needless = ("model", "model_kwargs", "checkpoint", "num_classes", "classes", "input_size", "device")
        for name in needless:
            if getattr(options, name):
                raise InputError(f"--{name.replace('_', '-')} is for annotating on the spot; leave it out, or --labels")
        seen = from_label_set(options.labels, images, boxes, random, names)
    else:
        if options.model is None and options.checkpoint is None:
            raise InputError("nothing to show: give --labels, or a classifier with --model or --checkpoint")
        config = AnnotateConfig(
            options.model or ANNOTATOR,
            options.model_kwargs,
            options.checkpoint,
            options.num_classes,
            input_size=options.input_size,
            class_token=True,
            classes=options.classes,
        )
        seen = made_here(config, images, boxes, random, names, options.device)
    write_output(output, draw(seen, SOFTWARE))
    crops = sum(len(image.crops) for image in seen)
    return f"{len(seen)} image{'s' * (len(seen) > 1)}, {crops} crop{'s' * (crops != 1)}"


def is_ours(path: Path) -> bool:
    """Whether this command has written the file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == SOFTWARE)
    except OSError:
        return False
