"""The fast gradient sign method (Goodfellow et al. 2015): one step of every pixel, up or down, away from the right class.

The default step, 8/255 of a pixel's range, is that of the CutMix paper (Yun et al. 2019, by the authors of ReLabel). The
step behind the ReLabel paper's table could not be checked.

Shapes: B images, S pixels of an image's side.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relabel.models.preprocessing import Preprocessing

EPSILON = 8 / 255


def fgsm(classifier: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float, preprocessing: Preprocessing) -> Tensor:
    """Attack a batch in float32, with the classifier's own gradients.

    In float32 even if the classifier is evaluated in half precision: gradients that vanish in float16 have no sign.

    Args:
        pixels: (B, 3, S, S) uint8.
        targets: (B,) classes whose cross-entropy the step raises.
        epsilon: the step, for pixels in [0, 1].
    Returns:
        (B, 3, S, S) float32 in [0, 255]: no pixel is further than epsilon * 255 from where it was.
    """
    with torch.enable_grad():
        clean = pixels.float().requires_grad_()
        loss = cross_entropy(classifier(preprocessing.normalise(clean)).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, clean)
    return (clean.detach() + 255 * epsilon * gradient.sign()).clamp(0, 255)
