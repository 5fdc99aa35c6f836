"""The families whose own head names every location, so that the generic way of annotate/convert.py would lose what it knows.

    vgg    its fully connected layers are a convolution of 7x7 locations and need the whole window to see anything
    volo   trained by token labelling: `aux_head` was taught the class of every token (Jiang et al. 2021, arXiv 2104.10858)

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
    """The head of its own with which a classifier names every location; None: its locations go through `forward_head`."""
    if isinstance(classifier, VGG) and isinstance(classifier.pre_logits, ConvMlp):
        return functools.partial(slide, classifier)
    if isinstance(classifier, VOLO) and classifier.aux_head is not None:
        head: DenseHead = classifier.aux_head
        return head
    return None


def slide(classifier: VGG, locations: Tensor) -> Tensor:
    """VGG's fully connected layers at every location, on the window centred there.

    A convolution of whole windows alone would be a map of the image's middle: at 224 pixels, one cell. The map is padded
    by half a window, so that cells stay where the image is; at 224 pixels the middle cell is the classifier's own logits.
    The border is repeated: zeros, which no window held in training but where nothing was seen, would make the logits of
    border cells small, those of a corner least.
    """
    before, after = (classifier.pre_logits.input_kernel_size - 1) // 2, classifier.pre_logits.input_kernel_size // 2
    padded = pad(locations.permute(0, 3, 1, 2), [before, after, before, after], mode="replicate")
    windows: Tensor = classifier.pre_logits(padded)  # (B, 4096, H, W)
    logits: Tensor = classifier.get_classifier()(windows.permute(0, 2, 3, 1))
    return logits
