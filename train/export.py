"""`relabel export`: a classifier's weights as another library's model takes them.

torchvision-detection: the ResNet inside torchvision's detectors, `model.backbone.body`, which is the classifier without its
last layer. timm and torchvision name a ResNet's tensors alike. docs/transfer.md shows what to do with the file.
"""

from pathlib import Path

import torch
from torchvision.models import get_model, resnet

from relabel.models.card import read_card
from relabel.models.weights import read_weights
from relabel.runtime.errors import InputError
from train.run_dir.checkpoint import save_weights

RESNETS = tuple(name for name in resnet.__all__ if name.islower())  # what torchvision's resnet_fpn_backbone builds on
HEAD = ("fc.weight", "fc.bias")


def export_backbone(checkpoint: Path, output: Path, arch: str | None = None) -> str:
    """Write a ResNet without its last layer, .safetensors or .pth; returns one line on what was written.

    Args:
        checkpoint: weights of a run of ours, or of any ResNet that `arch` names.
    Raises:
        InputError: an arch that torchvision lacks, weights of another one, or an output that is neither kind of file.
    """
    if output.suffix not in (".safetensors", ".pth"):
        raise InputError(f"{output}: expected a name that ends in .safetensors or .pth")
    if arch is None:
        arch = read_card(checkpoint, "--arch").arch
    name = arch.split(".")[0]  # timm's tag says which weights, not which layers
    if name not in RESNETS:
        raise InputError(f"{checkpoint} is of {arch}; torchvision builds detectors on {', '.join(RESNETS)} alone")
    body = {key: tensor for key, tensor in read_weights(checkpoint).items() if key not in HEAD}
    with torch.device("meta"):  # names and shapes alone
        wanted = {key: tensor for key, tensor in get_model(name, weights=None).state_dict().items() if key not in HEAD}
    odd = [
        key
        for key in wanted.keys() | body.keys()
        if key not in body or key not in wanted or body[key].shape != wanted[key].shape
    ]
    if odd:
        raise InputError(
            f"{checkpoint} is no checkpoint of torchvision's {name}: {len(odd)} tensors are missing, unknown or of another"
            f" shape (such as {', '.join(sorted(odd)[:3])})"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    save_weights(output, body)
    return f"{output}: {len(body)} tensors of {name}"
