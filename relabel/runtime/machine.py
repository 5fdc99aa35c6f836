"""The machine this runs on: its devices, its cores, and the versions of the packages that affect results."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
import PIL
import torch

from relabel.runtime.errors import InputError, first_line


def processor(device: torch.device) -> str:
    """The name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """This process's share of the cores that it and its neighbours of torchrun may use; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def versions() -> dict[str, str]:
    """Of Python and of every package that has a say in the pixels, the model or the arithmetic."""
    import timm  # not at the top: reading a label set needs neither
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": np, "Pillow": PIL}
    found = {"python": platform.python_version()} | {name: str(package.__version__) for name, package in packages.items()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a folder, not installed
        found["relabel"] = importlib.metadata.version("relabel")
    return found


def choose_device(device: str | None) -> torch.device:
    """The device named, or CUDA where there is one, else the CPU.

    Raises:
        InputError: torch does not know or does not see that device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # else pinning memory would open a context on the first one too
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not available: {first_line(error)}") from error
    return chosen
