"""The command line: one subcommand per stage. A stage is imported when it runs, so that --help needs no torch."""

import functools
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from relabel.runtime.defaults import (
    ANNOTATE_BATCH_SIZE,
    ANNOTATOR,
    COMPARE_BOXES,
    EVAL_BATCH_SIZE,
    MIN_AGREEMENT,
    SAVE_MINUTES,
    SHARD_SIZE,
    TAIL,
)
from relabel.runtime.errors import InputError

app = typer.Typer(
    name="relabel",
    help="Localised multi-label maps for image classification: annotate once, train on crops that know what they show.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130  # as shells report Ctrl-C
READER_GONE = 141  # as they report SIGPIPE


P = ParamSpec("P")


def plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake becomes one message and exit code 1; a traceback is left for bugs."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except InputError as error:
            print(f"relabel: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        except BrokenPipeError as error:  # its reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from error
        except OSError as error:  # a disk that is full, read-only or gone: whatever was finished is whole
            print(f"relabel: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            print("relabel: interrupted; what is finished is kept, rerun (train: with --resume) to go on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error

    return run


Images = Annotated[
    str,
    typer.Argument(help="Images: a folder IMAGES/CLASS/*.JPEG, a .txt list of paths, .tar files, or hfds/NAME[:SPLIT]."),
]
Labels = Annotated[Path, typer.Option(help="Folder of the label set.")]
ModelKwargs = Annotated[
    list[str], typer.Option(metavar="KEY=VALUE", help="Passed to timm.create_model; may be given several times.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; CUDA where there is one.")]
ClassNamesFile = Annotated[
    Path | None, typer.Option("--class-names", help="Lines FOLDER NAME, instead of WordNet's names for WordNet ids.")
]
Amp = Annotated[bool | None, typer.Option(help="Mixed precision, in --amp-dtype; by default on CUDA only.")]
AmpDtype = Annotated[str | None, typer.Option(help="bfloat16, the default, or float16, for GPUs without fast bfloat16.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Decoding processes per GPU process; 0 decodes in that one. By default its share of the cores."),
]


@app.command()
@plain_errors
def annotate(
    images: Images,
    labels: Labels,
    model: Annotated[str, typer.Option(help="Any timm classifier, hf-hub:OWNER/NAME or local-dir:FOLDER.")] = ANNOTATOR,
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[Path | None, typer.Option(help="Your own weights instead of the published ones.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the classifier; the model's own by default.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|timm",
            help="Names of the classifier's outputs, a line each, or timm's for ImageNet: the images' classes are found"
            " among them by name, and only those are stored. Without it, output i is the images' i-th class.",
        ),
    ] = None,
    topk: Annotated[
        int | None, typer.Option(help="Logits kept per cell; by default 5, or all if there are fewer classes.")
    ] = None,
    tail: Annotated[
        str, typer.Option(help="Logit of the classes that a cell does not store: mean or logmeanexp of theirs, or zero.")
    ] = TAIL,
    input_size: Annotated[str | None, typer.Option(help="Pixels, N or ROWSxCOLUMNS; the model's own by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = ANNOTATE_BATCH_SIZE,
    workers: Workers = None,
    device: Device = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard file.")] = SHARD_SIZE,
    recentre: Annotated[
        bool, typer.Option("--recentre", help="Shift every map so that its mean is the classifier's logits exactly.")
    ] = False,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the map of the mirrored image; twice the time.")
    ] = False,
    class_token: Annotated[
        bool, typer.Option("--class-token", help="Accept models whose head reads a class token.")
    ] = False,
    amp: Annotated[bool, typer.Option("--amp", help="Forward pass in bfloat16, or what --amp-dtype says.")] = False,
    amp_dtype: AmpDtype = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile: minutes at the start, faster afterwards.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Record unreadable images and go on, instead of stopping.")
    ] = False,
) -> None:
    """Write label maps of a set of images. A rerun keeps finished shards and makes the rest."""
    from annotate.run import AnnotateConfig
    from annotate.run import annotate as run
    from relabel.models.classifier import parse_model_kwargs

    if amp_dtype is not None and not amp:
        raise InputError("--amp-dtype says what --amp computes in; give --amp too")
    if tail not in ("mean", "logmeanexp", "zero"):
        raise InputError(f"--tail {tail}: expected mean, logmeanexp or zero")
    config = AnnotateConfig(
        model=model,
        model_kwargs=parse_model_kwargs(model_kwargs),
        checkpoint=checkpoint,
        num_classes=num_classes,
        classes=classes,
        topk=topk,
        tail=tail,  # type: ignore[arg-type]
        input_size=parse_size(input_size),
        batch_size=batch_size,
        workers=workers,
        shard_size=shard_size,
        recentre=recentre,
        flip=flip,
        class_token=class_token,
        precision=known_amp_dtype(amp_dtype) or "bfloat16" if amp else "float32",  # type: ignore[arg-type]
        compile=compile,
        skip_unreadable=skip_unreadable,
    )
    run(images, labels, config, device)


def known_amp_dtype(amp_dtype: str | None) -> str | None:
    if amp_dtype not in (None, "bfloat16", "float16"):
        raise InputError(f"--amp-dtype {amp_dtype}: expected bfloat16 or float16")
    return amp_dtype


def parse_size(text: str | None, option: str = "--input-size") -> tuple[int, int] | None:
    """ "475" or "480x640" as rows, columns."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} {text}: expected pixels, as N or ROWSxCOLUMNS")
    return int(parts[0]), int(parts[-1])


@app.command()
@plain_errors
def verify(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    images: Annotated[str | None, typer.Option(help="The images it was made from: checks coverage and meaning too.")] = None,
    min_agreement: Annotated[
        float, typer.Option(help="Least share of images whose top class is their folder's.")
    ] = MIN_AGREEMENT,
    spot_check: Annotated[
        int | None,
        typer.Option(metavar="N", help="Annotate N random images again: what differs, and what each k and tail costs."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="For --spot-check: the weights it was made with, if your own.")
    ] = None,
    class_names: ClassNamesFile = None,
    device: Device = None,
) -> None:
    """Check a label set: structure, checksums, values; with --images, coverage and agreement with the folders."""
    from pipeline.verify import verify as run
    from relabel.images.classes import ClassNames

    if spot_check is not None and images is None:
        raise InputError("--spot-check needs the images: name their folder with --images")
    if spot_check is None and (checkpoint is not None or device is not None):
        raise InputError("--checkpoint and --device are for --spot-check; give it too")
    report = run(labels, images, min_agreement, ClassNames(class_names))
    notes, findings = report.notes, report.findings
    if spot_check is not None and findings:
        notes.append("spot check skipped: mend what was found first")
    say(notes, findings)
    if spot_check is not None and images is not None and not findings:
        from pipeline import spot_check as spot
        from relabel.labels.manifest import Manifest

        manifest = Manifest.load(labels)
        check = spot.spot_check(labels, images, spot_check, checkpoint, device)
        findings = spot.problems(check, manifest, labels)
        say(spot.fidelity_table(check, manifest), findings)
    if findings:
        print(f"{len(findings)} finding{'s' * (len(findings) != 1)}")
        raise typer.Exit(1)
    print("all sound")


def say(notes: list[str], findings: list[str]) -> None:
    print("\n".join([*notes, *(f"FOUND {finding}" for finding in findings)]), flush=True)


@app.command()
@plain_errors
def compare(
    first: Annotated[Path, typer.Argument(help="A label set.")],
    second: Annotated[Path, typer.Argument(help="Another label set of the same images.")],
    boxes: Annotated[int, typer.Option(help="Random boxes per image.")] = COMPARE_BOXES,
    class_names: ClassNamesFile = None,
) -> None:
    """How two label sets differ: in their best classes, in what crops would be told, and where they do so most."""
    from pipeline.compare import compare as run
    from relabel.images.classes import ClassNames

    names = ClassNames(class_names)
    found = run(first, second, boxes)
    for difference in found.different_settings:
        print(f"made otherwise        {difference}")
    only = f" ({found.only_first} only in {first}, {found.only_second} only in {second})"
    print(f"images in both        {found.images}{only if found.only_first or found.only_second else ''}")
    print(f"whole-image top-1     the same for {100 * found.agreement:.1f}%")
    print(f"pooled targets        mean KL({first} || {second}) {found.kl:.4f} nats over {boxes} random boxes an image")
    print("images that differ most")
    for key, kl in found.worst_images:
        print(f"  {kl:8.4f}  {key}  {names(key.rpartition('/')[0])}")
    print("class folders that differ most")
    for folder, kl in found.worst_folders:
        print(f"  {kl:8.4f}  {names(folder)}")


@app.command()
@plain_errors
def train(
    images: Images,
    run: Annotated[Path, typer.Option("--run-dir", help="Folder for weights, checkpoints and metrics.")],
    labels: Annotated[Path | None, typer.Option(help="Label set; needed by recipes whose target is a label map.")] = None,
    arch: Annotated[str, typer.Option(help="Any timm model.")] = "resnet50",
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a .toml file.")] = "relabel",
    set: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help="Override a recipe's setting.")] = [],
    val: Annotated[str | None, typer.Option(help="Validation images of the same classes.")] = None,
    multilabels: Annotated[Path | None, typer.Option(help="JSON of all the classes each validation image shows.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For distillation: any timm classifier, asked about every crop.")
    ] = None,
    teacher_checkpoint: Annotated[
        Path | None,
        typer.Option(help="Its weights instead of the published ones; alone, weights.safetensors or weights.pth of a run."),
    ] = None,
    teacher_kwargs: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Passed to timm.create_model for the teacher.")
    ] = [],
    teacher_input_size: Annotated[
        str | None, typer.Option(help="Pixels it sees a crop at, N or ROWSxCOLUMNS; its own by default.")
    ] = None,
    model_kwargs: ModelKwargs = [],
    initial_weights: Annotated[
        Path | None, typer.Option(help="Start from these weights; a head of another class count is made anew.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from the published weights.")] = False,
    workers: Workers = None,
    device: Device = None,
    amp: Amp = None,
    amp_dtype: AmpDtype = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile: minutes at the start, faster afterwards.")
    ] = False,
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="Batch norm's statistics over all processes' images; CUDA only.")
    ] = False,
    save_every: Annotated[
        float, typer.Option(metavar="MINUTES", help="Save the state within an epoch too, after so many minutes.")
    ] = SAVE_MINUTES,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir, if there is one.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.")] = False,
) -> None:
    """Train a timm model on random crops whose target is the label map pooled over the crop."""
    from relabel.models.classifier import parse_model_kwargs
    from train.loop import train as run_training
    from train.recipe import load_recipe
    from train.stop_signals import Interrupted
    from train.teacher import TeacherChoice

    asked = TeacherChoice(
        teacher,
        teacher_checkpoint,
        parse_model_kwargs(teacher_kwargs, "--teacher-kwargs"),
        parse_size(teacher_input_size, "--teacher-input-size"),
    )
    try:
        run_training(
            images,
            run,
            arch,
            load_recipe(recipe, set),
            labels=labels,
            val=val,
            multilabels=multilabels,
            teacher=asked if asked != TeacherChoice() else None,
            model_kwargs=parse_model_kwargs(model_kwargs),
            initial_weights=initial_weights,
            pretrained=pretrained,
            workers=workers,
            amp=amp,
            amp_dtype=known_amp_dtype(amp_dtype),
            compile=compile,
            sync_bn=sync_bn,
            device=device,
            save_every=save_every,
            resume=resume,
            tensorboard=tensorboard,
        )
    except Interrupted as stop:
        print(f"relabel: {stop}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from stop


@app.command()
@plain_errors
def eval(
    images: Images,
    checkpoint: Annotated[
        Path | None, typer.Option(help="weights.safetensors or weights.pth of a run, or weights of --arch.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm model; not needed for a run of ours. Alone: published weights.")
    ] = None,
    model_kwargs: ModelKwargs = [],
    compare: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Another model: is the difference more than luck?")
    ] = None,
    compare_arch: Annotated[str | None, typer.Option(help="Its timm model, if not that of --arch.")] = None,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of further data sets by their published names: imagenet-a, imagenet-c ..."),
    ] = None,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="Attack the images too, by FGSM.")] = False,
    fgsm_epsilon: Annotated[
        str | None, typer.Option(help="The attack's step, of pixels in [0, 1]; 8/255 by default.")
    ] = None,
    multilabels: Annotated[
        Path | None, typer.Option(help="JSON of all the classes that each image shows, ours or of Shankar et al. 2020.")
    ] = None,
    class_names: ClassNamesFile = None,
    eval_size: Annotated[int | None, typer.Option(help="Pixels, square; the model's own by default.")] = None,
    eval_crop: Annotated[
        float | None, typer.Option(help="Share of the shorter side that the centre crop keeps; the model's own by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = EVAL_BATCH_SIZE,
    workers: Workers = None,
    device: Device = None,
    amp: Amp = None,
    amp_dtype: AmpDtype = None,
) -> None:
    """Evaluate a checkpoint on an image folder, and on the other data sets that are found; or compare two checkpoints."""
    from relabel.models.classifier import parse_model_kwargs
    from train.evaluation.fgsm import EPSILON
    from train.evaluation.report import table
    from train.evaluation.run import evaluate_checkpoint

    if fgsm_epsilon is not None and not fgsm:
        raise InputError("--fgsm-epsilon is the step of --fgsm; give --fgsm too, or leave it out")
    epsilon = parse_fraction(fgsm_epsilon) if fgsm_epsilon is not None else EPSILON
    result = evaluate_checkpoint(
        images,
        checkpoint=checkpoint,
        arch=arch,
        model_kwargs=parse_model_kwargs(model_kwargs),
        compare=compare,
        compare_arch=compare_arch,
        suite=suite,
        fgsm_epsilon=epsilon if fgsm else None,
        multilabels=multilabels,
        class_names=class_names,
        eval_size=eval_size,
        eval_crop=eval_crop,
        output=output,
        batch_size=batch_size,
        workers=workers,
        device=device,
        amp=amp,
        amp_dtype=known_amp_dtype(amp_dtype),
    )
    if result is not None:
        print(table(result))


def parse_fraction(text: str) -> float:
    """ "8/255" or "0.03"."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"--fgsm-epsilon {text}: expected a fraction such as 8/255, or a number such as 0.03") from error


@app.command()
@plain_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="weights.safetensors or weights.pth of a run, or weights of --arch.")],
    output: Annotated[Path, typer.Argument(help="File to write: .safetensors or .pth.")],
    to: Annotated[str, typer.Option(help="torchvision-detection: the backbone of Faster R-CNN and Mask R-CNN.")],
    arch: Annotated[str | None, typer.Option(help="A ResNet; not needed for a run of ours.")] = None,
) -> None:
    """Write a classifier's weights as another library takes them; docs/transfer.md shows the lines that load them."""
    from train.export import export_backbone

    if to != "torchvision-detection":
        raise InputError(f"--to {to}: expected torchvision-detection")
    print(export_backbone(checkpoint, output, arch))


@app.command("import-maps")
@plain_errors
def import_maps(
    source: Annotated[Path, typer.Argument(help="Folder or uncompressed tar of CLASS/NAME.pt files, [2, k, H, W].")],
    labels: Labels,
    num_classes: Annotated[int, typer.Option(help="Classes of the annotator that made them.")] = 1000,
    axes: Annotated[
        str,
        typer.Option(
            help="yx: a map's first axis is the image's rows; xy: it was stored transposed; auto: an annotator judges, on"
            " --images, by --model."
        ),
    ] = "yx",
    images: Annotated[
        str | None, typer.Option(help="The images, for the true extensions of their names; else .JPEG.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images per shard file.")] = SHARD_SIZE,
    model: Annotated[str | None, typer.Option(help="For --axes auto: a timm classifier of the same classes.")] = None,
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[Path | None, typer.Option(help="For --axes auto: its weights, if your own.")] = None,
    input_size: Annotated[str | None, typer.Option(help="For --axes auto: its pixels, N or ROWSxCOLUMNS.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read. As many as there are cores.")] = None,
    device: Device = None,
) -> None:
    """Make a label set of the published maps, one .pt file per image. A rerun keeps finished shards."""
    from annotate.interchange.import_maps import import_maps as run
    from annotate.run import AnnotateConfig
    from relabel.models.classifier import parse_model_kwargs

    if axes not in ("yx", "xy", "auto"):
        raise InputError(f"--axes {axes}: expected yx, xy or auto")
    if shard_size < 1 or num_classes < 1:
        raise InputError(f"--shard-size {shard_size}, --num-classes {num_classes}: expected at least 1")
    judge = None
    if axes != "auto" and any((model, model_kwargs, checkpoint, input_size, device)):
        raise InputError(f"--model and its options judge for --axes auto, which --axes {axes} does not ask for")
    if model is not None:
        judge = AnnotateConfig(
            model,
            parse_model_kwargs(model_kwargs),
            checkpoint,
            num_classes if checkpoint is not None else None,
            input_size=parse_size(input_size),
            class_token=True,
        )
    run(source, labels, num_classes, axes, images, shard_size, judge, workers, device)  # type: ignore[arg-type]


@app.command("export-maps")
@plain_errors
def export_maps(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    output: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    axes: Annotated[
        str,
        typer.Option(help="yx: a map's first axis is the image's rows; xy: its columns, as the reference code takes them."),
    ] = "yx",
) -> None:
    """Write a label set as one .pt file per image, as the reference code and TokenLabeling read them."""
    from annotate.interchange.export_maps import export_maps as run

    if axes not in ("yx", "xy"):
        raise InputError(f"--axes {axes}: expected yx or xy")
    print(f"{output}: {run(labels, output, axes)} maps")  # type: ignore[arg-type]


@app.command("demo-data")
@plain_errors
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    train_images: Annotated[int, typer.Option(help="Training scenes.")] = 3000,
    val_images: Annotated[int, typer.Option(help="Validation scenes.")] = 1000,
    annotator_images: Annotated[int, typer.Option(help="One-digit scenes for the annotator.")] = 3000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Write the embedded data set: scenes of handwritten digits, in ImageNet's layout."""
    from pipeline.demo.digit_scenes import write_scenes

    write_scenes(folder, train_images, val_images, annotator_images, seed)


@app.command()
@plain_errors
def corrupt(
    images: Images,
    output: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Write copies of images under eight corruptions at five severities, for `relabel eval --suite`."""
    from train.evaluation.corruptions import write_corrupted

    print(f"{output}: {write_corrupted(images, output, seed)} images")


@app.command()
@plain_errors
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show all the settings of this one; a name, or a .toml file.")] = None,
) -> None:
    """List the recipes with what they reproduce, or show one recipe's settings."""
    import dataclasses

    from train.recipe import about_recipe, load_recipe, recipe_names

    if name is not None:
        for key, value in dataclasses.asdict(load_recipe(name)).items():
            print(f"{key} = {json.dumps(value)}")
        return
    for known in recipe_names():
        said = about_recipe(known)
        print(f"{known}\n    {said.reproduces}")
        if said.published:
            print("    published top-1: " + ", ".join(f"{arch} {top1}" for arch, top1 in said.published.items()))
    print("\nPublished: Yun et al. 2021, arXiv 2101.05022, on ImageNet. `relabel recipes NAME` shows all its settings.")


@app.command()
@plain_errors
def annotators(
    pattern: Annotated[str, typer.Argument(help="Such as resnet50, 'tf_efficientnet*' or '*.ns_jft_in1k'.")] = "*",
    refused: Annotated[bool, typer.Option("--refused", help="List what cannot annotate too, with the reasons.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure the one model named here and now, instead of looking it up.")
    ] = False,
    model_kwargs: ModelKwargs = [],
    input_size: Annotated[str | None, typer.Option(help="For --probe: pixels, N or ROWSxCOLUMNS.")] = None,
) -> None:
    """List timm's classifiers as annotators: kind of map, input size, cells, parameters, and the top-1 of the paper's."""
    from annotate.zoo import table as table

    if probe:
        if any(sign in pattern for sign in "*?["):
            raise InputError(f"--probe measures one model, not all that match {pattern!r}; name it")
        from annotate.zoo.survey import probe as measure
        from relabel.models.classifier import parse_model_kwargs

        found = [measure(pattern, parse_model_kwargs(model_kwargs), parse_size(input_size))]
    elif model_kwargs or input_size is not None:
        raise InputError("--model-kwargs and --input-size go with --probe")
    else:
        found = table.matching(pattern)
    shown = [row for row in found if row.taken or refused] or found
    print("\n".join([*table.table_lines(shown), *table.table_notes(shown, len(found) - len(shown))]))


def main() -> None:
    app()
