"""Centre crops for evaluation, by timm's transform without the normalisation.

Decoding processes hand over uint8, a quarter of the bytes of floats; the device normalises.
"""

import math
from collections.abc import Sequence

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from relabel.images.image_set import ImageSet
from relabel.models.preprocessing import Preprocessing

LONGEST_OF_MIDDLE = 16  # times the shorter side
MOST_PIXELS = 2 * 89_478_485  # of an image when it is resized: Pillow decodes no larger ones


class CentreCrops(Dataset[tuple[Tensor, int]]):
    """((3, size, size) uint8, index) of the images at `indices` of an image set."""

    def __init__(self, image_set: ImageSet, preprocessing: Preprocessing, indices: Sequence[int]) -> None:
        self.image_set, self.indices = image_set, indices
        self.shorter_side = math.floor(preprocessing.size / preprocessing.crop)  # after resizing
        self.crops = preprocessing.crop_mode not in ("squash", "border")
        self.transform = create_transform(
            (3, preprocessing.size, preprocessing.size),
            is_training=False,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,  # fills the border that crop_mode "border" adds
            crop_pct=preprocessing.crop,
            crop_mode=preprocessing.crop_mode,
            normalize=False,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        index = self.indices[i]
        image = self.image_set.read(index)
        if self.crops and self.shorter_side**2 * max(image.size) / min(image.size) > MOST_PIXELS:
            image = middle(image)
        return self.transform(image), index


def middle(image: Image.Image) -> Image.Image:
    """The middle of a very long image, from which its centre crop is taken: resized whole, 1 x 65,000 pixels take 15 GB."""
    width, height = (min(side, LONGEST_OF_MIDDLE * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
