"""Commands that read and write other projects' stores of labels."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import command
from pipeline.cli.options import Device, Labels, ModelKwargs, parse_model_kwargs, parse_pair, parse_size
from relabel.runtime.defaults import MAX_CLASSES, SHARD_SIZE, AxesChoice, ForeignFormat, RegionTarget
from relabel.runtime.errors import InputError

GROUP = "Exchange"


@command(GROUP, "import-labels")
def import_labels(
    source: Annotated[
        Path, typer.Argument(help="The store: a folder; of label maps, also an uncompressed tar of CLASS/NAME.pt files.")
    ],
    labels: Labels,
    images: Annotated[
        str | None,
        typer.Option(help="The images that the store was made from. Label maps can do without; names then end in .JPEG."),
    ] = None,
    format: Annotated[ForeignFormat | None, typer.Option(help="The store's format; by default it is found out.")] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Number of classes of the classifier that made it; by default 1000 for relabel.", max=MAX_CLASSES),
    ] = None,
    target: Annotated[
        RegionTarget | None,
        typer.Option(
            help="What the classes that are not stored get. spread: equal parts of the rest (default). renormalised: nothing"
            " (fkd's marginal_renorm). softmax: nothing, and the softmax of the probabilities (ml-dr's densify zeros)."
        ),
    ] = None,
    unmixed: Annotated[
        bool, typer.Option("--unmixed", help="tiny-vit: the store was saved without MixUp and CutMix, which it cannot say.")
    ] = False,
    crop_scale: Annotated[
        str | None,
        typer.Option(metavar="MIN,MAX", help="tiny-vit: a crop's share of the image's area; by default 0.08,1."),
    ] = None,
    crop_ratio: Annotated[
        str | None, typer.Option(metavar="MIN,MAX", help="tiny-vit: a crop's width / height; by default 3/4 to 4/3.")
    ] = None,
    hflip: Annotated[
        float | None, typer.Option(help="tiny-vit: probability that a crop was mirrored; by default 0.5.")
    ] = None,
    regions: Annotated[
        int | None, typer.Option(help="fkd, ml-dr: crops of an image, at most; by default as in the files looked at first.")
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(help="token-labeling: the maps' central square, as a share of the image's shorter side."),
    ] = None,
    axes: Annotated[
        AxesChoice | None,
        typer.Option(
            help="relabel: yx: a map's first axis is the image's rows (default). xy: it was stored transposed, as"
            " export-labels does. auto: decided by an annotator, --model, on --images."
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard file.")] = SHARD_SIZE,
    model: Annotated[
        str | None,
        typer.Option(help="A timm classifier of the same classes: checks a few crops, and decides --axes auto."),
    ] = None,
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[Path | None, typer.Option(help="For --model: its weights, if your own.")] = None,
    input_size: Annotated[str | None, typer.Option(help="For --model: its input size, N or ROWSxCOLUMNS.")] = None,
    workers: Annotated[int | None, typer.Option(help="Reading processes; by default as many as there are cores.")] = None,
    device: Device = None,
) -> None:
    """Make a label set from another project's store.

    Regions of FKD, TinyViT and ml-dr, label maps of ReLabel and TokenLabeling. Running it again keeps finished shards.
    """
    from annotate.config import AnnotateConfig
    from annotate.interchange.import_labels import ImportOptions
    from annotate.interchange.import_labels import import_labels as import_store

    teacher = None
    if model is None and any((model_kwargs, checkpoint, input_size, device)):
        raise InputError("--model-kwargs, --checkpoint, --input-size and --device are for --model; name one")
    if model is not None:
        teacher = AnnotateConfig(
            model,
            parse_model_kwargs(model_kwargs),
            checkpoint,
            num_classes if checkpoint is not None else None,
            input_size=parse_size(input_size),
            class_token=True,
        )
    options = ImportOptions(
        num_classes=num_classes,
        axes=axes,
        target=target,
        unmixed=unmixed or None,
        crop_scale=parse_pair(crop_scale, "--crop-scale"),
        crop_ratio=parse_pair(crop_ratio, "--crop-ratio"),
        hflip=hflip,
        crop_pct=crop_pct,
        regions=regions,
        shard_size=shard_size,
        workers=workers,
        device=device,
    )
    import_store(source, labels, images, format, options, teacher)


@command(GROUP, "export-labels")
def export_labels(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    output: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    format: Annotated[ForeignFormat, typer.Option(help="The project whose trainer is to read it.")],
    images: Annotated[
        str | None, typer.Option(help="ml-dr: the images of the label set, which give numbers and sizes.")
    ] = None,
    crop_size: Annotated[
        int | None, typer.Option(help="ml-dr: pixels of a crop's side; by default what the annotator saw.")
    ] = None,
) -> None:
    """Write a label set as another project's store.

    Label maps for ReLabel's code and TokenLabeling's, regions for FKD's and ml-dr's.
    """
    from annotate.interchange.export_labels import export_labels as export_store

    print(f"{output}: labels of {export_store(labels, output, format, images, crop_size)} images")
