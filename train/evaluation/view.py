"""How an image is shown to a classifier when it is evaluated: timm's transform, but for the normalisation.

Decoding processes hand over uint8, a quarter of the bytes of floats; the device normalises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.images import ImageSet, normalise


@dataclass(frozen=True)
class View:
    """A centre crop of `crop` of the shorter side, `size` pixels square, normalised."""

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"  # timm's: center, squash or border

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size), uint8 or of its values -> float32, on the images' device."""
        return normalise(pixels, self.mean, self.std)


class CentreCrops(Dataset[tuple[Tensor, int]]):
    """((3, size, size) uint8, index) of the folder's images at `indices`."""

    def __init__(self, image_set: ImageSet, view: View, indices: Sequence[int]) -> None:
        self.image_set, self.indices = image_set, indices
        self.transform = create_transform(
            (3, view.size, view.size),
            is_training=False,
            interpolation=view.interpolation,
            mean=view.mean,  # of a border, where crop_mode adds one
            crop_pct=view.crop,
            crop_mode=view.crop_mode,
            normalize=False,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        index = self.indices[i]
        return self.transform(self.image_set.read(index)), index


def view_of(classifier: nn.Module) -> View:
    """A published model's own evaluation settings, test size included."""
    settings = resolve_model_data_config(classifier, use_test_size=True)
    return View(
        size=settings["input_size"][-1],
        crop=settings["crop_pct"],
        interpolation=settings["interpolation"],
        mean=settings["mean"],
        std=settings["std"],
        crop_mode=settings["crop_mode"],
    )
