"""Which of a classifier's outputs a label set holds: those of the images' classes, matched by name, in the images' order.

Without a list of names, class i of the classifier is taken for the i-th class of the images, whatever they are called.
"""

from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError

TIMM_CLASSES = "timm"


def outputs_by_name(classes: str, classifier: nn.Module, images: ImageSet) -> list[int]:
    """The classifier's output for each class of the images, in their order.

    Args:
        classes: a text file, the class's name on a line per output of the classifier; or "timm", for the
            WordNet ids that timm has for ImageNet-1k, -12k, -21k and -22k classifiers.
    Raises:
        InputError: no such file, another number of lines than outputs, a name twice, or a class of the images not in it.
    """
    names = timm_class_names(classifier) if classes == TIMM_CLASSES else read_output_names(Path(classes))
    if len(names) != classifier.num_classes:
        raise InputError(f"--classes {classes}: {len(names)} names, the classifier has {classifier.num_classes} outputs")
    output = {name: i for i, name in enumerate(names)}
    if len(output) < len(names):
        twice = next(name for i, name in enumerate(names) if output[name] != i)
        raise InputError(f"--classes {classes}: {twice} stands in it twice")
    unknown = [name for name in images.classes if name not in output]
    if unknown:
        raise InputError(
            f"--classes {classes}: {len(unknown)} of {len(images.classes)} classes of {images.source} are not in it (first:"
            f" {', '.join(unknown[:3])}); the first name in it is {names[0]}"
        )
    return [output[name] for name in images.classes]


def read_output_names(path: Path) -> list[str]:
    """The lines; what follows a tab is for the reader."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()  # Windows marks its UTF-8
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes {path}: {error}; expected a text file of class names, or {TIMM_CLASSES}") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise InputError(f"--classes {path}: line {empty[0]} is empty; expected a name per output of the classifier")
    return [line.split("\t")[0].strip() for line in lines]


def timm_class_names(classifier: nn.Module) -> list[str]:
    subset = infer_imagenet_subset(classifier)
    if subset is None:
        raise InputError(f"--classes {TIMM_CLASSES}: timm has no names for a classifier of {classifier.num_classes} classes")
    names: list[str] = ImageNetInfo(subset).label_names()
    return names
