"""The picture that `relabel show` draws: an image, its label map in colours, heat maps of the strongest classes, crops.

Shapes: C classes, H rows and W columns of the label map.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.show.seen import Crop, Seen

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart; without black, and yellow last
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
OTHERS = "#999999"  # of the classes beyond these
BARS = 5  # classes of a target
HEAT_MAPS = 3
COLUMNS = 6  # of panels; a crop takes two
NAME_LENGTH = 28  # characters of a class name; longer ones are cut
PANEL_INCHES = 2.6


def draw(images: Sequence[Seen], software: str) -> bytes:
    """A PNG of these images below one another, which names the program that made it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [1 + -(-len(seen.crops) // (COLUMNS // 2)) for seen in images]
    figure = plt.figure(figsize=(COLUMNS * PANEL_INCHES, sum(rows) * PANEL_INCHES + 0.4 * len(images)), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(images), 1, height_ratios=rows))
    for part, seen, count in zip(parts, images, rows, strict=True):
        panels = part.subplots(count, COLUMNS, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        title = as_text(seen.name) + (f"   ground-truth label: {as_text(seen.label)}" if seen.label is not None else "")
        part.suptitle(title, fontsize=11, parse_math=False)
        draw_image(panels[0], seen)
        for number, crop in enumerate(seen.crops):
            row, column = divmod(number, COLUMNS // 2)
            draw_crop(panels[1 + row, 2 * column], panels[1 + row, 2 * column + 1], crop, number, seen)
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font does not have is drawn as boxes
        figure.savefig(drawn, dpi=110, metadata={"Software": software})
    plt.close(figure)
    return drawn.getvalue()


def draw_image(panels: Sequence[Any], seen: Seen) -> None:
    """The first row: the picture with its crops, the map in colours with its legend, heat maps of the strongest classes."""
    from matplotlib.patches import Rectangle

    picture = np.asarray(seen.picture)
    panels[0].imshow(picture)
    panels[0].set_title("image" if not seen.crops else "image and crops", fontsize=9)
    for number, crop in enumerate(seen.crops):
        x0, y0, x1, y1 = (edge * side - 0.5 for edge, side in zip(crop.box, 2 * seen.picture.size, strict=True))
        panels[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white", linewidth=2.4))
        panels[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="black", linewidth=1.0))
        mark = {"facecolor": "black", "edgecolor": "none", "pad": 1.2}
        at = (x0, y0, "left", "top") if number % 2 == 0 else (x1, y1, "right", "bottom")  # so that few marks overlap
        panels[0].text(at[0], at[1], str(number + 1), ha=at[2], va=at[3], fontsize=8, color="white", bbox=mark)
    if seen.probabilities is None:
        draw_bars(panels[1], seen.whole, seen)
        panels[1].set_title("mean target of the regions", fontsize=9)
        return
    draw_winners(panels[1], panels[2], picture, seen.probabilities, seen)
    strongest = seen.whole.topk(min(HEAT_MAPS, len(seen.whole))).indices.tolist()
    for panel, number in zip(panels[3:], strongest, strict=False):
        heat = panel.imshow(seen.probabilities[number].numpy(), cmap="cividis", vmin=0, vmax=1, extent=extent_of(picture))
        panel.set_title(
            f"{short(seen.name_of(number))}\nwhole image {percent(float(seen.whole[number]))}", fontsize=9, parse_math=False
        )
        panel.figure.colorbar(heat, ax=panel, location="bottom", shrink=0.8, pad=0.02).ax.tick_params(labelsize=7)


def draw_winners(panel: Any, legend: Any, picture: np.ndarray, probabilities: Tensor, seen: Seen) -> None:
    """The class with the largest logit of every cell in colour over the grey picture, and what the colours mean."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    winners = probabilities.argmax(0).numpy()
    counts = Counter(winners.flatten().tolist()).most_common()
    colour_of = {number: COLOURS[place] for place, (number, _) in enumerate(counts[: len(COLOURS)])}
    cells = np.array([[to_rgb(colour_of.get(number, OTHERS)) for number in row] for row in winners.tolist()])
    panel.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255)
    panel.imshow(cells, alpha=0.5, extent=extent_of(picture), interpolation="nearest")
    panel.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    rows, columns = winners.shape
    panel.set_title(f"top-1 class of {rows} x {columns} cells", fontsize=9)
    named = [(number, count, colour_of[number]) for number, count in counts[: len(COLOURS)]]
    labels = [f"{short(seen.name_of(number))}  {percent(count / winners.size)}" for number, count, _ in named]
    patches = [Patch(color=colour) for _, _, colour in named]
    others = sum(count for _, count in counts[len(COLOURS) :])
    if others:
        labels.append(f"{len(counts) - len(COLOURS)} other classes  {percent(others / winners.size)}")
        patches.append(Patch(color=OTHERS))
    drawn = legend.legend(
        patches, labels, loc="center left", fontsize=8, frameon=False, title="share of the cells", title_fontsize=8
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def draw_crop(picture: Any, bars: Any, crop: Crop, number: int, seen: Seen) -> None:
    picture.imshow(np.asarray(crop.picture))
    picture.set_title(f"crop {number + 1}{', mirrored' if crop.mirrored else ''}", fontsize=9)
    draw_bars(bars, crop.target, seen)
    bars.set_title(f"target of crop {number + 1}", fontsize=9)


def draw_bars(panel: Any, target: Tensor, seen: Seen) -> None:
    """The strongest classes of a target, and the ground-truth label's part in it."""
    classes = target.topk(min(BARS, len(target))).indices.tolist()
    if seen.label_class is not None and seen.label_class not in classes:
        classes.append(seen.label_class)
    shares = [float(target[number]) for number in classes]
    places = range(len(classes))[::-1]
    colours = [COLOURS[3] if number == seen.label_class else COLOURS[0] for number in classes]
    panel.set_axis_on()
    panel.barh(places, shares, color=colours, height=0.45)
    for place, number, share in zip(places, classes, shares, strict=True):
        mark = " (ground-truth label)" if number == seen.label_class else ""
        panel.text(0, place + 0.29, f"{short(seen.name_of(number))}{mark}  {percent(share)}", fontsize=7.5, parse_math=False)
    panel.set(xlim=(0, 1), ylim=(-0.5, len(classes) - 0.2), yticks=[], xticks=[0, 0.5, 1])
    panel.tick_params(labelsize=7)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def extent_of(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Where a map is drawn so that it covers the picture: left, right, bottom, top."""
    return -0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5


def short(name: str) -> str:
    text = as_text(name)
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"


def as_text(name: str) -> str:
    """Bytes that are no UTF-8 have no glyph."""
    return os.fsencode(name).decode(errors="replace")


def percent(share: float) -> str:
    return "<1%" if 0 < share < 0.01 else f"{100 * share:.0f}%"
