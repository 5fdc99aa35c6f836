"""What a run leaves behind: last.pt to go on from, and weights.pth, the result.

Both are read with weights_only=True: plain tensors, numbers and strings. `timm.create_model(arch, checkpoint_path=...)`
takes either, since their weights lie under "state_dict".
"""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.classifier import first_line, refuse_damaged
from pipeline.errors import InputError
from pipeline.manifest import write_whole
from train.evaluate import View

LAST = "last.pt"
WEIGHTS = "weights.pth"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What has to be known of trained weights to use them."""

    arch: str
    model_kwargs: dict[str, Any]
    classes: tuple[str, ...]
    view: View

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, card: dict[str, Any]) -> "ModelCard":
        return cls(card["arch"], card["model_kwargs"], tuple(card["classes"]), View(**card["view"]))


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the one it replaces stays until the new one is on the disk.

    Raises:
        InputError: the disk is full or read-only; the last good checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        kept = f"{path} still holds the one before it" if path.exists() else "there is none yet"
        raise InputError(f"cannot save a checkpoint: {error}; {kept}. Free the disk and rerun with --resume") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours.

    Raises:
        InputError: missing, damaged, or not written by relabel.
    """
    refuse_damaged(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged, or no checkpoint of weights alone ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def bare(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel around it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
