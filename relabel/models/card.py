"""The model card in a trained checkpoint: everything needed to use the weights again.

It is stored in the metadata of weights.safetensors and weights.pth, and in last.pt.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from relabel.models.preprocessing import Preprocessing
from relabel.models.weights import check_checkpoint_file, load_torch_file
from relabel.runtime.defaults import Loss
from relabel.runtime.errors import InputError, first_line
from relabel.runtime.typed import from_fields, parse_json, typed


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is needed to use trained weights."""

    arch: str
    model_kwargs: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    loss: Loss = "ce"  # that its outputs were trained with: logits of a softmax, or of a sigmoid per class

    def to_json(self) -> str:
        """As it is stored; `preprocessing` is called "view" there."""
        fields = dataclasses.asdict(self)
        return json.dumps({"view" if name == "preprocessing" else name: value for name, value in fields.items()})

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Raises ValueError for anything that relabel does not write."""
        fields = typed(parse_json(text), dict[str, Any])
        if "view" in fields:
            fields["preprocessing"] = fields.pop("view")
        card = from_fields(cls, fields)
        preprocessing = card.preprocessing
        if not card.classes or preprocessing.size < 1 or not 0 < preprocessing.crop <= 1 or 0 in preprocessing.std:
            raise ValueError("its values are out of range")
        return dataclasses.replace(card, model_kwargs=lists_to_tuples(card.model_kwargs))


def lists_to_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has only lists; timm's arguments are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def find_card(path: Path) -> ModelCard | None:
    """The model card in a weights file or a last.pt; None if relabel did not write it.

    Raises:
        InputError: the file is missing, damaged, or contains more than weights.
    """
    if path.suffix == ".safetensors":
        check_checkpoint_file(path)
        try:
            with safe_open(path, "pt") as file:
                card = (file.metadata() or {}).get("card")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated or not a safetensors file ({first_line(error)})") from error
    else:
        content = load_torch_file(path)
        card = content.get("card", getattr(content, "_metadata", {}).get("", {}).get("card"))
    try:
        return ModelCard.from_json(card) if isinstance(card, str) else None
    except ValueError:  # another program's file, with its own kind of card
        return None


def check_same_model(card: ModelCard, path: Path, model: str, option: str) -> None:
    """Raise InputError if `model`, given as `option`, is another architecture than the checkpoint's; its tag may differ."""
    if model.split(".")[0] != card.arch.split(".")[0]:
        raise InputError(f"{option} {model}: {path} records that it is a checkpoint of {card.arch}; leave {option} out")


def read_card(path: Path, option: str) -> ModelCard:
    """The model card of a relabel checkpoint.

    Args:
        option: the option that names the model instead, for the message.
    Raises:
        InputError: the checkpoint has no model card.
    """
    card = find_card(path)
    if card is None:
        raise InputError(f"{path} does not record which model it is; name the model with {option}")
    return card
