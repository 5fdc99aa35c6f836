"""Commands that make data sets: the embedded digit scenes, and corrupted copies of any images."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import command
from pipeline.cli.options import Images

GROUP = "Data"
MAX_SCENES = 1_000_000


@command(GROUP, "demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    train_images: Annotated[int, typer.Option(help="Training scenes.", min=1, max=MAX_SCENES)] = 3000,
    val_images: Annotated[int, typer.Option(help="Validation scenes.", min=1, max=MAX_SCENES)] = 1000,
    annotator_images: Annotated[int, typer.Option(help="One-digit scenes for the annotator.", min=1, max=MAX_SCENES)] = 3000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.", min=0)] = 0,
) -> None:
    """Write the embedded digit scenes.

    A small data set of handwritten digits on pieces of photographs, in ImageNet's layout.
    """
    from pipeline.demo.digit_scenes import write_scenes

    write_scenes(folder, train_images, val_images, annotator_images, seed)


@command(GROUP)
def corrupt(
    images: Images,
    output: Annotated[Path, typer.Argument(help="Folder to write to; must be empty or absent.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.", min=0)] = 0,
) -> None:
    """Write corrupted copies of images.

    Eight corruptions at five severities, for `relabel eval --suite`.
    """
    from train.evaluation.corruptions import write_corrupted

    print(f"{output}: {write_corrupted(images, output, seed)} images")
