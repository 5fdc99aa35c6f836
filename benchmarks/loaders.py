"""Crops per second of CPU time from JPEGs on disk: our loader beside timm's and torchvision's, each as its users run it.

    relabel              DataLoader over train.crops.RandomCrops, as `relabel train` makes it; one and four crops per image
    timm                 timm.data.create_loader
    torchvision, PIL     ImageFolder with transforms.v2 on Pillow's images
    torchvision, tensors ImageFolder with torchvision.io.decode_image and transforms.v2 on tensors, its fastest way

First batches of uint8 without mirroring: what a decoding worker does for a GPU, except that relabel also draws the random
numbers of its colour augmentation. Then mirrored and normalised float32 batches, on the CPU. All in one process with one
thread, so that CPU time is what one core does. The images were written just before, so the page cache is warm.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from benchmarks.annotate import write_pictures
from benchmarks.hardware import hardware
from relabel.images.image_set import ImageSet
from relabel.models.preprocessing import normalise
from relabel.runtime.defaults import CROP_SCALE
from train.augment import augment
from train.crops import Crops, RandomCrops, TrainingBatches
from train.recipe import Recipe, load_recipe

SIDE = 224
BATCH = 32
BATCHES = 4
PICTURES = BATCH * BATCHES
QUALITY = 82  # of a JPEG: about 60 kB
ROUNDS = 15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Epoch = Callable[[], Iterable[Any]]  # its batches


def main() -> None:
    torch.set_num_threads(1)
    print(hardware(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as scratch:
        image_set = write_pictures(Path(scratch), PICTURES, QUALITY)
        size = sum(image_set.file_size(i) for i in range(PICTURES)) / PICTURES / 1000
        print(
            f"loaders: {SIDE}x{SIDE} from {PICTURES} JPEGs of 500x375 and {size:.0f} kB, batches of {BATCH}; crops per"
            f" second of CPU time, median of {ROUNDS}, interleaved"
        )
        compare("uint8 batches", arms(Path(scratch), image_set, finished=False))
        compare("mirrored and normalised", arms(Path(scratch), image_set, finished=True))


def arms(root: Path, image_set: ImageSet, finished: bool) -> dict[str, tuple[Epoch, int]]:
    """Per loader, an epoch's batches and the number of its crops."""
    return {
        "relabel": (ours(image_set, 1, finished), PICTURES),
        "relabel, four crops": (ours(image_set, 4, finished), PICTURES),
        "timm": (timms(root, finished), PICTURES),
        "torchvision, PIL": (torchvisions(root, False, finished), PICTURES),
        "torchvision, tensors": (torchvisions(root, True, finished), PICTURES),
    }


def ours(image_set: ImageSet, crops_per_image: int, finished: bool) -> Epoch:
    plain = [
        "colour_jitter=[0, 0, 0]",
        "lighting=0",
        f"image_size={SIDE}",
        f"batch_size={BATCH}",
        "epochs=1",
        "warmup_epochs=0",
    ]
    recipe = load_recipe("relabel", [*plain, f"crops_per_image={crops_per_image}", f"hflip={0.5 * finished}"])

    def batches() -> Iterable[Any]:
        sampler = TrainingBatches(len(image_set), recipe, 0, 0, 1)
        loader = DataLoader(RandomCrops(image_set, recipe), batch_size=None, sampler=sampler)
        return (pixels(crops, recipe) for crops in loader) if finished else loader

    return batches


def pixels(crops: Crops, recipe: Recipe) -> torch.Tensor:
    """What the training step does before the forward pass."""
    return normalise(augment(crops.images, crops.mirrored, crops.draws, recipe), MEAN, STD)


def timms(root: Path, finished: bool) -> Epoch:
    loader = create_loader(
        create_dataset("", root=str(root), is_training=True),
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        scale=CROP_SCALE,
        hflip=0.5 * finished,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return lambda: loader if finished else loader.loader  # the outer one normalises


def torchvisions(root: Path, on_tensors: bool, finished: bool) -> Epoch:
    steps: list[Any] = [v2.RandomResizedCrop(SIDE, scale=CROP_SCALE, antialias=True)]
    if finished:
        steps.append(v2.RandomHorizontalFlip())
    if not on_tensors:
        steps.append(v2.PILToTensor())
    if finished:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    reader: dict[str, Any] = {"loader": lambda path: decode_image(read_file(path), ImageReadMode.RGB)} if on_tensors else {}
    loader = DataLoader(ImageFolder(str(root), transform=v2.Compose(steps), **reader), BATCH, shuffle=True)
    return lambda: loader


def compare(title: str, loaders: dict[str, tuple[Epoch, int]]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for turn in range(ROUNDS + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            epoch, crops = loaders[name]
            start = time.process_time()
            for _ in epoch():
                pass
            if turn > 0:  # the first warms up
                rates[name].append(crops / (time.process_time() - start))
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    print(title)
    for name, rate in medians.items():
        of_timm, of_torchvision = rate / medians["timm"], rate / medians["torchvision, tensors"]
        print(f"  {name:<22}{rate:9.1f}   {of_timm:5.2f} times timm's, {of_torchvision:5.2f} times torchvision's on tensors")


if __name__ == "__main__":
    main()
