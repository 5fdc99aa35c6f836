"""Centre crops for evaluation, by timm's transform without the normalisation.

Decoding processes hand over uint8, a quarter of the bytes of floats; the device normalises.
"""

from collections.abc import Sequence

from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from relabel.images.image_set import ImageSet
from relabel.models.preprocessing import Preprocessing


class CentreCrops(Dataset[tuple[Tensor, int]]):
    """((3, size, size) uint8, index) of the images at `indices` of an image set."""

    def __init__(self, image_set: ImageSet, preprocessing: Preprocessing, indices: Sequence[int]) -> None:
        self.image_set, self.indices = image_set, indices
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
        return self.transform(self.image_set.read(index)), index
