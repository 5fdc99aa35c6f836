"""The training loop, from JPEGs on disk to new weights, beside its two halves and beside the same training by timm's parts.

    model alone     the loop's own step on one batch that is resident on the device
    loader alone    the loop's own crops, from decoding to pinned batches, and nobody to wait for
    the loop        `relabel train` as it is; the slower half binds it. On a CPU both halves share the cores
    timm            its data set, loader, transforms, model, optimiser and the step of its train.py (which no package holds),
                    at its settings without colour jitter

All of them train by the recipe `relabel` without colour jitter and lighting, which timm has not in this form: the work is
the same, but for the target and for the JPEGs that the loop decodes at a reduced size.

Of the loop and of timm's, the second of two epochs counts: the first pays for starting the workers and choosing kernels.
The arms take turns at being first, and of each its fastest round counts: whatever else a machine does can only slow it
down, and in a round of several seconds it does so by more than the arms differ. The loop's workers begin to decode the
second epoch while the first is being saved, which is not timed; timm's begin within the time. The images are generated,
500x375 pixels, as ImageNet's mostly are; what is read was written just before, so no disk is measured.
"""

import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader

from benchmarks.annotate import CLASSES, write_pictures
from benchmarks.generated_maps import generated_maps, write_label_set
from benchmarks.hardware import hardware
from benchmarks.interleaved import wait_for
from benchmarks.training_step import resident_crops, training_step
from relabel.images.image_set import ImageSet
from relabel.labels.store import LabelStore
from relabel.runtime.precision import autocast, dtype_name
from relabel.runtime.workers import init_worker
from train.crops import RandomCrops, TrainingBatches, collate
from train.loop import train
from train.recipe import Recipe, load_recipe
from train.run_dir.metrics import read_metrics

ROUNDS = 9


@dataclass(frozen=True)
class Load:
    """A model, and so many steps of such a batch of crops in an epoch; their side in pixels."""

    model: str
    side: int
    batch: int
    steps: int
    workers: int
    autocast_dtype: torch.dtype | None


def load_for(device: torch.device) -> Load:
    workers = min(16, os.cpu_count() or 1)
    if device.type == "cuda":
        return Load("resnet50", 224, 256, 100, workers, torch.bfloat16)
    return Load("resnet18", 128, 16, 12, workers, None)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    given = load_for(device)
    print(hardware(device))
    with tempfile.TemporaryDirectory() as scratch:
        image_set = write_pictures(Path(scratch, "images"), given.batch * given.steps)
        maps = generated_maps(min(len(image_set), 4096), torch.Generator().manual_seed(0))
        maps = dataclasses.replace(maps, classes=maps.classes.int() % CLASSES)
        write_label_set(Path(scratch, "labels"), image_set.keys, maps, CLASSES)
        compare(given, image_set, Path(scratch), device)


def compare(given: Load, image_set: ImageSet, scratch: Path, device: torch.device) -> None:
    plain = ["colour_jitter=[0, 0, 0]", "lighting=0"]
    size = [f"batch_size={given.batch}", f"image_size={given.side}"]
    recipe = load_recipe("relabel", [*plain, *size, "epochs=2", "warmup_epochs=0", "lr=1e-3"])
    arms: dict[str, Callable[[], float]] = {
        "model alone": lambda: model_alone(given, recipe, scratch / "labels", device),
        "loader alone": lambda: loader_alone(given, recipe, image_set, device),
        "the loop": lambda: the_loop(given, recipe, scratch, device),
        "timm": lambda: timms_loop(given, recipe, scratch / "images", device),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(ROUNDS):
        for name in rotated(list(arms), turn):
            rates[name].append(arms[name]())
    rate = {name: max(of_arm) for name, of_arm in rates.items()}
    print(
        f"training loop: {given.model}, {given.side}x{given.side}, {dtype_name(given.autocast_dtype)}, batch {given.batch},"
        f" {given.steps} steps, {given.workers} decoding workers; images/s, fastest and median of {ROUNDS}, interleaved"
    )
    for name, value in rate.items():
        print(f"  {name:<14}{value:10.1f}{statistics.median(rates[name]):10.1f}")
    binds = min("model alone", "loader alone", key=rate.__getitem__)
    print(f"  the {binds.removesuffix(' alone')} binds: the loop runs at {rate['the loop'] / rate[binds]:.3f} of its speed")
    print(f"  the loop / timm {rate['the loop'] / rate['timm']:8.3f}")


def rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def model_alone(given: Load, recipe: Recipe, labels: Path, device: torch.device) -> float:
    store = LabelStore.open(labels).to(device)
    step = training_step(given.model, recipe, store, given.autocast_dtype, device)
    crops = resident_crops(given.batch, recipe.image_size, len(store), CLASSES, device)
    return images_per_s(given, device, lambda: step(crops, 0, 0))


def loader_alone(given: Load, recipe: Recipe, image_set: ImageSet, device: torch.device) -> float:
    loader = DataLoader(
        RandomCrops(image_set, recipe),
        batch_sampler=TrainingBatches(len(image_set), recipe, 0, 0, 1),
        num_workers=given.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=init_worker,
    )
    batches = iter(loader)  # of two epochs
    return images_per_s(given, device, lambda: next(batches))


def the_loop(given: Load, recipe: Recipe, scratch: Path, device: torch.device) -> float:
    run = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    options = {"labels": scratch / "labels", "workers": given.workers, "device": device.type}
    with contextlib.redirect_stdout(None):  # what it says of its epochs
        train(scratch / "images", run, given.model, recipe, **options)  # type: ignore[arg-type]
    return float(read_metrics(run)[-1]["images_per_s"])


def timms_loop(given: Load, recipe: Recipe, images: Path, device: torch.device) -> float:
    model = timm.create_model(given.model, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    loader = create_loader(
        create_dataset("", root=str(images), is_training=True),
        (3, recipe.image_size, recipe.image_size),
        given.batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=given.workers,
        pin_memory=device.type == "cuda",
        device=device,
    )
    optimizer = create_optimizer_v2(model, "sgd", lr=recipe.lr, weight_decay=recipe.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        for batch, target in loader:
            batch = batch.contiguous(memory_format=torch.channels_last)
            with autocast(device, given.autocast_dtype):
                loss = loss_of(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait_for(device)

    epoch()
    start = time.perf_counter()
    epoch()
    return given.batch * given.steps / (time.perf_counter() - start)


def images_per_s(given: Load, device: torch.device, step: Callable[[], object]) -> float:
    """Of the second of two epochs of steps."""
    for _ in range(given.steps):
        step()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(given.steps):
        step()
    wait_for(device)
    return given.batch * given.steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
