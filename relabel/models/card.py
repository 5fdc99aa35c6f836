"""The model card in a trained checkpoint: everything needed to use the weights again.

It is stored in the metadata of weights.safetensors and weights.pth, and in last.pt.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from relabel.models.preprocessing import Preprocessing
from relabel.models.weights import load_torch_file
from relabel.runtime.defaults import Loss
from relabel.runtime.errors import InputError, first_line


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What has to be known of trained weights to use them."""

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
        fields = lists_to_tuples(json.loads(text))
        fields["model_kwargs"] = lists_to_tuples(fields["model_kwargs"])
        preprocessing = Preprocessing(**lists_to_tuples(fields.pop("view")))
        return cls(**fields, preprocessing=preprocessing)


def lists_to_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone; timm's arguments are tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def find_card(path: Path) -> ModelCard | None:
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
        content = load_torch_file(path)
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
    card = find_card(path)
    if card is None:
        raise InputError(f"{path} does not say which model it is of; name it with {option}")
    return card
