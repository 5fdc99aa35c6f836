"""Model families whose own heads predict better logits at every location than the generic method of annotate/convert.py.

    vgg    its fully connected layers are a convolution over 7x7 locations, and are meaningless on less than a full window
    volo   token labelling trained its `aux_head` to classify every token (Jiang et al. 2021, arXiv 2104.10858)

Shapes: B images, H rows and W columns of the feature map, F features, C classes.
"""

import functools
from collections.abc import Callable

from timm.models.vgg import VGG, ConvMlp
from timm.models.volo import VOLO
from torch import Tensor, nn
from torch.nn.functional import pad

DenseHead = Callable[[Tensor], Tensor]  # (B, H, W, F) locations -> (B, H, W, C) logits


def dense_head_of(classifier: nn.Module) -> DenseHead | None:
    """The classifier's head for single locations, or None if it has none and each location goes through `forward_head`."""
    if isinstance(classifier, VGG) and isinstance(classifier.pre_logits, ConvMlp):
        return functools.partial(slide, classifier)
    if isinstance(classifier, VOLO) and classifier.aux_head is not None:
        head: DenseHead = classifier.aux_head
        return head
    return None


def slide(classifier: VGG, locations: Tensor) -> Tensor:
    """Apply VGG's fully connected layers at every location, on the window centred there.

    Full windows only would give a map of the middle of the image: a single cell at 224 pixels. So the features are padded by
    half a window, and the cells cover the whole image; at 224 pixels the middle cell equals the classifier's logits. The
    padding repeats the border. Zeros, which in training only meant that a feature was absent, would make the logits of
    border cells small, and those of the corners smallest.
    """
    before, after = (classifier.pre_logits.input_kernel_size - 1) // 2, classifier.pre_logits.input_kernel_size // 2
    padded = pad(locations.permute(0, 3, 1, 2), [before, after, before, after], mode="replicate")
    windows: Tensor = classifier.pre_logits(padded)  # (B, 4096, H, W)
    logits: Tensor = classifier.get_classifier()(windows.permute(0, 2, 3, 1))
    return logits
