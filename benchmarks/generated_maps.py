"""Label maps similar to an annotator's: a dozen classes per image, each strong in one area and fading around it. And image
files to go with them.

Shapes: N images, C classes, k classes kept per cell, H rows and W columns of the label map, M classes present in an image.
"""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from PIL import Image
from torch.nn.functional import interpolate

from relabel.images.image_set import keys_digest
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import write_shard

NUM_CLASSES = 1000
TOPK = 5
GRID = (15, 15)  # as tf_efficientnet_l2 at 475 pixels
CLASSES_PRESENT = 12
SHARD_SIZE = 4096
LINKS = 40_000  # to a file; ext4 allows 65,000
COARSE_GRID = (
    4,
    4,
)  # logits are drawn here and interpolated, because neighbouring cells of a real map see mostly the same pixels


def generated_maps(count: int, generator: torch.Generator) -> LabelMaps:
    """`count` label maps in the types in which they are stored: float16 scores and tail, uint16 classes."""
    present = torch.rand(count, NUM_CLASSES, generator=generator).topk(CLASSES_PRESENT).indices  # (N, M)
    coarse = 6 + 3 * torch.randn(count, CLASSES_PRESENT + 1, *COARSE_GRID, generator=generator)
    logits = interpolate(coarse, GRID, mode="bicubic")  # (N, M + 1, H, W); the last one becomes the tail
    scores, places = logits[:, :-1].topk(TOPK, dim=1)  # (N, k, H, W) twice
    classes = present.gather(1, places.flatten(1)).view_as(places)
    return LabelMaps(scores.half(), classes.to(torch.uint16), (logits[:, -1] / 10 - 1).half())


def imagenet_keys(images: int) -> list[str]:
    """Sorted keys that look like ImageNet's."""
    return sorted(f"n{number // 1300:08}/n{number // 1300:08}_{number}.JPEG" for number in range(images))


def link_images(folder: Path, keys: Sequence[str], picture: Image.Image) -> None:
    """A JPEG for every key in folder/images, which has all class folders: hard links to a few files beside it."""
    for number in range(NUM_CLASSES):
        (folder / "images" / f"n{number:08}").mkdir(parents=True)
    for number, key in enumerate(keys):
        original = folder / f"{number // LINKS}.JPEG"
        if number % LINKS == 0:
            picture.save(original)
        (folder / "images" / key).hardlink_to(original)


def write_label_set(labels: Path, keys: Sequence[str], maps: LabelMaps, num_classes: int = NUM_CLASSES) -> None:
    """Write a label set of these images with the project's own writer; the maps repeat if there are fewer of them."""
    manifest = Manifest(
        model="generated",
        model_kwargs={},
        weights="none",
        weights_sha256=None,
        num_classes=num_classes,
        kind="exact",
        input_size=(475, 475),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        precision="float32",
        topk=TOPK,
        tail="mean",
        grid=GRID,
        image_count=len(keys),
        image_digest=keys_digest(keys),
        shard_size=SHARD_SIZE,
        timm_version=timm.__version__,
        torch_version=torch.__version__,
    )
    labels.mkdir(parents=True)
    manifest.save(labels)
    for shard in range(manifest.shard_count):
        shard_keys = keys[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]
        rows = (torch.arange(len(shard_keys)) + shard * SHARD_SIZE) % len(maps)
        part = LabelMaps(maps.scores[rows], maps.classes[rows], maps.tail[rows])
        append_shard_line(labels, write_shard(labels, shard, shard_keys, part, manifest))
