"""`relabel find-noise`: checks what is asked for, judges every image, and writes the table and the lists."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.noise.judge import judge
from pipeline.noise.lists import check_listable, image_list, is_list
from pipeline.noise.table import as_csv, as_parquet, check_ending, columns_of, is_table
from relabel.images.classes import ClassNames
from relabel.images.sources import find_images
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError
from relabel.runtime.files import check_output, output_place, write_output
from relabel.runtime.typed import shown
from train.training_set import label_rows, warn_of_changed_files


@dataclass(frozen=True)
class NoiseOptions:
    """What is written, and how an image is called wrong; see `relabel find-noise --help`."""

    output: Path
    threshold: float
    drop: Path | None = None
    move: Path | None = None
    class_names: Path | None = None
    force: bool = False


def find_noise(labels: Path, images: Path | str, options: NoiseOptions) -> list[str]:
    """Find images whose ground-truth label the label set contradicts; says what was found and written.

    Raises:
        InputError: contradicting options, images of other classes or without labels, class names that are missing, or an
            output that cannot be written. Nothing is written then.
    """
    if not 0 < options.threshold <= 1:
        raise InputError(f"--threshold {shown(options.threshold)}: expected a share within (0, 1]")
    check_ending(options.output)
    lists = {option: path for option, path in (("--drop", options.drop), ("--move", options.move)) if path is not None}
    outputs = [options.output, *lists.values()]
    if len({output_place(path) for path in outputs}) < len(outputs):
        raise InputError(f"--output, --drop and --move name the same file ({', '.join(map(str, outputs))}); name another")
    check_output(options.output, is_table, options.force)
    for path in lists.values():
        check_output(path, is_list, options.force)
    names = ClassNames(options.class_names)
    store = LabelStore.open(labels)
    image_set = find_images(images)
    for option, path in lists.items():
        check_listable(image_set, option, path)
    names.check_complete(image_set.classes)
    image_set = image_set.without(set(store.unreadable))
    rows = label_rows(store, image_set)
    store.check()
    warn_of_changed_files(store, image_set)
    found = judge(store, rows, image_set.targets, options.threshold)
    issue, count = found.is_label_issue, int(found.is_label_issue.sum())
    columns = columns_of(image_set, found, names)
    contents = {options.output: (as_parquet if options.output.suffix.lower() == ".parquet" else as_csv)(columns)}
    says = [
        f"{count} of {len(image_set)} images ({100 * count / len(image_set):.1f}%) do not seem to show their label",
        f"{options.output}: a row per image, most certain issues first",
    ]
    source = f"{image_set.source} by {labels}, --threshold {options.threshold:g}"
    if options.drop is not None:
        title = f"{len(image_set) - count} images without {count} label issues of {source}"
        contents[options.drop] = image_list(image_set, image_set.targets, ~issue, title)
        says.append(f"{options.drop}: {len(image_set) - count} images without the {count}")
    if options.move is not None:
        suggested = np.where(issue, found.predicted, image_set.targets)
        title = f"{len(image_set)} images with {count} labels changed of {source}"
        contents[options.move] = image_list(image_set, suggested, np.ones(len(image_set), dtype=bool), title)
        says.append(f"{options.move}: {len(image_set)} images, the {count} with the suggested label")
    if store.manifest.window is not None:
        says.append("boxes are fractions of the central square of each image that the label maps cover")
    for path, content in contents.items():
        write_output(path, content)
    return says
