"""What a run leaves behind: last.pt to go on from, and the result as weights.safetensors and as weights.pth.

Both results are bare tensors by name, which timm takes as they are (`checkpoint_path=...`), and for ResNets torchvision too
(`load_state_dict`). What has to be known of them, the model card, is in their metadata. Of
pickles nothing but tensors is read.
"""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from relabel.models.card import ModelCard
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from train.tokens import WithTokens

LAST = "last.pt"
WEIGHTS = "weights.pth"
SAFETENSORS = "weights.safetensors"


def save_weights(path: Path, state_dict: dict[str, Tensor], card: ModelCard | None = None) -> None:
    """Write tensors by name as .safetensors or .pth, whichever the path says.

    Raises:
        InputError: the disk is full or read-only.
    """
    tensors = OrderedDict(  # safetensors takes neither channels-last tensors nor two that share memory
        (name, tensor.detach().cpu().clone(memory_format=torch.contiguous_format)) for name, tensor in state_dict.items()
    )
    said = {} if card is None else {"card": card.to_json()}
    if path.suffix == ".safetensors":
        write_checkpoint(path, safetensors.torch.save(tensors, {"format": "pt"} | said))
        return
    modules: dict[str, dict[str, Any]] = dict(getattr(state_dict, "_metadata", {}))  # where torch keeps layers' versions
    modules[""] = modules.get("", {}) | said  # "" is the whole model
    tensors._metadata = modules  # type: ignore[attr-defined]
    save_checkpoint(path, tensors)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the one it replaces stays until the new one is on the disk.

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
        kept = f"{path} still holds the one before it" if path.exists() else "there is none yet"
        again = " with --resume" if (path.parent / LAST).exists() else ""
        raise InputError(f"cannot save a checkpoint: {error}; {kept}. Free the disk and run again{again}") from error


def unwrap(model: nn.Module) -> nn.Module:
    """timm's model, without what training put around it."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, WithTokens)):
        model = model.module
    return model
