"""Commands that check and compare label sets."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import command
from pipeline.cli.options import ClassNamesFile, Device, Force, ModelKwargs, parse_model_kwargs, parse_size
from relabel.runtime.defaults import COMPARE_BOXES, MAX_CLASSES, MIN_AGREEMENT, NOISE_THRESHOLD
from relabel.runtime.errors import InputError

GROUP = "Label sets"


@command(GROUP)
def verify(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    images: Annotated[
        str | None, typer.Option(help="The images it was made from: also checks coverage, and agreement with their labels.")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(help="Lowest share of images whose top-1 class must be their ground-truth label.")
    ] = MIN_AGREEMENT,
    spot_check: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Annotate N random images again: shows differences; of maps also what each k and tail would lose.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="For --spot-check: the weights the label set was made with, if your own. Several for an ensemble."
        ),
    ] = [],
    contents: Annotated[
        bool,
        typer.Option(
            "--contents", help="Read every image file, and find those that changed since; without it, by their sizes only."
        ),
    ] = False,
    class_names: ClassNamesFile = None,
    workers: Annotated[
        int | None, typer.Option(help="Shards that are checked at a time; by default as many as there are cores.")
    ] = None,
    device: Device = None,
) -> None:
    """Check a label set.

    Structure, checksums and values; with --images also coverage, whether the image files are still the same, and agreement
    with the ground-truth labels.
    """
    from pipeline.verify import verify as verify_label_set
    from relabel.images.classes import ClassNames

    if spot_check is not None and images is None:
        raise InputError("--spot-check needs the images; give their folder with --images")
    if contents and images is None:
        raise InputError("--contents needs the images; give their folder with --images")
    if spot_check is None and (checkpoint or device is not None):
        raise InputError("--checkpoint and --device need --spot-check; give it too")
    checked = verify_label_set(labels, images, min_agreement, ClassNames(class_names), workers, contents)
    notes, findings = checked.notes, checked.findings
    if spot_check is not None and findings:
        notes.append("spot check skipped: fix the errors first")
    print_report(notes, findings)
    if spot_check is not None and images is not None and not findings:
        notes, findings = annotate_again(labels, images, spot_check, checkpoint, device)
        print_report(notes, findings)
    if findings:
        print(f"{len(findings)} error{'s' * (len(findings) != 1)}")
        raise typer.Exit(1)
    print("OK")


def annotate_again(
    labels: Path, images: str, count: int, checkpoints: list[Path], device: str | None
) -> tuple[list[str], list[str]]:
    """The notes and the findings of a spot check, of either kind of label set."""
    from pipeline import spot_check, spot_check_regions
    from relabel.labels.manifest import Manifest

    manifest = Manifest.load(labels)
    if manifest.regions is not None:
        of_regions = spot_check_regions.check_regions(labels, images, count, checkpoints, device)
        return [spot_check_regions.note(of_regions)], spot_check_regions.problems(of_regions, manifest, labels)
    if len(checkpoints) > 1:
        raise InputError(f"{len(checkpoints)} --checkpoint: label maps are made with one")
    of_maps = spot_check.spot_check(labels, images, count, checkpoints[0] if checkpoints else None, device)
    return spot_check.fidelity_table(of_maps, manifest), spot_check.problems(of_maps, manifest, labels)


def print_report(notes: list[str], findings: list[str]) -> None:
    print("\n".join([*notes, *(f"ERROR {finding}" for finding in findings)]), flush=True)


@command(GROUP)
def compare(
    first: Annotated[Path, typer.Argument(help="A label set.")],
    second: Annotated[Path, typer.Argument(help="Another label set of the same images.")],
    boxes: Annotated[int, typer.Option(help="Random boxes per image; of regions, how many of them.")] = COMPARE_BOXES,
    class_names: ClassNamesFile = None,
) -> None:
    """Show how two label sets differ.

    In settings, in top-1 classes and in the targets of crops, and on which images most.
    """
    from pipeline.compare import compare as compare_label_sets
    from relabel.images.classes import ClassNames

    names = ClassNames(class_names)
    found = compare_label_sets(first, second, boxes)
    for difference in found.different_settings:
        print(f"different settings    {difference}")
    only = f" ({found.only_first} only in {first}, {found.only_second} only in {second})"
    print(f"images in both        {found.images}{only if found.only_first or found.only_second else ''}")
    print(f"whole-image top-1     the same for {100 * found.agreement:.1f}%")
    print(f"targets               mean KL({first} || {second}) {found.kl:.4f} nats over {found.boxes} per image")
    print("images that differ most")
    for key, kl in found.worst_images:
        print(f"  {kl:8.4f}  {key}  {names(key.rpartition('/')[0])}")
    print("class folders that differ most")
    for folder, kl in found.worst_folders:
        print(f"  {kl:8.4f}  {names(folder)}")


@command(GROUP)
def show(
    images: Annotated[list[Path], typer.Argument(help="Image files; for a label set, IMAGES/CLASS/NAME.")],
    output: Annotated[Path, typer.Option(help="PNG to write.")],
    labels: Annotated[Path | None, typer.Option(help="A label set that has labels of these images.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Without --labels: a timm classifier that annotates the images on the spot.")
    ] = None,
    model_kwargs: ModelKwargs = [],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its weights, if your own. A relabel checkpoint needs no --model.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of its classes, if not the model's own.", max=MAX_CLASSES)
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE|timm", help="Class names of its outputs, one per line, or timm for its ImageNet names."),
    ] = None,
    input_size: Annotated[str | None, typer.Option(help="Pixels, N or ROWSxCOLUMNS; the model's own by default.")] = None,
    box: Annotated[
        list[str], typer.Option(metavar="X0,Y0,X1,Y1", help="Show this crop, in fractions of the image; several times.")
    ] = [],
    random: Annotated[
        int | None,
        typer.Option(metavar="N", help="Show N random crops, or stored regions; by default 3 if no --box is given."),
    ] = None,
    class_names: ClassNamesFile = None,
    force: Force = False,
    device: Device = None,
) -> None:
    """Draw images with their labels: what each cell says, and the targets of crops.

    From a label set, or annotated on the spot by a model.
    """
    from pipeline.show.run import ShowOptions
    from pipeline.show.run import show as draw

    options = ShowOptions(
        labels=labels,
        model=model,
        model_kwargs=parse_model_kwargs(model_kwargs),
        checkpoint=checkpoint,
        num_classes=num_classes,
        classes=classes,
        input_size=parse_size(input_size),
        boxes=tuple(box),
        random=random,
        class_names=class_names,
        force=force,
        device=device,
    )
    print(f"{output}: {draw(images, output, options)}")


@command(GROUP)
def report(
    labels: Annotated[Path, typer.Argument(help="A label set.")],
    images: Annotated[str, typer.Option(help="The images it was made from.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
    and_labels: Annotated[
        Path | None,
        typer.Option("--and", metavar="LABELS", help="Another label set of the same images, to stand beside it."),
    ] = None,
    run: Annotated[list[Path], typer.Option(help="Also show the training in this run directory; several times.")] = [],
    class_names: ClassNamesFile = None,
    force: Force = False,
) -> None:
    """Write a page to look at a label set: how it agrees with the folders, and the images whose label it doubts.

    One HTML file of at most 10 MB that needs no network. A box drawn on a picture shows its target.
    """
    from pipeline.report.run import ReportOptions
    from pipeline.report.run import report as write_report

    options = ReportOptions(other=and_labels, runs=tuple(run), class_names=class_names, force=force)
    print(f"{output}: {write_report(labels, images, output, options)}")


@command(GROUP, "find-noise")
def find_noise(
    labels: Annotated[Path, typer.Argument(help="Folder of the label set.")],
    images: Annotated[str, typer.Option(help="The images it was made from, with the labels that are judged.")],
    output: Annotated[
        Path, typer.Option(metavar="FILE.csv|FILE.parquet", help="Table to write: a row per image, as cleanlab has it.")
    ],
    drop: Annotated[
        Path | None, typer.Option(help="Also write a .txt list, for train, of the images without issues.")
    ] = None,
    move: Annotated[
        Path | None, typer.Option(help="Also write a .txt list, for train, of all images with the suggested labels.")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            help="An image is a label issue if its label is nowhere in it as probable as this share of the probability of"
            " the predicted label. A higher threshold finds more, with more false alarms."
        ),
    ] = NOISE_THRESHOLD,
    class_names: ClassNamesFile = None,
    force: Force = False,
) -> None:
    """Find wrong ground-truth labels.

    Images whose label the label set sees nowhere in them, the most certain first, with what it sees instead and where.
    """
    from pipeline.noise.run import NoiseOptions
    from pipeline.noise.run import find_noise as find

    print("\n".join(find(labels, images, NoiseOptions(output, threshold, drop, move, class_names, force))))
