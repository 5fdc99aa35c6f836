"""Backbones for torchvision's detectors, loaded by the code in docs/transfer.md, and a training step on COCO-format data."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from relabel.models.card import ModelCard
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.errors import InputError
from tests.conftest import REPOSITORY, Relabel
from train.export import export_backbone
from train.run_dir import checkpoint

pytestmark = pytest.mark.slow

DOCUMENT = (REPOSITORY / "docs" / "transfer.md").read_text()
AS_FROM_IMAGENET, BY_BUILDERS, STEP = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
PREPROCESSING = Preprocessing(224, 0.875, "bilinear", (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's weights.safetensors: a ResNet-50 of 37 classes with random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    classes = tuple(map(str, range(37)))
    state = timm.create_model("resnet50", num_classes=37).state_dict()
    checkpoint.save_weights(folder / "weights.safetensors", state, ModelCard("resnet50.a1_in1k", {}, classes, PREPROCESSING))
    return folder


def write_coco(root: Path) -> Path:
    """Two images of different sizes with a rectangle and a triangle, and instances.json in COCO's format."""
    rng = np.random.default_rng(0)
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "a"}, {"id": 90, "name": "b"}]}
    for number, (columns, rows) in enumerate([(96, 64), (64, 80)], start=1):
        image = Image.fromarray(rng.integers(0, 90, size=(rows, columns, 3)).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for category, polygon in ((7, [8, 10, 40, 10, 40, 50, 8, 50]), (90, [30, 12, 60, 40, 22, 60])):
            draw.polygon(polygon, fill=(200, category, 30))
            x0, y0, x1, y1 = min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],  # x, y, width, height
                    "area": (x1 - x0) * (y1 - y0),
                    "segmentation": [polygon],
                    "iscrowd": 0,
                }
            )
        name = f"{number:012d}.jpg"
        image.save(root / name)
        coco["images"].append({"id": number, "file_name": name, "width": columns, "height": rows})
    (root / "instances.json").write_text(json.dumps(coco))
    return root


def read_coco(root: Path) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets as torchvision's detectors take them."""
    coco = json.loads((root / "instances.json").read_text())
    images, targets = [], []
    for entry in coco["images"]:
        images.append(pil_to_tensor(Image.open(root / entry["file_name"])).float() / 255)
        objects = [a for a in coco["annotations"] if a["image_id"] == entry["id"]]
        masks = []
        for a in objects:
            mask = Image.new("1", (entry["width"], entry["height"]))
            ImageDraw.Draw(mask).polygon(a["segmentation"][0], fill=1)
            masks.append(torch.from_numpy(np.array(mask)).byte())
        x, y, width, height = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).unbind(1)
        labels = torch.tensor([a["category_id"] for a in objects])
        boxes = torch.stack([x, y, x + width, y + height], dim=1)
        targets.append({"boxes": boxes, "labels": labels, "masks": torch.stack(masks)})
    return images, targets


@pytest.fixture(scope="module")
def backbone(run: Path, relabel_here: Relabel) -> Path:
    exported = run / "r50-backbone.safetensors"
    done = relabel_here("export", run / "weights.safetensors", exported, "--to", "torchvision-detection")
    assert done.returncode == 0 and "318 tensors of resnet50" in done.stdout, done.stderr
    return exported


def detectors_of(lines: str, backbone: Path) -> dict[str, Any]:
    """The detectors that the document's code makes, checked to have the classifier's own tensors in their backbones."""
    names: dict[str, Any] = {}
    exec(lines.replace(backbone.name, str(backbone)), names)
    classifier = timm.create_model(
        "resnet50", num_classes=37, checkpoint_path=str(backbone.with_name("weights.safetensors"))
    )
    expected = classifier.state_dict()
    detectors: dict[str, Any] = {kind: names[kind] for kind in ("faster_rcnn", "mask_rcnn")}
    for detector in detectors.values():
        body = detector.backbone.body.state_dict()
        assert len([name for name in body if "num_batches" not in name]) == 265
        assert all(torch.equal(tensor, expected[name]) for name, tensor in body.items())
    return detectors


@pytest.mark.slow
def test_documented_code_loads_the_backbone_into_both_detectors_and_they_train(backbone: Path, tmp_path: Path) -> None:
    images, targets = read_coco(write_coco(tmp_path))
    for kind, detector in detectors_of(AS_FROM_IMAGENET, backbone).items():
        torch.manual_seed(0)
        detector.transform.min_size, detector.transform.max_size = (64,), 96  # seconds instead of minutes
        before = {name: tensor.clone() for name, tensor in detector.backbone.body.state_dict().items()}
        names: dict[str, Any] = {"faster_rcnn": detector}
        exec(STEP, names)
        losses = names["training_step"](detector, names["optimizer"], images, targets)
        assert all(loss.isfinite() for loss in losses.values())
        assert ("loss_mask" in losses) == (kind == "mask_rcnn")
        after = detector.backbone.body.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert "layer4.0.downsample.0.weight" in changed  # the other path starts with a last norm of zero
        assert not [name for name in changed if "bn" in name or name.startswith(("conv1", "layer1"))], "documented as frozen"


@pytest.mark.slow
def test_documented_builders_load_the_backbone_into_both_detectors_with_trainable_batch_norm(backbone: Path) -> None:
    for detector in detectors_of(BY_BUILDERS, backbone).values():
        assert isinstance(detector.backbone.body.bn1, nn.BatchNorm2d)
        assert all(parameter.requires_grad for parameter in detector.backbone.body.parameters())


@pytest.mark.slow
def test_exported_pth_and_safetensors_have_the_same_tensors(run: Path, tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors"):
        export_backbone(run / "weights.safetensors", tmp_path / name)
    pth, safetensors = torch.load(tmp_path / "a.pth", weights_only=True), load_file(tmp_path / "a.safetensors")
    assert pth.keys() == safetensors.keys() and all(torch.equal(pth[name], safetensors[name]) for name in pth)


def test_weights_that_torchvision_cannot_load_are_rejected(run: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    weights, output = run / "weights.safetensors", tmp_path / "out.pth"
    with pytest.raises(InputError, match=r"does not record which model it is; name the model with --arch"):
        export_backbone(tiny_checkpoint, output)
    with pytest.raises(InputError, match=r"is a checkpoint of resnet10t; torchvision builds detectors only on resnet18, "):
        export_backbone(tiny_checkpoint, output, "resnet10t")
    with pytest.raises(InputError, match=r"is not a checkpoint of torchvision's resnet34: 133 tensors .*\(such as layer1"):
        export_backbone(weights, output, "resnet34")
    with pytest.raises(InputError, match=r"expected a name that ends in \.safetensors or \.pth"):
        export_backbone(weights, tmp_path / "out.bin")
    assert not list(tmp_path.iterdir())


def test_export_to_an_unknown_library_is_rejected(run: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    done = relabel_here("export", run / "weights.safetensors", tmp_path / "out.pth", "--to", "detectron2")
    assert done.returncode == 2 and "Invalid value for '--to'" in done.stderr and "'torchvision-detection'" in done.stderr


@pytest.mark.slow
def test_export_replaces_an_earlier_export_but_no_other_weights(run: Path, tmp_path: Path, relabel_here: Relabel) -> None:
    weights = run / "weights.safetensors"
    before = weights.read_bytes()
    for output in (weights, tmp_path / "link.safetensors"):
        if output != weights:
            output.symlink_to(weights)
        done = relabel_here("export", weights, output, "--to", "torchvision-detection")
        assert done.returncode == 1 and f"{output} exists and is not an earlier result" in done.stderr
    assert weights.read_bytes() == before
    for _ in range(2):
        export_backbone(weights, tmp_path / "out.safetensors")
    (tmp_path / "other.pth").write_text("precious")
    with pytest.raises(InputError, match=r"other\.pth exists and is not an earlier result"):
        export_backbone(weights, tmp_path / "other.pth")
    export_backbone(weights, tmp_path / "other.pth", force=True)
    assert len(torch.load(tmp_path / "other.pth", weights_only=True)) == 318
