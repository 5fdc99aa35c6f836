"""The checkpoints of a run: last.pt to resume from, and the result as weights.safetensors and weights.pth.

Both results are plain state dicts, which timm loads as they are (`checkpoint_path=...`), and torchvision too for ResNets
(`load_state_dict`). The model card is in their metadata.
"""

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from relabel.models.card import ModelCard
from relabel.models.weights import load_torch_file, odd_storage
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write
from relabel.runtime.typed import parse_json, typed
from train.run_dir.metrics import check_metrics

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
        write_checkpoint(path, with_sorted_metadata(safetensors.torch.save(tensors, {"format": "pt"} | metadata)))
        return
    modules: dict[str, dict[str, Any]] = dict(getattr(state_dict, "_metadata", {}))  # torch keeps layers' versions here
    modules[""] = modules.get("", {}) | metadata  # "" is the whole model
    tensors._metadata = modules  # type: ignore[attr-defined]
    save_checkpoint(path, tensors)


def with_sorted_metadata(content: bytes) -> bytes:
    """The bytes of a .safetensors file with its metadata in order: the library writes them in a random one.

    The file begins with the length of its header in 8 bytes, then the header: JSON, padded with spaces to a multiple of 8.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, content[end:]])


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint completely or not at all; the one it replaces stays until this one is on the disk.

    Raises:
        InputError: the disk is full or read-only; the last good checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_checkpoint(path, buffer.getvalue())


def read_last(path: Path) -> dict[str, Any]:
    """What TrainingState.save wrote.

    Raises:
        InputError: the file is damaged, or is not the state of a run.
    """
    content = load_torch_file(path)
    kinds: dict[str, Any] = {
        "step": int,
        "optimizer": dict[str, Any],
        "scaler": dict[str, Any],
        "state_dict": dict[str, Any],
    }
    try:
        for name, kind in kinds.items():
            if name not in content:
                raise ValueError(f"{name} is missing")
            typed(content[name], kind)
        seen = content.get("seen")
        if not isinstance(seen, Tensor) or odd_storage(seen) or seen.shape != (3,) or content["step"] < 0:
            raise ValueError("its counts are not those of a run")
        if (metrics := parse_json(typed(content.get("metrics", "null"), str))) is not None:
            check_metrics(metrics, "wall_s")
    except ValueError as error:
        raise InputError(
            f"{path} is not the checkpoint of a relabel run ({error}); delete it to start from the beginning"
        ) from error
    return content


def write_checkpoint(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except OSError as error:
        kept = f"{path} still holds the previous one" if path.exists() else "there is none yet"
        again = " (train: with --resume)" if (path.parent / LAST).exists() else ""
        raise InputError(f"cannot save a checkpoint: {error}; {kept}. Free disk space and run again{again}") from error
