"""Select the classifier outputs that a label set stores: those of the images' classes, matched by name, in their order.

Without a list of names, output i of the classifier is assumed to be the i-th class of the images, whatever its name.
"""

from torch import nn

from relabel.images.class_lists import output_names, same_spelling
from relabel.images.image_set import ImageSet
from relabel.runtime.errors import InputError


def outputs_by_name(classes: str, classifier: nn.Module, images: ImageSet) -> list[int]:
    """The index of the classifier's output for each class of the images, in their order.

    Args:
        classes: what `output_names` takes: a text file, or "timm".
    Raises:
        InputError: the names do not fit the classifier, or lack a class.
    """
    names = output_names(classes, int(classifier.num_classes))  # type: ignore[arg-type]
    output = {name: i for i, name in enumerate(names)}
    unknown = [name for name in images.classes if same_spelling(name) not in output]
    if unknown:
        raise InputError(
            f"--classes {classes}: {len(unknown)} of {len(images.classes)} classes of {images.source} are not listed (first:"
            f" {', '.join(unknown[:3])}); the list starts with {names[0]}"
        )
    return [output[same_spelling(name)] for name in images.classes]
