"""Annotate some images of a label set again, to measure two things: do the stored logits match what the annotator
predicts, and how close are a sparse map's targets to the full map's?

The second is called fidelity: the mean Kullback-Leibler divergence, over random crops, of the sparse map's target from the
full dense map's. It is shown for other k and tails too, to help choose them.

Shapes: B images, C classes, H rows and W columns of the label map.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from annotate.convert import FullyConvolutional
from annotate.sparsify import sparsify
from annotate.squash import Squash
from pipeline.compare import log_targets, mean_kl
from pipeline.recorded import recorded_annotator
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.boxes import random_boxes
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import Tail
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device
from relabel.runtime.precision import autocast, dtype_from_name

BATCH = 16
BOXES_PER_IMAGE = 8
OTHER_K = (1, 2, 3, 5, 10)
# Relative; covers float16 storage (0.0005) and the rounding of different hardware
TOLERANCE = {"float32": 0.005, "bfloat16": 0.1, "float16": 0.02}


@dataclass(frozen=True)
class SpotCheck:
    """What the check found.

    Attributes:
        images: number of images annotated again.
        largest_difference: between stored and recomputed values, relative to max(1, |stored|). A stored logit is compared
            with the recomputed logit of its class and with that of its rank, a stored tail with the recomputed tail.
        same_top1: share of cells whose top-1 class is the stored one.
        fidelity: (k, tail) -> mean KL in nats from the full map's target. The stored choice is measured on the stored maps,
            the others on recomputed ones.
    """

    images: int
    largest_difference: float
    same_top1: float
    fidelity: dict[tuple[int, Tail], float]


def spot_check(
    labels: Path, images: Path | str, count: int, checkpoint: Path | None, device: str | None, seed: int = 0
) -> SpotCheck:
    """Annotate `count` random images of a set of label maps again with the recorded annotator.

    Raises:
        InputError: the set was made with a checkpoint, and `checkpoint` is None or a different one.
    """
    if count < 1:
        raise InputError(f"--spot-check {count}: expected at least 1 image")
    store, image_set = LabelStore.open(labels, LabelMaps), find_images(images)
    manifest = store.manifest
    annotator, squash = recorded_annotator(manifest, labels, [checkpoint] if checkpoint else [], choose_device(device))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(store), generator=generator)[:count].sort().values
    tails: tuple[Tail, ...] = get_args(Tail)
    ks = sorted({manifest.topk, *(k for k in OTHER_K if k <= manifest.num_classes)})
    kl: dict[tuple[int, Tail], list[Tensor]] = {(k, tail): [] for k in ks for tail in tails}
    differences: list[Tensor] = []
    same = []
    for rows in tqdm(torch.split(chosen, BATCH), desc="spot check", unit="batch", disable=None):
        logits = annotate_again(annotator, squash, image_set, [store.keys[i] for i in rows.tolist()], manifest)
        stored = store.gather(rows)
        scores, again = stored.scores.float(), sparsify(logits, manifest.topk, manifest.tail)
        for recomputed, expected in (
            (logits.gather(1, stored.classes.long()), scores),
            (again.scores, scores),
            (again.tail, stored.tail.float()),
        ):
            differences.append(((recomputed - expected).abs() / expected.abs().clamp(min=1)).max())
        same.append((logits.argmax(1) == stored.classes[:, 0].long()).float().mean((1, 2)))
        boxes = [random_boxes(len(rows), generator) for _ in range(BOXES_PER_IMAGE)]
        whole = sparsify(logits, manifest.num_classes, "zero")  # keeps every class, so pooling is exact
        full = log_targets(whole, boxes, manifest.num_classes)
        for k in ks:
            for tail in tails:
                sparse = sparsify(logits, k, tail)
                maps = LabelMaps(sparse.scores.half(), sparse.classes, sparse.tail.half())
                if (k, tail) == (manifest.topk, manifest.tail):
                    maps = stored
                kl[k, tail].append(mean_kl(full, log_targets(maps, boxes, manifest.num_classes)))
    return SpotCheck(
        images=len(chosen),
        largest_difference=float(torch.stack(differences).max()),  # NaN if any of them is
        same_top1=float(torch.cat(same).mean()),
        fidelity={choice: float(torch.cat(values).mean()) for choice, values in kl.items()},
    )


@torch.inference_mode()
def annotate_again(
    annotator: FullyConvolutional, squash: Squash, images: ImageSet, keys: list[str], manifest: Manifest
) -> Tensor:
    """(B, C, H, W) float32 logits on the CPU, computed at the recorded precision."""
    device = next(annotator.parameters()).device
    pixels = torch.stack([squash(images.read(images.index(key))) for key in keys]).to(device)
    with autocast(device, dtype_from_name(manifest.precision)):
        logits = annotator(squash.normalise(pixels).contiguous(memory_format=torch.channels_last))
    result: Tensor = logits.float().cpu()
    return result


def problems(check: SpotCheck, manifest: Manifest, labels: Path) -> list[str]:
    """A finding if the stored values differ from the recomputed ones by more than the tolerance."""
    if check.largest_difference <= TOLERANCE[manifest.precision]:
        return []
    return [
        f"{labels}: a stored logit or tail differs by {100 * check.largest_difference:.3g}% from what {manifest.model}"
        f" predicts, expected at most {100 * TOLERANCE[manifest.precision]:.2g}% ({100 * check.same_top1:.1f}% of cells have"
        " the same top-1 class): the images or the timm version are different, or the maps are damaged; annotate again"
    ]


def fidelity_table(check: SpotCheck, manifest: Manifest) -> list[str]:
    """The fidelity table, with the stored choice marked."""
    tails: tuple[Tail, ...] = get_args(Tail)
    rows = [
        f"{check.images} images annotated again: stored logits and tails differ by at most"
        f" {100 * check.largest_difference:.2g}%, {100 * check.same_top1:.1f}% of cells have the same top-1 class",
        f"mean KL, in nats, of a crop's target from the full map's, {BOXES_PER_IMAGE} crops per image (* as stored):",
        f"  {'k':>4}" + "".join(f"{tail + ' tail':>18}" for tail in tails),
    ]
    for k in sorted({k for k, _ in check.fidelity}):
        cells = [(check.fidelity[k, tail], "*" if (k, tail) == (manifest.topk, manifest.tail) else " ") for tail in tails]
        rows.append(f"  {k:>4}" + "".join(f"{max(value, 0):>17.4f}{mark}" for value, mark in cells))
    return rows
