"""Ask a classifier about a few crops of another project's store, to see that the labels belong to them.

A list of images in another order, crops drawn with other settings, and samples that mix two images leave no trace in a
store. But a crop's own label then suits the classifier's answer to it no better than the label of another crop does.

Shapes: C classes, k classes stored per region.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from annotate.config import AnnotateConfig
from annotate.interchange.image_regions import ImageRegions, RegionStore
from annotate.manifests import num_outputs
from annotate.models import load_classifier, with_card
from annotate.regions import CropClassifier, check_output, cut
from relabel.images.image_set import ImageSet
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC
from relabel.runtime.errors import InputError

SAMPLE = 64  # images to ask about
MIN_IMAGES = 8
MIN_STANDARD_ERRORS = 3.0  # of the mean difference; chance exceeds it about once in 300 times


@dataclass(frozen=True)
class Sampled:
    """A region of an image: the classifier's answer to it, and the stored label of it and of another region.

    Attributes:
        probs: (C,) of the classifier.
        own, other: classes (k,) and probabilities (k,). `other` is of the same image, None if it has one region.
    """

    probs: np.ndarray
    own: tuple[np.ndarray, np.ndarray]
    other: tuple[np.ndarray, np.ndarray] | None

    def distance(self, label: tuple[np.ndarray, np.ndarray]) -> float:
        """Between the classifier's and a label's probabilities, summed over the label's classes."""
        classes, probs = label
        return float(np.abs(self.probs[classes] - probs).sum())


def check_agreement(
    store: RegionStore, image_set: ImageSet, config: AnnotateConfig, num_classes: int, device: torch.device
) -> str:
    """Compare a sample of the labels with a classifier's answers; returns the figures.

    Args:
        config: the classifier that made the store, or one that is as good.
    Raises:
        InputError: the labels do not suit their own crops better than those of other images, or of other crops.
    """
    teacher = load_teacher(config, num_classes, device)
    sample = torch.randperm(len(image_set), generator=torch.Generator().manual_seed(0))[:SAMPLE].tolist()
    sampled = [s for s in (ask(teacher, store, image_set, index, device) for index in sample) if s is not None]
    if len(sampled) < MIN_IMAGES:
        raise InputError(
            f"--model checks labels of at least {MIN_IMAGES} images that have crops of unchanged colours, and found"
            f" {len(sampled)}; leave it out to import without a check"
        )
    own = np.array([s.distance(s.own) for s in sampled])
    of_images = np.array(
        [s.distance(neighbour.own) for s, neighbour in zip(sampled, sampled[1:] + sampled[:1], strict=True)]
    )
    figures = f"{teacher.name}'s answers differ from their crops' labels by {own.mean():.4f}"
    figures += f", from another image's by {of_images.mean():.4f}"
    if not_larger(of_images - own):
        raise InputError(
            f"the labels do not suit their images ({figures}, {len(sampled)} images): the store numbers other images, or in"
            " another order, or has other classes. Pass the images that it was made from, or a --model that knows them"
        )
    pairs = [(s.distance(s.own), s.distance(s.other)) for s in sampled if s.other is not None]
    if len(pairs) >= MIN_IMAGES:
        of_crops = np.array(pairs)
        figures += f", from another crop's of the same image by {of_crops[:, 1].mean():.4f}"
        if not_larger(of_crops[:, 1] - of_crops[:, 0]):
            raise InputError(
                f"the labels suit their images, but not their crops ({figures}, {len(pairs)} images): the crops were drawn"
                " with other settings, the images have changed their size, or samples mix two images. Or the --model cannot"
                " tell crops apart; without it the import is not checked"
            )
    return f"{figures} (sums of |dp|, means over {len(sampled)} images)"


def load_teacher(config: AnnotateConfig, num_classes: int, device: torch.device) -> CropClassifier:
    config, card = with_card(config)
    classifier, squash = load_classifier(config, device, card)
    check_output(config.model, classifier, squash)
    if num_outputs(classifier) != num_classes:
        raise InputError(
            f"--model {config.model} has {num_outputs(classifier)} classes, and --num-classes is {num_classes}; pass a model"
            " of the same classes"
        )
    return CropClassifier(config.model, classifier.eval(), squash)


@torch.inference_mode()
def ask(
    teacher: CropClassifier, store: RegionStore, image_set: ImageSet, index: int, device: torch.device
) -> Sampled | None:
    """The first region of an image whose colours were not changed; None if there is none."""
    with image_set.open_image(index) as encoded:
        regions = store.read(index, (encoded.width, encoded.height))
        image, _ = encoded.decode()
    plain = (regions.flags & (PHOTOMETRIC | ERASED) == 0).nonzero()[0].tolist()
    if not plain:
        return None
    first, last = plain[0], plain[-1]
    x0, y0, x1, y1 = regions.boxes[first].astype(int).tolist()
    crop = cut(image, (x0, y0, x1, y1), bool(regions.flags[first] & MIRRORED), teacher.squash)
    logits = teacher.model(teacher.squash.normalise(crop.unsqueeze(0).to(device)))
    other = label(regions, last) if last != first else None
    return Sampled(logits.float().softmax(1)[0].cpu().numpy(), label(regions, first), other)


def label(regions: ImageRegions, number: int) -> tuple[np.ndarray, np.ndarray]:
    return regions.classes[number], regions.probs[number]


def not_larger(differences: np.ndarray) -> bool:
    """Whether the mean of these differences is not clearly above 0."""
    standard_error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return not float(differences.mean()) > MIN_STANDARD_ERRORS * standard_error
