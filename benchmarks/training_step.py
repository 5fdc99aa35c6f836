"""A training step towards label maps beside the same step towards the folder's class, and what pooling a batch takes.

The two steps are the loop's own code, with one model and one batch resident on the device, in turn. Goal: with label maps a
step takes at most 0.5 % longer, which is what the paper says of it; FKD's authors measured 31.5 % for the reference's code
(762 s an epoch against 579 s; Shen and Xing 2022). The label work by itself is printed beside, since two medians of a step
differ by chance by more than it takes.

Pooling and softmax of a batch of 1024 have to read the batch's maps and to write its targets, once; that many bytes at the
speed of a copy on the same device are the limit to compare with.

Shapes: B crops of a batch, k classes kept per cell, C classes, H rows and W columns of the label map.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

from benchmarks.generated_maps import GRID, NUM_CLASSES, TOPK, generated_maps, imagenet_keys, write_label_set
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from relabel.labels.boxes import random_boxes
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.precision import dtype_name
from train.augment import DRAWS, MIRROR
from train.crops import Crops
from train.optimizer import create_optimizer
from train.recipe import Recipe, load_recipe
from train.step import TrainingStep
from train.supervision import LabelMapTargets, Supervision

IMAGES = 8192  # of the label set
POOLED = 1024  # crops
MODEL = "resnet50"


@dataclass(frozen=True)
class Load:
    """A batch of crops, steps that are timed together, rounds, and what the forward pass computes in."""

    batch: int
    steps: int
    rounds: int
    autocast_dtype: torch.dtype | None
    copied: int  # bytes of the copy that tells the device's bandwidth


def load_for(device: torch.device) -> Load:
    if device.type == "cuda":
        return Load(batch=256, steps=10, rounds=15, autocast_dtype=torch.bfloat16, copied=2**30)
    return Load(batch=4, steps=1, rounds=40, autocast_dtype=None, copied=2**28)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    print(hardware(device))
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder, "labels")
        write_label_set(labels, imagenet_keys(IMAGES), generated_maps(IMAGES, torch.Generator().manual_seed(0)), NUM_CLASSES)
        compare_steps(load_for(device), LabelStore.open(labels).to(device), device)
    pool(load_for(device), device)


def training_step(
    model: str, recipe: Recipe, store: LabelStore, autocast_dtype: torch.dtype | None, device: torch.device
) -> TrainingStep:
    """The loop's step for a new model, towards the store's maps."""
    torch.manual_seed(0)
    classes = store.manifest.num_classes
    student = timm.create_model(model, num_classes=classes).to(device).to(memory_format=torch.channels_last).train()
    preprocessing = Preprocessing(
        recipe.eval_size, recipe.eval_crop, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    maps = LabelMapTargets(store, torch.arange(len(store), device=device), recipe)
    targets = Supervision(recipe, classes, maps)
    return TrainingStep(
        student, create_optimizer(student, recipe, device), scaler, targets, preprocessing, recipe, autocast_dtype
    )


def resident_crops(batch: int, side: int, images: int, classes: int, device: torch.device) -> Crops:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    indices, targets = (torch.randint(n, (batch,), generator=generator) for n in (images, classes))
    draws = torch.rand(batch, DRAWS, generator=generator)
    crops = Crops(pixels, random_boxes(batch, generator), draws[:, MIRROR] < 0.5, indices, targets, draws)
    return (crops.pin_memory() if device.type == "cuda" else crops).to(device)


def compare_steps(given: Load, store: LabelStore, device: torch.device) -> None:
    recipe = load_recipe("relabel", ["lr=1e-3"])  # random targets: at the recipe's rate the loss may grow
    relabel = training_step(MODEL, recipe, store, given.autocast_dtype, device)
    single = replace(relabel, targets=Supervision(relabel.recipe, NUM_CLASSES))  # the same but for the target
    assert relabel.targets.maps is not None
    targets = relabel.targets.maps
    side = relabel.recipe.image_size
    crops = resident_crops(given.batch, side, len(store), NUM_CLASSES, device)

    def repeat(work: Callable[[], object]) -> Callable[[], None]:
        def repeated() -> None:
            for _ in range(given.steps):
                work()

        return repeated

    arms = [
        repeat(lambda: relabel(crops, 0, 0)),
        repeat(lambda: single(crops, 0, 0)),
        repeat(lambda: targets.of_crops(crops, targets.maps(crops), None)),
    ]
    for arm in arms:  # the first at a batch size pays for choosing kernels
        arm()
    relabel_s, single_s, labels_s = median_seconds(device, given.rounds, *arms)
    print(
        f"training step: {MODEL}, {side}x{side}, {dtype_name(given.autocast_dtype)}, batch {given.batch}; label maps of"
        f" k {TOPK}, C {NUM_CLASSES}, {GRID[0]}x{GRID[1]}; median of {given.rounds}, interleaved"
    )
    for name, seconds, share in (
        ("towards the folder's class", single_s, ""),
        ("towards label maps", relabel_s, f"{100 * (relabel_s / single_s - 1):+.2f} %"),
        ("gather, pool and softmax alone", labels_s, f"{100 * labels_s / single_s:+.2f} %"),
    ):
        print(f"  {name:<32}{1000 * seconds / given.steps:9.2f} ms   {share}".rstrip())


def pool(load_recipe: Load, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = generated_maps(POOLED, generator).to(device)
    boxes = random_boxes(POOLED, generator).to(device)
    source = torch.zeros(load_recipe.copied, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    target = label_pool(maps, boxes, NUM_CLASSES).softmax(1)
    pool_s, copy_s = median_seconds(
        device, 30, lambda: label_pool(maps, boxes, NUM_CLASSES).softmax(1), lambda: copy.copy_(source)
    )
    moved = sum(t.nbytes for t in (maps.scores, maps.classes, maps.tail, boxes, target))
    bandwidth = 2 * load_recipe.copied / copy_s  # read and written
    print(
        f"label pooling and softmax: B {POOLED}, k {TOPK}, C {NUM_CLASSES}, {GRID[0]}x{GRID[1]}; median of 30, interleaved"
    )
    print(f"  {'taken':<32}{1000 * pool_s:9.3f} ms")
    limit = f"{moved / 1e6:.1f} MB at the {bandwidth / 1e9:.0f} GB/s of a copy"
    print(f"  {'limit':<32}{1000 * moved / bandwidth:9.3f} ms   {limit}")


if __name__ == "__main__":
    main()
