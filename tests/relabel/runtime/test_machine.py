"""Devices and versions."""

import importlib.metadata

import pytest
import torch

from relabel.runtime.machine import choose_device, relabel_version, versions
from tests.conftest import refusal


def test_unknown_device_is_named_in_the_error() -> None:
    assert "--device abacus" in refusal(lambda: choose_device("abacus"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_missing_cuda_is_an_error_and_is_not_replaced_by_the_cpu() -> None:
    assert "--device cuda is not available" in refusal(lambda: choose_device("cuda"))
    assert choose_device(None) == torch.device("cpu")


def test_version_is_left_out_if_relabel_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"version of {name}")
    assert relabel_version() == versions()["relabel"] == "version of relabel"

    def not_installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert relabel_version() is None
    assert "relabel" not in versions()
