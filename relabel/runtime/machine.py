"""The machine this runs on: its devices, its cores, and the versions of the packages that affect results."""

import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
import PIL
import torch

from relabel.runtime.errors import InputError, first_line


def processor(device: torch.device) -> str:
    """The model name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """This process's share of the usable CPU cores, at least 1: torchrun's processes on one machine divide them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int_variable("LOCAL_WORLD_SIZE", 1, at_least=1))


def int_variable(name: str, default: int, at_least: int = 0) -> int:
    """A number that torchrun hands on in an environment variable.

    Raises:
        InputError: the variable is set, but not to such a number.
    """
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) >= at_least):
        raise InputError(
            f"the environment variable {name} is {value!r}, expected at least {at_least}; unset it, or use torchrun"
        )
    return int(value)


def versions() -> dict[str, str]:
    """The versions of Python and of every package that affects the pixels, the model or the arithmetic."""
    import timm  # not at the top: reading a label set needs neither
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": np, "Pillow": PIL}
    found = {"python": platform.python_version()} | {name: str(package.__version__) for name, package in packages.items()}
    version = relabel_version()
    return found if version is None else found | {"relabel": version}


def relabel_version() -> str | None:
    """The installed version; None if relabel runs from a source folder without being installed."""
    try:
        return importlib.metadata.version("relabel")
    except importlib.metadata.PackageNotFoundError:
        return None


def choose_device(device: str | None) -> torch.device:
    """The named device; if None, CUDA if available, else the CPU.

    Raises:
        InputError: torch does not know that device, or it is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # else pinning memory would open a context on GPU 0 too
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not available: {first_line(error)}") from error
    return chosen
