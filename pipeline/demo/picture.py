"""The picture at the end of the demo: scenes, their label maps, and one random crop of each with its target."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relabel.images.sources import find_images
from relabel.labels.pooling import label_pool
from relabel.labels.store import LabelStore
from train.crops import RandomCrops
from train.recipe import load_recipe

SCENES = 5
DIGITS = 10


def draw_scenes(data: Path, labels: Path, picture: Path) -> None:
    """Draw SCENES training scenes with a random crop that shows another digit than the ground-truth label.

    ReLabel was made for such crops. The first ones found are drawn; no network takes part in the choice.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    folder = find_images(data / "train")
    objects = json.loads((data / "train.json").read_text(encoding="utf-8"))["images"]
    crops = RandomCrops(folder, load_recipe("scenes-relabel"))
    store = LabelStore.open(labels)
    chosen = []
    for index in np.random.default_rng(0).permutation(len(folder)).tolist():
        crop = crops[[(0, index)]]
        image, box, target = crop.images[0], tuple(crop.boxes[0].tolist()), int(crop.targets[0])
        scene = objects[folder.keys[index]]
        visible = {c: covered(b, box) for c, b in zip(scene["classes"], scene["boxes"], strict=True)}
        if visible[folder.classes[target]] < 0.1 and max(visible.values()) > 0.7:
            chosen.append((index, image, box, target))
        if len(chosen) == SCENES:
            break

    colours = matplotlib.colormaps["tab10"]
    figure, axes = plt.subplots(4, len(chosen), figsize=(2.5 * len(chosen), 9.6), layout="constrained", squeeze=False)
    for column, (index, image, box, target) in enumerate(chosen):
        pixels = np.asarray(folder.read(index))
        rows, columns = pixels.shape[:2]
        maps = store.gather(store.rows([folder.keys[index]]))
        probabilities = label_pool(maps, torch.tensor([box]), DIGITS).softmax(1)[0].numpy()
        winners = maps.classes[0, 0].numpy()
        grid = winners.shape

        scene_axes, map_axes, crop_axes, target_axes = axes[:, column]
        scene_axes.imshow(pixels)
        scene_axes.set_title(f"ground-truth label: {folder.classes[target]}", fontsize=10)
        map_axes.imshow(np.asarray(Image.fromarray(pixels).convert("L")), cmap="gray")
        for r in range(grid[0]):
            for c in range(grid[1]):
                x, y, w, h = c * columns / grid[1] - 0.5, r * rows / grid[0] - 0.5, columns / grid[1], rows / grid[0]
                map_axes.add_patch(Rectangle((x, y), w, h, color=colours(int(winners[r, c])), alpha=0.55, linewidth=0))
                map_axes.text(x + w / 2, y + h / 2, str(winners[r, c]), ha="center", va="center", fontsize=7, color="white")
        for panel in (scene_axes, map_axes):
            x0, y0, x1, y1 = box
            corner = (x0 * columns - 0.5, y0 * rows - 0.5)
            panel.add_patch(Rectangle(corner, (x1 - x0) * columns, (y1 - y0) * rows, fill=False, color="red", linewidth=2.5))
        crop_axes.imshow(image.permute(1, 2, 0).numpy())
        for edge in crop_axes.spines.values():
            edge.set(color="red", linewidth=2.5)
        for panel in (scene_axes, map_axes, crop_axes):
            panel.set(xticks=[], yticks=[])
        digits = np.arange(DIGITS)
        target_axes.bar(digits, probabilities, color=[colours(int(d)) for d in digits])
        target_axes.bar([target], [1.0], fill=False, edgecolor="black", linestyle="--", linewidth=1.3)
        target_axes.set(xticks=digits, ylim=(0, 1.05), yticks=[0, 0.5, 1])
        target_axes.tick_params(labelsize=8)
    for panel, label in zip(
        axes[:, 0],
        ("scene and one random crop", "label map: top-1 class per cell", "crop, as the student sees it", "target"),
        strict=True,
    ):
        panel.set_ylabel(label, fontsize=10)
    figure.suptitle(
        "The crop does not show its ground-truth label (dashed). The target from the label map (solid) matches the crop.",
        fontsize=12,
    )
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def covered(inner: list[float], outer: tuple[float, float, float, float]) -> float:
    """The share of an object's box that lies within a crop."""
    width = min(inner[2], outer[2]) - max(inner[0], outer[0])
    height = min(inner[3], outer[3]) - max(inner[1], outer[1])
    return max(width, 0) * max(height, 0) / ((inner[2] - inner[0]) * (inner[3] - inner[1]))
