"""A GPU for machines that have none: torch's FakeTensorMode runs code on CUDA tensors without data.

Shapes, dtypes and devices are checked as on a GPU, and whatever has to fetch a number from the device raises. Not to be had
without a driver: backward, pinned memory, and what kernels compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from relabel.models.preprocessing import per_channel
from train.augment import components

WRONG_DEVICE = "two (different )?devices|on the same device"  # torch's errors about tensors on different ones
NUMBER_IS_FETCHED = (DataDependentOutputException, DynamicOutputShapeException)  # the second: to know a shape


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Within it, CUDA tensors are fake, and tensors and models made before it can be moved there with `.to(device)`.

    Models are made before it: timm draws their initial weights on the host. A moved model stays fake.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # else autocast turns itself off
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        forget_constants()
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield torch.device("cuda")
        finally:
            forget_constants()


def forget_constants() -> None:
    """Constants that are cached on a device: a fake one must not meet a real one."""
    for cached in (per_channel, components):
        cached.cache_clear()
