"""Random crops from JPEGs, as a loader's worker makes them: fully decoded, at reduced scale, and several per image.

JPEG stores frequencies, so that an image can be decoded at a half, a quarter or an eighth of its size by leaving out the
high ones. This is done only if a crop still has all the pixels it needs, and it moves a crop's edges by less than a pixel of
the reduced image. How much it changes the pixels of these crops is printed next to how much a bicubic instead of a bilinear
filter changes them.

One process with one thread. The images were written just before, so the page cache is warm.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.annotate import picture
from benchmarks.hardware import hardware
from benchmarks.interleaved import median_seconds
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from train.crops import RandomCrops
from train.recipe import Recipe, load_recipe

SIZES = {"500x375, as ImageNet's mostly are": (500, 375), "2000x1500": (2000, 1500)}
SIDES = (224, 112)
PICTURES = 12
ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    print(hardware(torch.device("cpu")))
    for title, size in SIZES.items():
        with tempfile.TemporaryDirectory() as scratch:
            image_set = write_photographs(Path(scratch), size)
            for side in SIDES:
                compare(title, image_set, load_recipe("relabel", [f"image_size={side}", "hflip=0.0"]))


def write_photographs(root: Path, size: tuple[int, int]) -> ImageSet:
    """JPEGs of this size. Large ones are enlarged small ones: a camera has more pixels than its lens resolves."""
    rng = np.random.default_rng(0)
    (root / "class").mkdir()
    for number in range(PICTURES):
        picture(rng).resize(size, Image.Resampling.BICUBIC).save(root / "class" / f"{number}.JPEG", quality=90)
    return find_images(root)


def compare(title: str, image_set: ImageSet, recipe: Recipe) -> None:
    epoch = iter(range(10**6))  # different crops in every round, the same for all arms

    def crops(recipe: Recipe, epoch: int, images: int = PICTURES) -> torch.Tensor:
        dataset = RandomCrops(image_set, recipe)
        return dataset[[(epoch, index) for index in range(images)]].images

    full_decode = dataclasses.replace(recipe, reduced_decode=False)
    four_crops = dataclasses.replace(recipe, crops_per_image=4)
    seconds = median_seconds(
        torch.device("cpu"),
        ROUNDS,
        lambda: crops(full_decode, next(epoch) // 3),
        lambda: crops(recipe, next(epoch) // 3),
        lambda: crops(four_crops, next(epoch) // 3, PICTURES // 4),
    )
    print(f"crops of {recipe.image_size}x{recipe.image_size} from JPEGs of {title}; median of {ROUNDS}, interleaved")
    for name, taken in zip(("fully decoded", "at reduced scale", "the same, four crops per image"), seconds, strict=True):
        print(f"  {name:<31}{PICTURES / taken:9.1f} crops/s   {seconds[0] / taken:6.2f} times")
    scale_differences, filter_differences = [], []
    for number in range(8):
        reduced = crops(recipe, number).float()
        full = crops_by(Image.Resampling.BILINEAR, image_set, recipe, number).float()
        bicubic = crops_by(Image.Resampling.BICUBIC, image_set, recipe, number).float()
        largest = (full - reduced).abs().amax((1, 2, 3))
        differing = (largest > 1).nonzero().flatten()  # by 1 torch's and Pillow's resizing differ
        scale_differences += [float((full[i] - reduced[i]).abs().mean()) for i in differing]
        filter_differences += [float((full[i] - bicubic[i]).abs().mean()) for i in differing]
    if scale_differences:
        print(
            f"  {len(scale_differences)} of {8 * PICTURES} crops differ, by {np.mean(scale_differences):.2f} of 255 on"
            f" average; bicubic from bilinear by {np.mean(filter_differences):.2f}"
        )
    else:
        print("  no crop is large enough for reduced decoding")


def crops_by(filter_: Image.Resampling, image_set: ImageSet, recipe: Recipe, epoch: int) -> torch.Tensor:
    """The same crops of the fully decoded images, resized by Pillow."""
    dataset = RandomCrops(image_set, recipe)
    images = []
    for index in range(len(image_set)):
        image = Image.open(image_set.name(index))
        box = dataset[[(epoch, index)]].boxes[0].numpy() * np.array([*image.size, *image.size])
        crop = image.crop(tuple(box.round().astype(int).tolist())).resize((recipe.image_size,) * 2, filter_)
        images.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(images)


if __name__ == "__main__":
    main()
