"""Commands that make label maps with a classifier, and that list the classifiers which can."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import command
from pipeline.cli.options import (
    AmpDtype,
    Compile,
    Device,
    Images,
    Labels,
    ModelKwargs,
    Workers,
    parse_model_kwargs,
    parse_pair,
    parse_size,
)
from relabel.runtime.defaults import ANNOTATE_BATCH_SIZE, ANNOTATOR, MAX_CLASSES, SHARD_SIZE, Tail
from relabel.runtime.errors import InputError

GROUP = "Annotate"


@command(GROUP)
def annotate(
    images: Images,
    labels: Labels,
    model: Annotated[
        list[str],
        typer.Option(
            help="Any timm classifier, hf-hub:OWNER/NAME or local-dir:FOLDER. With --regions it may be given several times:"
            " the models' log-probabilities are averaged; other options hold for all of them."
        ),
    ] = [ANNOTATOR],
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Your own weights instead of the published ones. A relabel checkpoint records its model, classes and size."
            " With several models, one for each."
        ),
    ] = [],
    regions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Store the answers to N random crops of each image instead of a map. Any classifier will do, and the"
            " answers are exact, but each crop takes a forward pass.",
        ),
    ] = None,
    crop_scale: Annotated[
        str | None,
        typer.Option(metavar="MIN,MAX", help="For --regions: a crop's share of the image's area; by default 0.08,1."),
    ] = None,
    crop_ratio: Annotated[
        str | None,
        typer.Option(metavar="MIN,MAX", help="For --regions: a crop's width / height; by default 0.75,1.3333."),
    ] = None,
    hflip: Annotated[
        float | None,
        typer.Option(help="For --regions: probability of mirroring a crop; by default 0.5. 0 where left and right matter."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes of the classifier; the model's own by default.", max=MAX_CLASSES)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|timm",
            help="Class names of the classifier's outputs, one per line, or timm for its ImageNet names. The images' classes"
            " are looked up by name, and only those are stored. Without it, output i is the images' i-th class.",
        ),
    ] = None,
    topk: Annotated[
        int | None,
        typer.Option(help="Logits stored per cell, by default 5, or per region, by default 10; or all if there are fewer."),
    ] = None,
    tail: Annotated[
        Tail | None,
        typer.Option(
            help="Logit of the classes that a cell or region does not store: the mean of their logits (default for maps),"
            " their logmeanexp (default for regions), or 0."
        ),
    ] = None,
    input_size: Annotated[str | None, typer.Option(help="Pixels, N or ROWSxCOLUMNS; the model's own by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images, or crops, per forward pass.")] = ANNOTATE_BATCH_SIZE,
    workers: Workers = None,
    device: Device = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard file.")] = SHARD_SIZE,
    recentre: Annotated[
        bool, typer.Option("--recentre", help="Shift every map so that its mean equals the classifier's logits.")
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the map of the mirrored image; takes twice the time.")
    ] = False,
    class_token: Annotated[
        bool, typer.Option("--class-token", help="Accept models whose head reads a class token.")
    ] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Forward pass in half precision, in --amp-dtype.")] = False,
    amp_dtype: AmpDtype = None,
    compile: Compile = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Record unreadable images and continue, instead of stopping.")
    ] = False,
) -> None:
    """Write label maps of images, or regions.

    Running it again keeps finished shards and makes the rest.
    """
    from annotate.config import AnnotateConfig
    from annotate.run import annotate as annotate_images

    if amp_dtype is not None and not amp:
        raise InputError("--amp-dtype sets the precision of --amp; give --amp too")
    if regions is None:  # the last one counts, as of any option that takes a single value
        model, checkpoint = model[-1:], checkpoint[-1:]
    if len(checkpoint) not in (0, len(model)):
        raise InputError(f"{len(checkpoint)} --checkpoint for {len(model)} --model: expected one for each, or none")
    own: list[Path | None] = [*checkpoint] or [None] * len(model)
    first, *further = zip(model, own, strict=True)
    config = AnnotateConfig(
        model=first[0],
        model_kwargs=parse_model_kwargs(model_kwargs),
        checkpoint=first[1],
        num_classes=num_classes,
        classes=classes,
        topk=topk,
        tail=tail,
        input_size=parse_size(input_size),
        batch_size=batch_size,
        workers=workers,
        shard_size=shard_size,
        recentre=recentre,
        flip=flip,
        class_token=class_token,
        precision=amp_dtype or "bfloat16" if amp else "float32",
        compile=compile,
        skip_unreadable=skip_unreadable,
        regions=regions,
        crop_scale=parse_pair(crop_scale, "--crop-scale"),
        crop_ratio=parse_pair(crop_ratio, "--crop-ratio"),
        hflip=hflip,
        further=tuple(further),
    )
    annotate_images(images, labels, config, device)


@command(GROUP)
def annotators(
    pattern: Annotated[str, typer.Argument(help="Such as resnet50, 'tf_efficientnet*' or '*.ns_jft_in1k'.")] = "*",
    refused: Annotated[
        bool, typer.Option("--refused", help="Also list the models that cannot annotate, with the reasons.")
    ] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Measure the named model, instead of looking it up.")] = False,
    model_kwargs: ModelKwargs = [],
    input_size: Annotated[str | None, typer.Option(help="For --probe: pixels, N or ROWSxCOLUMNS.")] = None,
) -> None:
    """List the timm classifiers that can annotate.

    With the kind of their map, input size, cells, parameters, and the top-1 of the annotators in the paper.
    """
    from annotate.zoo.table import matching, table_lines, table_notes

    if probe:
        if any(sign in pattern for sign in "*?["):
            raise InputError(f"--probe measures one model, not all that match {pattern!r}; name one")
        from annotate.zoo.survey import probe as measure

        found = [measure(pattern, parse_model_kwargs(model_kwargs), parse_size(input_size))]
    elif model_kwargs or input_size is not None:
        raise InputError("--model-kwargs and --input-size need --probe")
    else:
        found = matching(pattern)
    shown = [row for row in found if row.taken or refused] or found
    print("\n".join([*table_lines(shown), *table_notes(shown, len(found) - len(shown))]))
