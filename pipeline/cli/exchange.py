"""Commands that read and write other projects' label maps."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import command
from pipeline.cli.options import Device, Labels, ModelKwargs, parse_model_kwargs, parse_size
from relabel.runtime.defaults import MAX_CLASSES, SHARD_SIZE, Axes, AxesChoice
from relabel.runtime.errors import InputError

GROUP = "Exchange"


@command(GROUP, "import-maps")
def import_maps(
    source: Annotated[Path, typer.Argument(help="Folder or uncompressed tar of CLASS/NAME.pt files, [2, k, H, W].")],
    labels: Labels,
    num_classes: Annotated[
        int, typer.Option(help="Number of classes of the annotator that made them.", max=MAX_CLASSES)
    ] = 1000,
    axes: Annotated[
        AxesChoice,
        typer.Option(
            help="yx: a map's first axis is the image's rows. xy: it was stored transposed. auto: decided by an annotator,"
            " --model, on --images."
        ),
    ] = "yx",
    images: Annotated[
        str | None, typer.Option(help="The images, for the extensions of their names; .JPEG without them.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard file.")] = SHARD_SIZE,
    model: Annotated[str | None, typer.Option(help="For --axes auto: a timm classifier of the same classes.")] = None,
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[Path | None, typer.Option(help="For --axes auto: its weights, if your own.")] = None,
    input_size: Annotated[str | None, typer.Option(help="For --axes auto: its input size, N or ROWSxCOLUMNS.")] = None,
    workers: Annotated[int | None, typer.Option(help="Reading processes; by default as many as there are cores.")] = None,
    device: Device = None,
) -> None:
    """Make a label set from published maps.

    They are one .pt file per image. Running it again keeps finished shards.
    """
    from annotate.config import AnnotateConfig
    from annotate.interchange.import_maps import import_maps as import_published_maps

    if shard_size < 1 or num_classes < 1:
        raise InputError(f"--shard-size {shard_size}, --num-classes {num_classes}: expected at least 1")
    annotator = None
    if axes != "auto" and any((model, model_kwargs, checkpoint, input_size, device)):
        raise InputError(f"--model and its options are for --axes auto, not for --axes {axes}")
    if model is not None:
        annotator = AnnotateConfig(
            model,
            parse_model_kwargs(model_kwargs),
            checkpoint,
            num_classes if checkpoint is not None else None,
            input_size=parse_size(input_size),
            class_token=True,
        )
    import_published_maps(source, labels, num_classes, axes, images, shard_size, annotator, workers, device)


@command(GROUP, "export-maps")
def export_maps(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    output: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    axes: Annotated[
        Axes,
        typer.Option(help="yx: a map's first axis is the image's rows. xy: its columns, as the reference code reads them."),
    ] = "yx",
) -> None:
    """Write a label set as published maps.

    One .pt file per image, the format of the reference code and TokenLabeling.
    """
    from annotate.interchange.export_maps import export_maps as export_published_maps

    print(f"{output}: {export_published_maps(labels, output, axes)} maps")
