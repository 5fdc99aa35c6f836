"""A classifier's predictions for all images of a folder, one per image however many processes share the work.

Shapes: N images of the folder, B of a batch, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from relabel.images.image_set import ImageSet
from relabel.models.preprocessing import Preprocessing
from relabel.runtime.defaults import EVAL_BATCH_SIZE, Loss
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast
from relabel.runtime.workers import batches_of, init_worker
from train.evaluation.centre_crops import CentreCrops
from train.evaluation.fgsm import fgsm

BEST = 5


@dataclass(frozen=True)
class Predictions:
    """On the CPU, in the order of the folder's keys; every process has all of them.

    Attributes:
        best: (N, min(5, C)) int64 classes, the best first.
        best_among: (N, min(5, S)) the same, of each set of S classes that `predict` was given.
        scores: (N, C) float32 probabilities, if `predict` keeps them.
    """

    best: Tensor
    scores: Tensor | None = None
    best_among: tuple[Tensor, ...] = ()


@torch.no_grad()  # not inference_mode: the attack needs gradients within
def predict(
    classifier: nn.Module,
    image_set: ImageSet,
    preprocessing: Preprocessing,
    group: Processes,
    classes: int,
    *,
    among: Sequence[Tensor] = (),
    attack: tuple[float, Tensor] | None = None,
    scores_of: Loss | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    title: str = "eval",
) -> Predictions:
    """Run the classifier on all images.

    Args:
        classifier: (B, 3, size, size) -> (B, C); it runs in eval mode, and then goes back to the mode it was in.
        classes: C.
        among: sets of classes, each (S,), to choose from besides all.
        attack: FGSM's step, for pixels in [0, 1], and (N,) the classes that it moves the images away from.
        scores_of: also keep the probability of each class, by softmax ("ce") or by a sigmoid per class ("bce").
    Raises:
        InputError: a prediction is not finite.
    """
    was_training = classifier.training
    classifier.eval()
    indices = range(group.rank, len(image_set), group.world)
    loader = DataLoader(
        CentreCrops(image_set, preprocessing, indices),
        batch_size,
        num_workers=workers,
        pin_memory=group.device.type == "cuda",
        worker_init_fn=init_worker,
    )
    sets = [chosen.to(group.device) for chosen in (torch.arange(classes), *among)]
    seen = torch.zeros(len(image_set), dtype=torch.int64)
    best = [torch.zeros(len(image_set), min(BEST, len(chosen)), dtype=torch.int64) for chosen in sets]
    scores = torch.zeros(len(image_set), classes) if scores_of is not None else None
    bar = tqdm(total=len(indices), unit="img", desc=title, leave=False, disable=None if group.is_first else True)
    with bar:
        for pixels, index in batches_of(loader):
            pixels = pixels.to(group.device, non_blocking=True)
            if attack is not None:
                epsilon, targets = attack
                pixels = fgsm(classifier, pixels, targets[index].to(group.device), epsilon, preprocessing)
            with autocast(group.device, autocast_dtype):
                logits = classifier(preprocessing.normalise(pixels))
            logits = logits.float()
            finite = logits.isfinite().all(1)
            if not finite.all():
                key = image_set.keys[int(index[int((~finite).int().argmax())])]
                raise InputError(
                    f"the model's prediction for {key} is not finite, so no figure would mean anything: its weights have"
                    " diverged, or half precision has overflowed (--no-amp)"
                )
            for chosen, best_of in zip(sets, best, strict=True):
                best_of[index] = top_classes(logits, chosen, best_of.shape[1]).cpu()
            if scores is not None:
                scores[index] = (logits.softmax(1) if scores_of == "ce" else logits.sigmoid()).cpu()
            seen[index] += 1
            bar.update(len(index))
    classifier.train(was_training)

    # Entries of images that other processes had are zero here, so sums put the parts together
    seen, *best = (group.sum(values.to(group.device)).cpu() for values in (seen, *best))
    assert bool((seen == 1).all()), "an image was left out or predicted twice"
    scores = None if scores is None else group.sum(scores.to(group.device)).cpu()
    return Predictions(best[0], scores, tuple(best[1:]))


def top_classes(logits: Tensor, chosen: Tensor, k: int) -> Tensor:
    """(B, C) logits -> (B, k) the best of the (S,) chosen classes, the best first; S may be C, in order."""
    if len(chosen) == logits.shape[1]:
        return logits.topk(k, dim=1).indices
    return chosen[logits[:, chosen].topk(k, dim=1).indices]
