"""`relabel export`: write a classifier's weights as another library loads them.

torchvision-detection: the ResNet inside torchvision's detectors, `model.backbone.body`, which is the classifier without its
last layer. timm and torchvision have the same names for a ResNet's tensors. docs/transfer.md shows how to load the file.
"""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model, resnet

from relabel.models.card import read_card
from relabel.models.weights import read_weights
from relabel.runtime.errors import InputError
from relabel.runtime.files import check_output, output_place
from train.run_dir.checkpoint import save_weights

RESNETS = tuple(name for name in resnet.__all__ if name.islower())  # that torchvision's resnet_fpn_backbone accepts
HEAD = ("fc.weight", "fc.bias")


def export_backbone(checkpoint: Path, output: Path, arch: str | None = None, force: bool = False) -> str:
    """Write a ResNet without its last layer, as .safetensors or .pth. Returns one line about what was written.

    Args:
        checkpoint: a relabel checkpoint, or weights of the ResNet that `arch` names.
        force: replace any file; without it, only an earlier export with the same tensor names.
    Raises:
        InputError: torchvision has no such ResNet, the weights are of another arch, or the output has another suffix.
    """
    place = output_place(output)
    if place.suffix not in (".safetensors", ".pth"):
        raise InputError(f"{output}: expected a name that ends in .safetensors or .pth")
    if arch is None:
        arch = read_card(checkpoint, "--arch").arch
    name = arch.split(".")[0]  # timm's tag says which weights, not which layers
    if name not in RESNETS:
        raise InputError(
            f"{checkpoint} is a checkpoint of {arch}; torchvision builds detectors only on {', '.join(RESNETS)}"
        )
    body = {key: tensor for key, tensor in read_weights(checkpoint).items() if key not in HEAD}
    with torch.device("meta"):  # only names and shapes are needed
        expected = {key: tensor for key, tensor in get_model(name, weights=None).state_dict().items() if key not in HEAD}
    mismatched = [
        key
        for key in expected.keys() | body.keys()
        if key not in body or key not in expected or body[key].shape != expected[key].shape
    ]
    if mismatched:
        raise InputError(
            f"{checkpoint} is not a checkpoint of torchvision's {name}: {len(mismatched)} tensors are missing, unknown or of"
            f" another shape (such as {', '.join(sorted(mismatched)[:3])})"
        )
    check_output(output, lambda file: holds(file, body), force)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_weights(place, body)
    return f"{output}: {len(body)} tensors of {name}"


def holds(file: Path, body: dict[str, Tensor]) -> bool:
    """Whether a file has exactly the tensor names of `body`, as an earlier export of such a model has."""
    try:
        return read_weights(file).keys() == body.keys()
    except InputError:
        return False
