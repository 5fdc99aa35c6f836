"""The machine that this runs on: its processor, its cores, and the versions of what computes."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
import PIL
import torch

from pipeline.errors import InputError


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


def decoding_workers(asked: int | None) -> int:
    """The number of decoding processes asked for, or this process's share of the machine's cores.

    Raises:
        InputError: a negative number.
    """
    if asked is not None and asked < 0:
        raise InputError(f"--workers {asked}: expected at least 0")
    return cores() if asked is None else asked


def versions() -> dict[str, str]:
    """Of Python and of every package that has a say in the pixels, the model or the arithmetic."""
    import timm  # not at the top: reading a label set needs neither
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "timm": timm, "numpy": np, "Pillow": PIL}
    found = {"python": platform.python_version()} | {name: str(package.__version__) for name, package in packages.items()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from a folder, not installed
        found["relabel"] = importlib.metadata.version("relabel")
    return found
