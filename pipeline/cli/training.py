"""Commands that train, and that show the recipes to train by."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import INTERRUPTED, command
from pipeline.cli.options import Amp, AmpDtype, Compile, Device, Images, ModelKwargs, Workers, parse_model_kwargs, parse_size
from relabel.runtime.defaults import SAVE_MINUTES

GROUP = "Train"


@command(GROUP)
def train(
    images: Images,
    run: Annotated[Path, typer.Option("--run-dir", help="Folder for weights, checkpoints and metrics.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label set, for recipes whose target is a label map or a region.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Beside a label set of regions: label maps of the same images. They are pooled for random crops, which join"
            " the regions, and for images that have none."
        ),
    ] = None,
    arch: Annotated[str, typer.Option(help="Any timm model.")] = "resnet50",
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a .toml file.")] = "relabel",
    set: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Override a setting of the recipe.")] = [],
    val: Annotated[str | None, typer.Option(help="Validation images of the same classes.")] = None,
    multilabels: Annotated[
        Path | None, typer.Option(help="JSON with all the classes that each validation image shows.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For distillation: any timm classifier; it predicts every crop during training.")
    ] = None,
    teacher_checkpoint: Annotated[
        Path | None,
        typer.Option(help="Its weights instead of the published ones. Without --teacher: a relabel checkpoint."),
    ] = None,
    teacher_kwargs: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Passed to timm.create_model for the teacher.")
    ] = [],
    teacher_input_size: Annotated[
        str | None, typer.Option(help="Input size of the teacher, N or ROWSxCOLUMNS; its own by default.")
    ] = None,
    teacher_classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|timm",
            help="Class names of the teacher's outputs, one per line, or timm for its ImageNet names. Without it, output i"
            " is the images' i-th class. A relabel checkpoint does not need it.",
        ),
    ] = None,
    model_kwargs: ModelKwargs = [],
    initial_weights: Annotated[
        Path | None, typer.Option(help="Start from these weights; the head is reinitialised if class counts differ.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from the published weights.")] = False,
    workers: Workers = None,
    device: Device = None,
    amp: Amp = None,
    amp_dtype: AmpDtype = None,
    compile: Compile = False,
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="Batch norm statistics over the images of all processes; CUDA only.")
    ] = False,
    save_every: Annotated[
        float, typer.Option(metavar="MINUTES", help="Also save the state within an epoch, this often.")
    ] = SAVE_MINUTES,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir, if there is one.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write the metrics for TensorBoard.")] = False,
) -> None:
    """Train a timm model on label maps.

    The target of each random crop is the label map, pooled over the crop; or whatever else the recipe says.
    """
    from train.loop import train as train_student
    from train.options import TrainOptions
    from train.recipe import load_recipe
    from train.stop_signals import Interrupted
    from train.teacher import TeacherChoice

    choice = TeacherChoice(
        teacher,
        teacher_checkpoint,
        parse_model_kwargs(teacher_kwargs, "--teacher-kwargs"),
        parse_size(teacher_input_size, "--teacher-input-size"),
        teacher_classes,
    )
    options = TrainOptions(
        labels=labels,
        maps=maps,
        val=val,
        multilabels=multilabels,
        teacher=choice if choice != TeacherChoice() else None,
        model_kwargs=parse_model_kwargs(model_kwargs),
        initial_weights=initial_weights,
        pretrained=pretrained,
        workers=workers,
        amp=amp,
        amp_dtype=amp_dtype,
        compile=compile,
        sync_bn=sync_bn,
        device=device,
        save_every=save_every,
        resume=resume,
        tensorboard=tensorboard,
    )
    try:
        train_student(images, run, arch, load_recipe(recipe, set), options)
    except Interrupted as stop:
        print(f"relabel: {stop}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from stop


@command(GROUP)
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Show all settings of this recipe, explained; a name, or a .toml file.")
    ] = None,
) -> None:
    """List recipes, or explain one's settings."""
    from train.recipe import about_recipe, as_toml, load_recipe, recipe_names

    if name is not None:
        print(as_toml(load_recipe(name)))
        return
    for known in recipe_names():
        about = about_recipe(known)
        print(f"{known}\n    {about.reproduces}")
        if about.published:
            print("    published top-1: " + ", ".join(f"{arch} {top1}" for arch, top1 in about.published.items()))
    print(
        "\nPublished: Yun et al. 2021, arXiv 2101.05022, on ImageNet. `relabel recipes NAME` explains all settings of one."
    )
