"""`relabel eval`: any run of ours, or any timm model, on an image folder."""

import json
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config

from pipeline.classifier import create_classifier
from pipeline.distributed import processes
from pipeline.errors import InputError
from pipeline.image_sources import find_images
from pipeline.manifest import write_whole
from train.checkpoint import read_card
from train.evaluate import View, evaluate, read_multilabels, refuse_other_classes


def evaluate_checkpoint(
    images: Path | str,
    *,
    checkpoint: Path | None = None,
    arch: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    multilabels: Path | None = None,
    output: Path | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    device: str | None = None,
) -> dict[str, Any] | None:
    """Evaluate, write the JSON if asked for, and return the result on the first process.

    Raises:
        InputError: neither checkpoint nor arch, a checkpoint that does not say its arch, other classes than the folder's.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: expected at least 1")
    folder = find_images(images)
    card = None
    if checkpoint is not None and arch is None:
        card = read_card(checkpoint, "--arch")
        refuse_other_classes(folder, card.classes, str(checkpoint))
        arch, model_kwargs = card.arch, card.model_kwargs
    if arch is None:
        raise InputError("nothing to evaluate: give --checkpoint, or --arch for published weights")
    with processes(device) as group:
        classifier = create_classifier(
            arch,
            pretrained=checkpoint is None,
            checkpoint=checkpoint,
            num_classes=len(folder.classes) if checkpoint is not None else None,
            model_kwargs=model_kwargs,
        )
        if classifier.num_classes != len(folder.classes):
            raise InputError(
                f"{arch} has {classifier.num_classes} classes, {images} has {len(folder.classes)} class folders"
            )
        view = card.view if card is not None else view_of(classifier)
        shown = read_multilabels(multilabels, folder) if multilabels is not None else None
        measured = evaluate(
            classifier.to(group.device),
            folder,
            view,
            group,
            multilabels=shown,
            batch_size=batch_size,
            workers=group.decoding_workers(workers),
            amp=group.device.type == "cuda",
        )
        if not group.is_first:
            return None
    result = {"arch": arch, "checkpoint": str(checkpoint) if checkpoint else "published", "data": str(images), **measured}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, (json.dumps(result, indent=2) + "\n").encode())
    return result


def view_of(classifier: Any) -> View:
    """A published model's own evaluation settings, test size included."""
    settings = resolve_model_data_config(classifier, use_test_size=True)
    return View(
        size=settings["input_size"][-1],
        crop=settings["crop_pct"],
        interpolation=settings["interpolation"],
        mean=settings["mean"],
        std=settings["std"],
        crop_mode=settings["crop_mode"],
    )
