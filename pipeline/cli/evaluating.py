"""Commands that evaluate trained weights, and that export them to other libraries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import command
from pipeline.cli.options import (
    Amp,
    AmpDtype,
    ClassNamesFile,
    Device,
    Force,
    Images,
    ModelKwargs,
    Workers,
    parse_model_kwargs,
)
from relabel.runtime.defaults import EVAL_BATCH_SIZE
from relabel.runtime.errors import InputError
from relabel.runtime.typed import shown

GROUP = "Evaluate"


@command(GROUP)
def eval(
    images: Images,
    checkpoint: Annotated[
        Path | None, typer.Option(help="weights.safetensors or weights.pth of a run, or weights of --arch.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="timm model; a relabel checkpoint does not need it. Without --checkpoint: published weights."),
    ] = None,
    model_kwargs: ModelKwargs = [],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|timm",
            help="Class names of the model's outputs, one per line, or timm for its ImageNet names. Without it, 1,000"
            " classes are ImageNet's, and others the images'. A relabel checkpoint does not need it.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Compare with another checkpoint, with 95% bootstrap intervals."),
    ] = None,
    compare_arch: Annotated[str | None, typer.Option(help="timm model of --compare, if not that of --arch.")] = None,
    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of other data sets under their published names: imagenet-a, imagenet-c ..."
        ),
    ] = None,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="Also evaluate under the FGSM attack.")] = False,
    fgsm_epsilon: Annotated[
        str | None, typer.Option(help="Step of the attack, for pixels in [0, 1]; 8/255 by default.")
    ] = None,
    multilabels: Annotated[
        Path | None,
        typer.Option(help="JSON with all the classes that each image shows: relabel's, or that of Shankar et al. 2020."),
    ] = None,
    class_names: ClassNamesFile = None,
    eval_size: Annotated[int | None, typer.Option(help="Pixels, square; the model's own by default.")] = None,
    eval_crop: Annotated[
        float | None, typer.Option(help="Share of the shorter side that the centre crop keeps; the model's own by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    force: Force = False,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = EVAL_BATCH_SIZE,
    workers: Workers = None,
    device: Device = None,
    amp: Amp = None,
    amp_dtype: AmpDtype = None,
) -> None:
    """Evaluate a checkpoint, or compare two.

    On a set of images, and on other data sets with --suite.
    """
    from train.evaluation.fgsm import EPSILON
    from train.evaluation.report import table
    from train.evaluation.run import EvalOptions, evaluate_checkpoint

    if force and output is None:
        raise InputError("--force replaces the file of --output; give --output too, or leave it out")
    if fgsm_epsilon is not None and not fgsm:
        raise InputError("--fgsm-epsilon is the step of --fgsm; give --fgsm too, or leave it out")
    epsilon = parse_fraction(fgsm_epsilon) if fgsm_epsilon is not None else EPSILON
    options = EvalOptions(
        checkpoint=checkpoint,
        arch=arch,
        model_kwargs=parse_model_kwargs(model_kwargs),
        classes=classes,
        compare=compare,
        compare_arch=compare_arch,
        suite=suite,
        fgsm_epsilon=epsilon if fgsm else None,
        multilabels=multilabels,
        class_names=class_names,
        eval_size=eval_size,
        eval_crop=eval_crop,
        output=output,
        force=force,
        batch_size=batch_size,
        workers=workers,
        device=device,
        amp=amp,
        amp_dtype=amp_dtype,
    )
    result = evaluate_checkpoint(images, options)
    if result is not None:
        print(table(result))


def parse_fraction(text: str) -> float:
    """ "8/255" or "0.03". In floats: the Fraction of 1e-999999999 has a denominator of a thousand million digits."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / (float(denominator) if slash else 1)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"--fgsm-epsilon {shown(text)}: expected a fraction such as 8/255, or a number such as 0.03"
        ) from error


@command(GROUP)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="weights.safetensors or weights.pth of a run, or weights of --arch.")],
    output: Annotated[Path, typer.Argument(help="File to write: .safetensors or .pth.")],
    to: Annotated[
        Literal["torchvision-detection"],
        typer.Option(help="torchvision-detection: the backbone of Faster R-CNN and Mask R-CNN."),
    ],
    arch: Annotated[str | None, typer.Option(help="A ResNet; a relabel checkpoint does not need it.")] = None,
    force: Force = False,
) -> None:
    """Write weights for another library.

    docs/transfer.md shows how to load them.
    """
    from train.export import export_backbone

    print(export_backbone(checkpoint, output, arch, force))
