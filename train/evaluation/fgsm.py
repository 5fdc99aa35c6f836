"""The fast gradient sign method (Goodfellow et al. 2015): one step of every pixel, up or down, against the right class.

The strength is that of CutMix (Yun et al. 2019, by the authors of ReLabel), 8/255 of the range of a pixel; what strength the
table of the ReLabel paper was made with could not be checked.

Shapes: B images, S pixels of an image's side.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relabel.models.preprocessing import Preprocessing

EPSILON = 8 / 255


def fgsm(classifier: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float, preprocessing: Preprocessing) -> Tensor:
    """Attack a batch, knowing the classifier, in float32.

    So it is where the classifier then answers in half precision, too: gradients that vanish in float16 have no sign.

    Args:
        pixels: (B, 3, S, S) uint8.
        targets: (B,) classes whose cross-entropy the step raises.
        epsilon: the step, of pixels in [0, 1].
    Returns:
        (B, 3, S, S) float32 in [0, 255]: no pixel is further than epsilon * 255 from where it was.
    """
    with torch.enable_grad():
        clean = pixels.float().requires_grad_()
        loss = cross_entropy(classifier(preprocessing.normalise(clean)).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, clean)
    return (clean.detach() + 255 * epsilon * gradient.sign()).clamp(0, 255)
