"""Normalisation, bit for bit the definition in every memory layout."""

import pytest
import torch

from relabel.models.preprocessing import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_layout_and_type_is_normalised_by_the_definition(layout: torch.memory_format, dtype: torch.dtype) -> None:
    images = torch.randint(256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(dtype).to(memory_format=layout)
    before = images.clone()
    expected = (images.float() - torch.tensor(MEAN).view(3, 1, 1) * 255) / (torch.tensor(STD).view(3, 1, 1) * 255)
    result = normalise(images, MEAN, STD)
    assert result.dtype == torch.float32 and torch.equal(result, expected)
    assert result.is_contiguous(memory_format=layout) and torch.equal(images, before)
