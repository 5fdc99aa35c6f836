"""The first line of every benchmark: a ratio means little without the machine and the versions it was measured with."""

import os
import sys

import timm
import torch
import torchvision

from relabel.runtime.machine import processor


def hardware(device: torch.device) -> str:
    """The device's processor, threads, versions, and the running command."""
    return (
        f"{processor(device)}, CPU cores: {os.cpu_count()}, threads: {torch.get_num_threads()}; torch {torch.__version__},"
        f" torchvision {torchvision.__version__}, timm {timm.__version__}; {' '.join(['python', *sys.orig_argv[1:]])}"
    )
