"""Mirroring, colour jitter and PCA lighting of a batch of uint8 crops, on the training device.

Every image has its own random numbers, drawn together with its crop, so its augmentation depends only on (seed, epoch,
image). As in the reference, mirroring comes first, then brightness, contrast and saturation in random order, then lighting.
Pixel values are not rounded in between.

Shapes: B images of a batch, S pixels of a crop's side.
"""

import functools

import torch
from torch import Tensor

from train.recipe import Recipe

# Columns of a crop's random numbers: uniform in [0, 1), but standard normal for LIGHTING
MIRROR, FACTORS, ORDER, LIGHTING = 0, slice(1, 4), slice(4, 7), slice(7, 10)
DRAWS = 10

BRIGHTNESS, CONTRAST, SATURATION = range(3)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue in grey

# Principal components of ImageNet's pixels in [0, 1], as AlexNet's colour augmentation uses them (Krizhevsky et al. 2012);
# the values are those of fb.resnet.torch (datasets/imagenet.lua), which the reference and others copied
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # in columns


def augmentation_draws() -> Tensor:
    """(DRAWS,) float32 random numbers for one crop, from torch's global generator."""
    return torch.cat([torch.rand(LIGHTING.start), torch.randn(DRAWS - LIGHTING.start)])


def augment(images: Tensor, mirrored: Tensor, draws: Tensor, recipe: Recipe) -> Tensor:
    """Mirror, jitter and light each image by its own random numbers. What the recipe turns off costs nothing.

    Args:
        images: (B, 3, S, S) uint8.
        mirrored: (B,) bool, which images to mirror.
        draws: (B, DRAWS).
    Returns:
        (B, 3, S, S): uint8 if colours stay the same, else float32 in units of uint8; lighting may leave [0, 255].
    """
    if recipe.hflip or recipe.reads_regions:
        images = mirror(images, mirrored)
    if any(recipe.colour_jitter):
        images = jitter(images.float(), draws[:, FACTORS], draws[:, ORDER].argsort(1), recipe.colour_jitter)
    if recipe.lighting:
        images = images.float() + lighting(draws[:, LIGHTING] * recipe.lighting)
    return images


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror some images of a batch. On a CPU only these, one by one; on a GPU all, or the host would wait for it."""
    if not (images.is_cpu and mirrored.is_cpu):
        return torch.where(per_image(mirrored), images.flip(-1), images)
    result = images.clone()
    for index in mirrored.nonzero().flatten().tolist():
        result[index] = images[index].flip(-1)
    return result


def jitter(images: Tensor, uniform: Tensor, order: Tensor, strength: tuple[float, float, float]) -> Tensor:
    """torchvision's ColorJitter without hue, with factors and an order for each image.

    Each of the three is a blend towards an image without the property: black, the mean grey, the image in grey.

    Args:
        images: (B, 3, S, S) float32 in [0, 255].
        uniform: (B, 3) numbers in [0, 1): where the factors of brightness, contrast and saturation lie within 1 ± strength.
        order: (B, 3) permutation of the three.
    """
    low = [max(0.0, 1 - s) for s in strength]
    factors = torch.stack([low[i] + uniform[:, i] * (1 + strength[i] - low[i]) for i in range(3)], 1)  # (B, 3)
    for which in order.unbind(1):  # (B,) which of the three each image gets
        factor = per_image(factors.gather(1, which.unsqueeze(1)))
        red, green, blue = images.unbind(1)
        grey = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)  # (B, 1, S, S)
        without = torch.where(per_image(which == SATURATION), grey, grey.mean((2, 3), keepdim=True))
        without = torch.where(per_image(which == BRIGHTNESS), 0.0, without)
        images = torch.lerp(without.expand_as(images), images, factor).clamp_(0, 255)
    return images


def lighting(alpha: Tensor) -> Tensor:
    """(B, 3) weights of the components -> (B, 3, 1, 1) what is added to red, green and blue, in units of uint8."""
    return (alpha @ components(alpha.device)).unsqueeze(2).unsqueeze(3)


@functools.cache
@torch.inference_mode(False)
def components(device: torch.device) -> Tensor:
    """(3, 3): each component times its eigenvalue, along red, green and blue. Cached on the device: a copy would wait."""
    return 255 * (torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)).T.contiguous().to(device)


def per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
