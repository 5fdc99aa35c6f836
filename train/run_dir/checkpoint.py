"""The checkpoints of a run: last.pt to resume from, and the result as weights.safetensors and weights.pth.

Both results are plain state dicts, which timm loads as they are (`checkpoint_path=...`), and torchvision too for ResNets
(`load_state_dict`). The model card is in their metadata.
"""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from relabel.models.card import ModelCard
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write

LAST = "last.pt"
WEIGHTS = "weights.pth"
SAFETENSORS = "weights.safetensors"


def save_weights(path: Path, state_dict: dict[str, Tensor], card: ModelCard | None = None) -> None:
    """Write a state dict as .safetensors or .pth, depending on the suffix of the path.

    Raises:
        InputError: the disk is full or read-only.
    """
    tensors = OrderedDict(  # safetensors takes neither channels-last tensors nor two that share memory
        (name, tensor.detach().cpu().clone(memory_format=torch.contiguous_format)) for name, tensor in state_dict.items()
    )
    metadata = {} if card is None else {"card": card.to_json()}
    if path.suffix == ".safetensors":
        write_checkpoint(path, safetensors.torch.save(tensors, {"format": "pt"} | metadata))
        return
    modules: dict[str, dict[str, Any]] = dict(getattr(state_dict, "_metadata", {}))  # torch keeps layers' versions here
    modules[""] = modules.get("", {}) | metadata  # "" is the whole model
    tensors._metadata = modules  # type: ignore[attr-defined]
    save_checkpoint(path, tensors)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint completely or not at all; the one it replaces stays until this one is on the disk.

    Raises:
        InputError: the disk is full or read-only; the last good checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_checkpoint(path, buffer.getvalue())


def write_checkpoint(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except OSError as error:
        kept = f"{path} still holds the previous one" if path.exists() else "there is none yet"
        again = " (train: with --resume)" if (path.parent / LAST).exists() else ""
        raise InputError(f"cannot save a checkpoint: {error}; {kept}. Free disk space and run again{again}") from error
