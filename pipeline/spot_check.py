"""Annotate a few images again and ask two things of a label set: is it still what its annotator says, and how much of the
full map's targets do the stored k logits keep?

The second is the set's fidelity: the mean Kullback-Leibler divergence, over random crops, of the target that the sparse
map gives from the target that the full dense map would give. It is shown for other k and tails too, to choose by.

Shapes: B images, C classes, H rows and W columns of the label map.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from annotate.convert import FullyConvolutional
from annotate.run import AnnotateConfig, load_annotator
from annotate.sparsify import sparsify
from annotate.squash import Squash
from pipeline.compare import log_targets, mean_kl
from relabel.images.image_set import ImageSet
from relabel.images.sources import find_images
from relabel.labels.boxes import random_boxes
from relabel.labels.manifest import PUBLISHED, Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.models.weights import weights_from_hub, weights_in_folder
from relabel.runtime.defaults import Tail
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from relabel.runtime.machine import choose_device
from relabel.runtime.precision import autocast, dtype_from_name

BATCH = 16
BOXES_PER_IMAGE = 8
OTHER_K = (1, 2, 3, 5, 10)
TOLERANCE = {
    "float32": 0.005,
    "bfloat16": 0.1,
    "float16": 0.02,
}  # relative: storage (0.0005), other hardware's rounding


@dataclass(frozen=True)
class SpotCheck:
    """What the check found.

    Attributes:
        images: how many were annotated again.
        largest_difference: of a stored logit from the one made now for that class and for that rank, and of a stored tail
            from that made now; relative to max(1, |stored|).
        same_top1: share of cells whose best class is the stored one.
        fidelity: (k, tail) -> mean KL in nats from the full map's target: of the stored maps for the stored choice, of maps
            made now for the others.
    """

    images: int
    largest_difference: float
    same_top1: float
    fidelity: dict[tuple[int, Tail], float]


def spot_check(
    labels: Path, images: Path | str, count: int, checkpoint: Path | None, device: str | None, seed: int = 0
) -> SpotCheck:
    """Annotate `count` random images again with the recorded annotator.

    Raises:
        InputError: the set was made with a checkpoint that was not given, or with another one.
    """
    if count < 1:
        raise InputError(f"--spot-check {count}: expected at least 1 image")
    store, image_set = LabelStore.open(labels), find_images(images)
    manifest = store.manifest
    annotator, squash = recorded_annotator(manifest, labels, checkpoint, choose_device(device))
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
        for now, then in (
            (logits.gather(1, stored.classes.long()), scores),
            (again.scores, scores),
            (again.tail, stored.tail.float()),
        ):
            differences.append(((now - then).abs() / then.abs().clamp(min=1)).max())
        same.append((logits.argmax(1) == stored.classes[:, 0].long()).float().mean((1, 2)))
        boxes = [random_boxes(len(rows), generator) for _ in range(BOXES_PER_IMAGE)]
        whole = sparsify(logits, manifest.num_classes, "zero")  # every class kept: pooling it is exact
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
        largest_difference=float(torch.stack(differences).max()),  # NaN, if any is
        same_top1=float(torch.cat(same).mean()),
        fidelity={choice: float(torch.cat(values).mean()) for choice, values in kl.items()},
    )


def recorded_annotator(
    manifest: Manifest, labels: Path, checkpoint: Path | None, device: torch.device
) -> tuple[FullyConvolutional, Squash]:
    """The annotator that a manifest names, with the very weights it was run with."""
    if manifest.kind == "imported":
        raise InputError(f"{labels} was imported; what made its maps is not on record, so they cannot be made again")
    published = manifest.weights == PUBLISHED
    if published and checkpoint is not None:
        raise InputError(f"{labels} was made with the published weights of {manifest.model}; leave --checkpoint out")
    if not published:
        own = checkpoint or weights_in_folder(manifest.model)
        if own is None:
            raise InputError(f"{labels} was made with the checkpoint {manifest.weights}; name it with --checkpoint")
        if not own.is_file():
            raise InputError(f"checkpoint {own} does not exist")
        if sha256_of(own) != manifest.weights_sha256:
            raise InputError(f"{own} is not the checkpoint that {labels} was made with ({manifest.weights}, by sha256)")
    config = AnnotateConfig(
        model=manifest.model,
        model_kwargs=manifest.model_kwargs,
        checkpoint=checkpoint,
        num_classes=manifest.num_outputs or manifest.num_classes,
        topk=manifest.topk,
        input_size=manifest.input_size,
        recentre=manifest.recentre,
        flip=manifest.flip,
        class_token=manifest.kind == "token",
    )
    annotator, squash = load_annotator(config, device)
    from_hub = weights_from_hub(annotator.classifier) if published else None
    if from_hub is not None and manifest.weights_sha256 not in (None, sha256_of(from_hub)):
        raise InputError(
            f"the published weights of {manifest.model} are not those that {labels} was made with (by sha256): they have"
            " changed since; annotate anew, or name the revision, as hf-hub:OWNER/NAME@REVISION"
        )
    if manifest.mean is not None and manifest.std is not None and manifest.interpolation is not None:  # as it was then
        squash = Squash(squash.input_size, manifest.mean, manifest.std, manifest.interpolation)
    if manifest.outputs is not None:
        annotator.select(manifest.outputs)
    return annotator, squash


@torch.inference_mode()
def annotate_again(
    annotator: FullyConvolutional, squash: Squash, images: ImageSet, keys: list[str], manifest: Manifest
) -> Tensor:
    """(B, C, H, W) float32 logits on the CPU, at the precision recorded."""
    device = next(annotator.parameters()).device
    pixels = torch.stack([squash(images.read(images.index(key))) for key in keys]).to(device)
    with autocast(device, dtype_from_name(manifest.precision)):
        logits = annotator(squash.normalise(pixels).contiguous(memory_format=torch.channels_last))
    result: Tensor = logits.float().cpu()
    return result


def problems(check: SpotCheck, manifest: Manifest, labels: Path) -> list[str]:
    """What is wrong, if anything: the set does not hold what its annotator says of these images."""
    if check.largest_difference <= TOLERANCE[manifest.precision]:
        return []
    return [
        f"{labels}: a stored logit or tail differs by {100 * check.largest_difference:.3g}% from what {manifest.model} says"
        f" now (and {100 * check.same_top1:.1f}% of cells have the same best class): other images, another timm, or damaged"
        " maps; annotate anew"
    ]


def fidelity_table(check: SpotCheck, manifest: Manifest) -> list[str]:
    """The fidelity table, the stored choice marked."""
    tails: tuple[Tail, ...] = get_args(Tail)
    rows = [
        f"{check.images} images annotated again: stored logits and tails differ by {100 * check.largest_difference:.2g}% at"
        f" most, {100 * check.same_top1:.1f}% of cells with the same best class",
        f"mean KL of a crop's target from the full map's, {BOXES_PER_IMAGE} crops an image (* is what is stored):",
        f"  {'k':>4}" + "".join(f"{tail + ' tail':>18}" for tail in tails),
    ]
    for k in sorted({k for k, _ in check.fidelity}):
        cells = [(check.fidelity[k, tail], "*" if (k, tail) == (manifest.topk, manifest.tail) else " ") for tail in tails]
        rows.append(f"  {k:>4}" + "".join(f"{max(value, 0):>17.4f}{mark}" for value, mark in cells))
    return rows
