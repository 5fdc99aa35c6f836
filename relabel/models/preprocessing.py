"""How a classifier expects its images: size, centre crop, interpolation and normalisation, from its timm settings.

Decoding processes pass on uint8, a quarter of the bytes of float32; the device normalises.

Shapes: B images, S rows and T columns of pixels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn


@dataclass(frozen=True)
class Preprocessing:
    """A centre crop of the fraction `crop` of the shorter side, scaled to `size` x `size` pixels and normalised."""

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"  # timm's: center, squash or border

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) uint8, or float with values 0 to 255 -> float32, on the same device."""
        return normalise(pixels, self.mean, self.std)


def eval_preprocessing(classifier: nn.Module) -> Preprocessing:
    """A published model's own evaluation settings, including its test size."""
    settings = resolve_model_data_config(classifier, use_test_size=True)
    return Preprocessing(
        size=settings["input_size"][-1],
        crop=settings["crop_pct"],
        interpolation=settings["interpolation"],
        mean=settings["mean"],
        std=settings["std"],
        crop_mode=settings["crop_mode"],
    )


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, S, T) uint8, or float with values 0 to 255 -> float32; `mean` and `std` are of values in [0, 1]."""
    # on a CPU, three values next to each other in memory are slow to spread over pixels; a whole row of them is not
    in_rows = images.device.type == "cpu" and images.is_contiguous(memory_format=torch.channels_last)
    columns = images.shape[3] if in_rows else 1
    return (images - per_channel(tuple(mean), images.device, columns)).div_(per_channel(tuple(std), images.device, columns))


@functools.cache
@torch.inference_mode(False)  # one cached tensor serves annotation and training
def per_channel(values: tuple[float, ...], device: torch.device, columns: int = 1) -> Tensor:
    """(3, 1, columns), times 255, channels last. Cached on the device: a copy in every step would wait for the stream."""
    return (torch.tensor(values, device=device) * 255).repeat(columns, 1).T.unsqueeze(1)
