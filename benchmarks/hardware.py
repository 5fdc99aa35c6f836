"""The line that every benchmark opens with: a ratio means little without the machine and the versions it was seen on."""

import os
import platform
import sys
from pathlib import Path

import timm
import torch
import torchvision


def hardware(device: torch.device) -> str:
    """The processor that `device` is, threads, versions, and the command that is running."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return (
        f"{processor}, CPU cores: {os.cpu_count()}, threads: {torch.get_num_threads()}; torch {torch.__version__},"
        f" torchvision {torchvision.__version__}, timm {timm.__version__}; {' '.join(['python', *sys.orig_argv[1:]])}"
    )


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
