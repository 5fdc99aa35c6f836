"""`relabel report`: checks what is asked for, and writes the page."""

import functools
from dataclasses import dataclass
from pathlib import Path

from pipeline.report.compose import compose
from pipeline.report.labelled import check_same_classes, open_labelled
from pipeline.report.page import SOFTWARE, Templates
from pipeline.report.trainings import read_training
from pipeline.show.seen import name_in
from relabel.images.classes import ClassNames
from relabel.images.sources import check_outside, find_images
from relabel.runtime.errors import InputError
from relabel.runtime.files import check_output, write_output

HEAD = 4000  # bytes in which a page names what made it


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows beside one label set; see `relabel report --help`."""

    other: Path | None = None
    runs: tuple[Path, ...] = ()
    class_names: Path | None = None
    force: bool = False


def report(labels: Path, images: str, output: Path, options: ReportOptions) -> str:
    """Write the page; says what is in it.

    Raises:
        InputError: the label set, the images, a run directory or the class names cannot be used, or the output not written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {output}: expected a name that ends in .html")
    check_output(output, is_ours, options.force)
    if not output.parent.is_dir():
        check_outside(output.parent, images, "--output in")
    names = ClassNames(options.class_names)
    trainings = [read_training(run) for run in options.runs]
    found = find_images(images)
    first = open_labelled(labels, found)
    second = open_labelled(options.other, found) if options.other is not None else None
    if second is not None:
        check_same_classes(first, second)
    classes = first.images.classes
    names.check_complete(classes)
    page = compose(first, second, Templates(functools.partial(name_in, classes, names)), trainings)
    write_output(output, page.content)
    return f"{page.images:,} of {len(first.rows):,} images, {len(page.content) / 1e6:.1f} MB"


def is_ours(path: Path) -> bool:
    """Whether this command has written the file."""
    try:
        with path.open("rb") as file:
            return f'<meta name="generator" content="{SOFTWARE}">'.encode() in file.read(HEAD)
    except OSError:
        return False
