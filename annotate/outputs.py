"""Select the classifier outputs that a label set stores: those of the images' classes, matched by name, in their order.

Without a list of names, output i of the classifier is assumed to be the i-th class of the images, whatever its name.
"""

from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

TIMM_CLASSES = "timm"


def outputs_by_name(classes: str, classifier: nn.Module, images: ImageSet) -> list[int]:
    """The index of the classifier's output for each class of the images, in their order.

    Args:
        classes: a text file with one class name per output of the classifier; or "timm", for the WordNet ids that timm
            provides for ImageNet-1k, -12k, -21k and -22k classifiers.
    Raises:
        InputError: the file is missing, has more or fewer lines than outputs, lists a name twice, or lacks a class.
    """
    names = timm_class_names(classifier) if classes == TIMM_CLASSES else read_output_names(Path(classes))
    if len(names) != classifier.num_classes:
        raise InputError(f"--classes {classes}: {len(names)} names, but the classifier has {classifier.num_classes} outputs")
    output = {name: i for i, name in enumerate(names)}
    if len(output) < len(names):
        repeated = next(name for i, name in enumerate(names) if output[name] != i)
        raise InputError(f"--classes {classes}: {repeated} is listed twice; expected each name once")
    unknown = [name for name in images.classes if name not in output]
    if unknown:
        raise InputError(
            f"--classes {classes}: {len(unknown)} of {len(images.classes)} classes of {images.source} are not listed (first:"
            f" {', '.join(unknown[:3])}); the list starts with {names[0]}"
        )
    return [output[name] for name in images.classes]


def read_output_names(path: Path) -> list[str]:
    """One name per line; text after a tab is a comment."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # utf-8-sig: Windows writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes {path}: {error}; expected a text file of class names, or {TIMM_CLASSES}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise InputError(f"--classes {path}: line {empty[0]} is empty; expected one name per output of the classifier")
    return [line.split("\t")[0].strip() for line in lines]


def timm_class_names(classifier: nn.Module) -> list[str]:
    subset = infer_imagenet_subset(classifier)
    if subset is None:
        raise InputError(f"--classes {TIMM_CLASSES}: timm has no names for a classifier of {classifier.num_classes} classes")
    names: list[str] = ImageNetInfo(subset).label_names()
    return names
