"""What a run leaves behind: last.pt to go on from, and the result as weights.safetensors and as weights.pth.

Both results are bare tensors by name, which timm takes as they are (`checkpoint_path=...`), and for ResNets torchvision too
(`load_state_dict`). What has to be known of them, the model card, is in their metadata. Of
pickles nothing but tensors is read.
"""

import dataclasses
import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import InputError, first_line
from pipeline.manifest import write_whole
from pipeline.weights import load_harmless, refuse_damaged, why_not_loaded
from train.evaluation.predictions import Loss
from train.evaluation.view import View
from train.tokens import WithTokens

LAST = "last.pt"
WEIGHTS = "weights.pth"
SAFETENSORS = "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What has to be known of trained weights to use them."""

    arch: str
    model_kwargs: dict[str, Any]
    classes: tuple[str, ...]
    view: View
    loss: Loss = "ce"  # that its outputs were trained with: logits of a softmax, or of a sigmoid per class

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        card = tuples(json.loads(text))
        return cls(**card | {"model_kwargs": tuples(card["model_kwargs"]), "view": View(**tuples(card["view"]))})


def tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone; timm's arguments are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


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
        write(path, safetensors.torch.save(tensors, {"format": "pt"} | said))
        return
    modules: dict[str, dict[str, Any]] = dict(getattr(state_dict, "_metadata", {}))  # where torch keeps layers' versions
    modules[""] = modules.get("", {}) | said  # "" is the whole model
    tensors._metadata = modules  # type: ignore[attr-defined]
    save(path, tensors)


def card_of(path: Path) -> ModelCard | None:
    """What a weights file or a last.pt says of its model; None where it is not one of ours.

    Raises:
        InputError: missing, damaged, or more than weights.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                card = (file.metadata() or {}).get("card")
        except FileNotFoundError as error:
            raise InputError(f"checkpoint {path} does not exist") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is cut short, or no safetensors file ({first_line(error)})") from error
    else:
        content = load(path)
        card = content.get("card", getattr(content, "_metadata", {}).get("", {}).get("card"))
    try:
        return ModelCard.from_json(card) if isinstance(card, str) else None
    except (ValueError, KeyError, TypeError, AttributeError):  # a card of another kind, in somebody else's file
        return None


def read_card(path: Path, option: str) -> ModelCard:
    """The card of a run of ours.

    Raises:
        InputError: there is none; `option` is what names the model instead.
    """
    card = card_of(path)
    if card is None:
        raise InputError(f"{path} does not say which model it is of; name it with {option}")
    return card


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the one it replaces stays until the new one is on the disk.

    Raises:
        InputError: the disk is full or read-only; the last good checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        kept = f"{path} still holds the one before it" if path.exists() else "there is none yet"
        again = " with --resume" if (path.parent / LAST).exists() else ""
        raise InputError(f"cannot save a checkpoint: {error}; {kept}. Free the disk and run again{again}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours.

    Raises:
        InputError: missing, damaged, or not written by relabel.
    """
    refuse_damaged(path)
    try:
        content = load_harmless(path)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged, or no checkpoint of weights alone ({why_not_loaded(path, error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def bare(model: nn.Module) -> nn.Module:
    """timm's model, without what training put around it."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, WithTokens)):
        model = model.module
    return model
