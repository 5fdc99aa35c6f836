"""Measure which of timm's classifiers can annotate, and with which kind of map, without downloading weights.

    python -m annotate.zoo.survey     # rewrites annotators.csv for every tag with published weights; takes minutes

A map's kind depends only on the head, and its grid only on shapes. So the body runs on torch's meta device, which computes
only shapes, and the head gets random weights and random features. Even the largest model takes only a second.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

from annotate.convert import (
    EMBEDDINGS,
    NO_CLASSES,
    REJECTED,
    FullyConvolutional,
    kind_from_features,
    native_size,
    size_errors,
)
from annotate.zoo.table import TABLE, Annotator
from relabel.models.classifier import create_classifier
from relabel.runtime.errors import InputError


@torch.inference_mode()
def probe(model: str, model_kwargs: dict[str, Any] | None = None, input_size: tuple[int, int] | None = None) -> Annotator:
    """Measure one classifier.

    Raises:
        InputError: timm cannot create it.
    """
    with torch.device("meta"):
        classifier = create_classifier(model, model_kwargs=model_kwargs, input_size=input_size)
    size = input_size or native_size(classifier)
    annotator = FullyConvolutional(classifier)
    kind, grid, refusal = "", "", ""
    try:
        images = torch.empty(1, 3, *size, device="meta")
        with size_errors(annotator.name, classifier, images):
            shapes = classifier.forward_features(images)  # type: ignore[operator]
        rows, columns = annotator.as_locations(shapes, images.shape).shape[1:3]
        give_head_weights(classifier, shapes)
        features = torch.randn(shapes.shape, generator=torch.Generator().manual_seed(0))
        kind = kind_from_features(annotator, features, images.shape)
        grid, refusal = f"{rows}x{columns}", REJECTED.get(kind, "")
    except InputError as error:
        refusal = str(error).removeprefix(f"{annotator.name} cannot annotate").lstrip(": ")
    return Annotator(
        model=model,
        kind=kind,
        input_size="x".join(map(str, size)),
        grid=grid,
        parameters=sum(p.numel() for p in classifier.parameters()),
        classes=classifier.num_classes,  # type: ignore[arg-type]
        refusal=refusal,
    )


def give_head_weights(classifier: nn.Module, features: Tensor) -> None:
    """Move the modules that `forward_head` calls from the meta device to the CPU, with random weights."""
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in classifier.modules()
        if module is not classifier
    ]
    classifier.forward_head(features)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    for module in called:
        module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for value in (*classifier.parameters(), *classifier.buffers()):
        if value.is_floating_point() and value.device.type == "cpu":
            noise = torch.randn(value.shape, generator=generator)
            # Matrices preserve the scale of their input; norm weights, variances and biases are around 1.
            value.copy_(noise / math.sqrt(value[0].numel()) if value.ndim > 1 else (1 + 0.2 * noise).abs())


def probe_published(models: Iterable[str]) -> list[Annotator]:
    """The rows of these tags of published weights. Tags that differ only in their weights are measured once."""
    measured: dict[tuple[Any, ...], Annotator] = {}
    rows = []
    for model in models:
        settings = timm.get_pretrained_cfg(model)
        assert settings is not None
        variant = (settings.architecture, settings.input_size, settings.num_classes)
        if settings.num_classes in EMBEDDINGS:
            measured[variant] = rejected_row(model, settings, NO_CLASSES)
        elif variant not in measured:
            try:
                measured[variant] = probe(model)
            except InputError as error:
                reason = str(error) if settings.num_classes else "it has no classes: its output is features"
                measured[variant] = rejected_row(model, settings, reason)
        rows.append(dataclasses.replace(measured[variant], model=model))
    return rows


def rejected_row(model: str, settings: Any, reason: str) -> Annotator:
    """A row for a model that was not measured."""
    return Annotator(model, "", "x".join(map(str, settings.input_size[1:])), "", 0, settings.num_classes, reason)


def write_table(rows: list[Annotator]) -> None:
    """Replace annotators.csv. Its first line gives the timm version."""
    with TABLE.open("w", newline="") as file:
        file.write(f"# python -m annotate.zoo.survey, timm {timm.__version__}\n")
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Annotator)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))


if __name__ == "__main__":
    write_table(probe_published(tqdm(timm.list_models(pretrained=True), unit="tag")))
