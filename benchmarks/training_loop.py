"""The training loop, from JPEGs on disk to updated weights, against its two halves and the same training built from timm.

    model only     the loop's own step on one batch that stays on the device
    loader only    the loop's own crops, from decoding to pinned batches, with no model to feed
    the loop       `relabel train`; the slower half is its limit. On a CPU both halves share the cores
    timm           timm's data set, loader, transforms, model and optimiser, and the step of its train.py (which is not in
                   the package), with its settings but without colour jitter

First with a model that is the limit; then, for what the loader is worth, with one so small that the loader is, on crops so
small that the model takes little of the cores, from JPEGs that are decoded whole.

All of them train by the recipe `relabel` without colour jitter and lighting, which timm does differently. The work is the
same except for the target and for the JPEGs that the loop decodes at a reduced size.

For the loop and for timm, the second of two epochs is timed: the first also starts the workers and chooses kernels. The arms
take turns at being first, and the fastest round of each is used: other load on the machine can only slow a round down, and
over several seconds it does so by more than the arms differ. The loop's workers start decoding the second epoch while the
first is being saved, which is not timed; timm's start within the timed span. The images are generated, 500x375 pixels as
most of ImageNet's are. They were written just before, so the disk is not measured.
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
from train.crops import RandomCrops, TrainingBatches
from train.loop import train
from train.options import TrainOptions
from train.recipe import Recipe, load_recipe
from train.run_dir.metrics import read_metrics


@dataclass(frozen=True)
class Workload:
    """A model, the side of a crop in pixels, the batch size, and the number of steps per epoch and of rounds."""

    model: str
    side: int
    batch: int
    steps: int
    workers: int
    autocast_dtype: torch.dtype | None
    rounds: int = 9
    settings: tuple[str, ...] = ()  # of the recipe, besides those that all have


@dataclass(frozen=True)
class Rates:
    """Images per second in the fastest round of each arm, and which half is the loop's limit."""

    of_arm: dict[str, float]
    limit: str
    share: float  # of the limit's speed that the loop reaches
    step: Callable[[], object]  # of "model only", to profile


SMALL_MODEL = Workload("lcnet_035", 32, 64, 8, min(16, os.cpu_count() or 1), None, settings=("reduced_decode=false",))


def workload_for(device: torch.device) -> Workload:
    workers = min(16, os.cpu_count() or 1)
    if device.type == "cuda":
        return Workload("resnet50", 224, 256, 100, workers, torch.bfloat16)
    return Workload("resnet18", 128, 16, 12, workers, None)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    print(hardware(device))
    for workload in (workload_for(device), SMALL_MODEL):
        with tempfile.TemporaryDirectory() as scratch:
            compare(workload, Path(scratch), device)


def compare(workload: Workload, scratch: Path, device: torch.device) -> Rates:
    image_set = write_pictures(scratch / "images", workload.batch * workload.steps)
    maps = generated_maps(min(len(image_set), 4096), torch.Generator().manual_seed(0))
    maps = dataclasses.replace(maps, classes=maps.classes.int() % CLASSES)
    write_label_set(scratch / "labels", image_set.keys, maps, CLASSES)
    plain = ["colour_jitter=[0, 0, 0]", "lighting=0"]
    size = [f"batch_size={workload.batch}", f"image_size={workload.side}"]
    recipe = load_recipe("relabel", [*plain, *size, "epochs=2", "warmup_epochs=0", "lr=1e-3", *workload.settings])
    arms: dict[str, Callable[[], float]] = {
        "model only": lambda: model_only(workload, recipe, scratch / "labels", device),
        "loader only": lambda: loader_only(workload, recipe, image_set, device),
        "the loop": lambda: the_loop(workload, recipe, scratch, device),
        "timm": lambda: timms_loop(workload, recipe, scratch / "images", device),
    }
    measured: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(workload.rounds):
        for name in rotated(list(arms), turn):
            measured[name].append(arms[name]())
    rate = {name: max(arm_rates) for name, arm_rates in measured.items()}
    print(
        f"training loop: {workload.model}, {workload.side}x{workload.side}, {dtype_name(workload.autocast_dtype)},"
        f" batch {workload.batch}, {workload.steps} steps, {workload.workers} decoding workers; images/s, fastest and median"
        f" of {workload.rounds}, interleaved"
    )
    for name, value in rate.items():
        print(f"  {name:<14}{value:10.1f}{statistics.median(measured[name]):10.1f}")
    slower = min("model only", "loader only", key=rate.__getitem__)
    rates = Rates(
        rate,
        slower.removesuffix(" only"),
        rate["the loop"] / rate[slower],
        resident_step(workload, recipe, scratch / "labels", device),
    )
    print(f"  the {rates.limit} is the limit; the loop reaches {rates.share:.3f} of its speed")
    print(f"  the loop / timm {rate['the loop'] / rate['timm']:8.3f}", flush=True)
    return rates


def rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def resident_step(workload: Workload, recipe: Recipe, labels: Path, device: torch.device) -> Callable[[], object]:
    """The loop's step on one batch that stays on the device."""
    store = LabelStore.open(labels).to(device)
    step = training_step(workload.model, recipe, store, workload.autocast_dtype, device)
    crops = resident_crops(workload.batch, recipe.image_size, len(store), CLASSES, device)
    return lambda: step(crops, 0, 0)


def model_only(workload: Workload, recipe: Recipe, labels: Path, device: torch.device) -> float:
    return images_per_s(workload, device, resident_step(workload, recipe, labels, device))


def loader_only(workload: Workload, recipe: Recipe, image_set: ImageSet, device: torch.device) -> float:
    loader = DataLoader(
        RandomCrops(image_set, recipe),
        batch_size=None,
        sampler=TrainingBatches(len(image_set), recipe, 0, 0, 1),
        num_workers=workload.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=init_worker,
    )
    batches = iter(loader)  # of two epochs
    return images_per_s(workload, device, lambda: next(batches))


def the_loop(workload: Workload, recipe: Recipe, scratch: Path, device: torch.device) -> float:
    run = Path(tempfile.mkdtemp(dir=scratch)) / "run"
    options = TrainOptions(labels=scratch / "labels", workers=workload.workers, device=device.type)
    with contextlib.redirect_stdout(None):  # its log of epochs
        train(scratch / "images", run, workload.model, recipe, options)
    return float(read_metrics(run)[-1]["images_per_s"])


def timms_loop(workload: Workload, recipe: Recipe, images: Path, device: torch.device) -> float:
    model = timm.create_model(workload.model, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    loader = create_loader(
        create_dataset("", root=str(images), is_training=True),
        (3, recipe.image_size, recipe.image_size),
        workload.batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=workload.workers,
        pin_memory=device.type == "cuda",
        device=device,
    )
    optimizer = create_optimizer_v2(model, "sgd", lr=recipe.lr, weight_decay=recipe.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss()

    def epoch() -> None:
        for batch, target in loader:
            batch = batch.contiguous(memory_format=torch.channels_last)
            with autocast(device, workload.autocast_dtype):
                loss = loss_of(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        wait_for(device)

    epoch()
    start = time.perf_counter()
    epoch()
    return workload.batch * workload.steps / (time.perf_counter() - start)


def images_per_s(workload: Workload, device: torch.device, step: Callable[[], object]) -> float:
    """Images per second, timed over the second of two epochs of steps."""
    for _ in range(workload.steps):
        step()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(workload.steps):
        step()
    wait_for(device)
    return workload.batch * workload.steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
