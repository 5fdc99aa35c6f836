"""Prepare an image for the annotator: squash the whole image to the input size, with the model's own timm settings.

The image is not cropped, so that a box in fractions of the image is the same box in fractions of the label map's grid. The
centre crop of a typical validation transform would silently shift every label.
"""

from dataclasses import dataclass

from PIL import Image
from timm.data import resolve_model_data_config
from timm.data.transforms import str_to_pil_interp
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from relabel.models.preprocessing import normalise


@dataclass(frozen=True)
class Squash:
    """Turns an RGB image of any size into (3, S, T) uint8 when called; `normalise` does the rest on the device."""

    input_size: tuple[int, int]  # S rows, T columns of pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    @classmethod
    def of_model(cls, classifier: nn.Module, input_size: tuple[int, int] | None = None) -> "Squash":
        settings = resolve_model_data_config(classifier)
        rows, columns = input_size or settings["input_size"][-2:]
        return cls((rows, columns), tuple(settings["mean"]), tuple(settings["std"]), settings["interpolation"])

    def __call__(self, image: Image.Image) -> Tensor:
        rows, columns = self.input_size
        pixels: Tensor = pil_to_tensor(image.resize((columns, rows), str_to_pil_interp(self.interpolation)))
        return pixels

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, S, T) uint8 -> float32 on the same device, with the model's mean and standard deviation."""
        return normalise(images, self.mean, self.std)
