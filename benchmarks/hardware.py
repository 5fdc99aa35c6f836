"""The first line of every benchmark: a ratio means little without the machine and the versions it was measured with."""

import os
import platform
import shutil
import subprocess
import sys

import timm
import torch
import torchvision

from relabel.runtime.machine import processor


def hardware(device: torch.device) -> str:
    """The device's processor, threads, versions, and the running command."""
    gpu = f" (driver {driver()}, CUDA {torch.version.cuda})" if device.type == "cuda" else ""
    return (
        f"{processor(device)}{gpu}, CPU cores: {os.cpu_count()}, threads: {torch.get_num_threads()};"
        f" Python {platform.python_version()}, torch {torch.__version__},"
        f" torchvision {torchvision.__version__}, timm {timm.__version__}; {' '.join(['python', *sys.orig_argv[1:]])}"
    )


def driver() -> str:
    """The version of the GPU's driver."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (subprocess.run(query, capture_output=True, text=True).stdout.splitlines() or ["unknown"])[0]
