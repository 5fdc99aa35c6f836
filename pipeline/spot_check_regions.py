"""Ask the recorded classifiers again about some stored crops, mirrored ones too: are the stored answers theirs?

Shapes: N regions of an image, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from annotate.regions import CropClassifier, RegionForward, sparse_answers
from pipeline.recorded import recorded_teachers, told_by
from relabel.images.sources import find_images
from relabel.labels.manifest import Manifest
from relabel.labels.regions import MIRRORED, LabelRegions, window_of
from relabel.labels.store import LabelStore
from relabel.runtime.defaults import ANNOTATE_BATCH_SIZE
from relabel.runtime.errors import InputError
from relabel.runtime.machine import choose_device

# Of a probability; covers float16 storage (0.0002) and the rounding of different hardware
TOLERANCE = {"float32": 0.002, "bfloat16": 0.1, "float16": 0.02}
NEAR_TIE = 1e-3  # in nats: classes as close as this may change places


@dataclass(frozen=True)
class RegionCheck:
    """What the check found.

    Attributes:
        images, crops: number of images whose regions were looked at, and of the regions.
        largest_difference: between a stored and a recomputed probability; NaN if any is.
        same_top1: share of crops whose top-1 class is the stored one.
    """

    images: int
    crops: int
    largest_difference: float
    same_top1: float


@torch.inference_mode()
def check_regions(
    labels: Path, images: Path | str, count: int, checkpoints: Sequence[Path], device: str | None, seed: int = 0
) -> RegionCheck:
    """Compute the answers to the stored crops of `count` random images again.

    Args:
        checkpoints: the user's own weights, in any order.
    Raises:
        InputError: the set was imported, or made with other weights than those given or published today.
    """
    if count < 1:
        raise InputError(f"--spot-check {count}: expected at least 1 image")
    store, image_set = LabelStore.open(labels, LabelRegions), find_images(images)
    manifest = store.manifest
    teachers = recorded_teachers(manifest, labels, checkpoints, choose_device(device))
    chosen = torch.randperm(len(store), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    differences, same = [torch.zeros(())], []
    for row in tqdm(chosen.tolist(), desc="spot check", unit="img", disable=None):
        stored = store.gather(torch.tensor([row]))
        n = int(stored.count)
        if n == 0:
            continue
        image = image_set.read(image_set.index(store.keys[row]))
        again = answers_again(image, stored, teachers, manifest, labels)
        differences.append(largest_difference(stored, again, manifest))
        best = stored.classes[0, :n, :1].long()
        same.append(again.gather(1, best)[:, 0] >= again.amax(1) - NEAR_TIE)
    matches = torch.cat(same) if same else torch.ones(0)
    return RegionCheck(
        images=len(chosen),
        crops=len(matches),
        largest_difference=float(torch.stack(differences).max()),  # NaN if any of them is
        same_top1=float(matches.float().mean()) if len(matches) else 1.0,
    )


def answers_again(
    image: Image.Image, stored: LabelRegions, teachers: list[CropClassifier], manifest: Manifest, labels: Path
) -> Tensor:
    """(n, C) log-probabilities that the classifiers give now to the n regions of one image."""
    n = int(stored.count)
    drawn = [
        (window_of(box, *image.size), bool(flag & MIRRORED))
        for box, flag in zip(stored.boxes[0, :n], stored.flags[0, :n].tolist(), strict=True)
    ]
    with told_by(labels):
        forward = RegionForward(teachers, manifest, ANNOTATE_BATCH_SIZE)
        return torch.cat(forward.in_parts(list(forward.cuts(image, drawn).values()), forward.log_probs)).cpu()


def largest_difference(stored: LabelRegions, again: Tensor, manifest: Manifest) -> Tensor:
    """Between stored and recomputed probabilities of an image's regions: of the stored classes, of the ranks, of the rest.

    Two classes of nearly the same probability may have changed places, which is no difference.
    """
    n, left_out = len(again), manifest.num_classes - manifest.topk
    classes = stored.classes[0, :n].long().cpu()
    target = stored.dense(manifest.num_classes)[0, :n].softmax(1).cpu().gather(1, classes)
    sparse = sparse_answers(again, manifest.topk, manifest.tail)
    ranks, rest = sparse.scores.exp(), left_out * sparse.tail.exp()
    total = ranks.sum(1) + rest
    of_classes = (again.gather(1, classes) - again.amax(1, keepdim=True)).exp()
    expected = [of_classes / total[:, None], ranks / total[:, None]]
    apart = [(target - probabilities).abs().max() for probabilities in expected]
    return torch.stack([*apart, (1 - target.sum(1) - rest / total).abs().max()]).max()


def note(check: RegionCheck) -> str:
    return (
        f"{check.crops} regions of {check.images} images annotated again: probabilities differ by at most"
        f" {check.largest_difference:.2g}, {100 * check.same_top1:.1f}% have the same top-1 class"
    )


def problems(check: RegionCheck, manifest: Manifest, labels: Path) -> list[str]:
    """A finding if the stored answers differ from the recomputed ones by more than the tolerance."""
    if check.largest_difference <= TOLERANCE[manifest.precision]:
        return []
    return [
        f"{labels}: a stored probability differs by {check.largest_difference:.3g} from what {manifest.model} predicts,"
        f" expected at most {TOLERANCE[manifest.precision]:.2g} ({100 * check.same_top1:.1f}% of regions have the same top-1"
        " class): the images or the timm version are different, or the regions are damaged; annotate again"
    ]
