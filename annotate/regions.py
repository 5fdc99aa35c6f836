"""Regions: random crops of every image, each with a classifier's own answer to it, or the mean of several classifiers'.

A crop depends only on its image's key and its number. The crops of an image are cut from one decoded image.

Shapes: B images, N regions of an image, M = B * N crops, S and T rows and columns of pixels, C classes, k classes kept.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from annotate.convert import check_logits, size_errors
from annotate.forward import Forward, Samples
from annotate.sparsify import sparsify
from annotate.squash import Squash
from relabel.images.windows import Window, draw_window
from relabel.labels.manifest import Manifest
from relabel.labels.regions import MIRRORED, LabelRegions, SparseLogits
from relabel.runtime.defaults import HFLIP, Tail


@dataclass(frozen=True)
class CropClassifier:
    """A classifier that answers for crops.

    Attributes:
        model: (B, 3, S, T) normalised crops -> (B, C) logits.
        outputs: the outputs to store, in order; None for all.
    """

    name: str
    model: nn.Module
    squash: Squash
    outputs: list[int] | None = None


@torch.inference_mode()
def check_output(name: str, classifier: nn.Module, squash: Squash) -> None:
    """Raises InputError if the model cannot run at its input size, or has no logits there that say anything."""
    noise = torch.randn(2, 3, *squash.input_size, generator=torch.Generator().manual_seed(0))
    with size_errors(name, classifier, noise):
        logits = classifier(noise.to(next(classifier.parameters()).device))
    check_logits(name, logits)


def draw_regions(
    key: str,
    size: tuple[int, int],
    count: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float = HFLIP,
) -> list[tuple[Window, bool]]:
    """The windows of an image's first `count` regions, and whether each is mirrored.

    Args:
        size: width and height of the image in pixels.
        scale, ratio: as for RandomResizedCrop.
        hflip: probability of mirroring.
    """
    drawn = []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
        for number in range(count):
            seed = hashlib.sha256(f"{number}\n{key}".encode()).digest()[:4]  # torch's CPU generator uses 32 bits
            torch.default_generator.manual_seed(int.from_bytes(seed, "little"))
            drawn.append((draw_window(key, size, scale, ratio), torch.rand(()).item() < hflip))
    return drawn


def cut(image: Image.Image, window: Window, mirrored: bool, squash: Squash) -> Tensor:
    """(3, S, T) uint8: the window of an image as the classifier sees it."""
    pixels = squash(image.crop(window))
    return pixels.flip(-1) if mirrored else pixels


def pixels_of(squash: Squash) -> tuple[tuple[int, int], str]:
    """What the pixels of a crop depend on; mean and standard deviation are applied on the device."""
    return squash.input_size, squash.interpolation


class RegionForward(Forward[LabelRegions]):
    """The answers to N crops of each image. A batch has `batch_size` crops, or those of one image if there are more."""

    def __init__(self, teachers: Sequence[CropClassifier], manifest: Manifest, batch_size: int) -> None:
        name = " + ".join(teacher.name for teacher in teachers)
        super().__init__(name, [teacher.model for teacher in teachers], manifest, batch_size)
        self.teachers = teachers
        self.pixels = list(dict.fromkeys(pixels_of(teacher.squash) for teacher in teachers))  # models may share them

    @property
    def images_at_once(self) -> int:
        assert self.manifest.regions is not None
        return max(1, self.batch_size // self.manifest.regions)

    def sample(self, image: Image.Image, key: str) -> Samples:
        manifest = self.manifest
        assert manifest.regions and manifest.crop_scale and manifest.crop_ratio and manifest.hflip is not None
        drawn = draw_regions(key, image.size, manifest.regions, manifest.crop_scale, manifest.crop_ratio, manifest.hflip)
        windows = torch.tensor([window for window, _ in drawn], dtype=torch.float64)
        flags = torch.tensor([MIRRORED * mirrored for _, mirrored in drawn], dtype=torch.uint8)
        return self.cuts(image, drawn) | {"boxes": windows / torch.tensor([*image.size, *image.size]), "flags": flags}

    def cuts(self, image: Image.Image, drawn: Sequence[tuple[Window, bool]]) -> Samples:
        """The crops as the models see them: (N, 3, S, T) uint8 for each size and interpolation."""
        squashes = {pixels_of(teacher.squash): teacher.squash for teacher in self.teachers}
        return {
            f"crops {number}": torch.stack([cut(image, window, mirrored, squashes[pixels]) for window, mirrored in drawn])
            for number, pixels in enumerate(self.pixels)
        }

    def __call__(self, samples: Samples) -> list[LabelRegions]:
        boxes, flags = samples["boxes"], samples["flags"]
        crops = [samples[f"crops {number}"].flatten(0, 1) for number in range(len(self.pixels))]
        parts = self.in_parts(crops, self.answers)
        logits = SparseLogits(*(torch.cat([part.tensors()[name] for part in parts]) for name in SparseLogits.names()))
        scores, classes, tail = (t.unflatten(0, flags.shape) for t in logits.tensors().values())  # type: ignore[no-untyped-call]
        count = torch.full((len(flags),), flags.shape[1])
        regions = LabelRegions(boxes, flags, scores, classes, tail, count)
        return [regions.as_stored(self.manifest.num_classes)]

    def answers(self, *crops: Tensor) -> SparseLogits:
        """The sparse answers to (M, 3, S, T) uint8 crops, given for each of `pixels`."""
        return sparse_answers(self.log_probs(*crops), self.manifest.topk, self.manifest.tail)

    def log_probs(self, *crops: Tensor) -> Tensor:
        """(M, C) float32 log-probabilities of the same crops, the mean over the models."""
        of_models = []
        for teacher in self.teachers:
            images = crops[self.pixels.index(pixels_of(teacher.squash))]
            logits = self.logits(teacher.model, images, teacher.squash).float()
            if teacher.outputs is not None:
                logits = logits.index_select(1, torch.tensor(teacher.outputs, device=logits.device))
            of_models.append(logits.log_softmax(1))
        return torch.stack(of_models).mean(0)


def sparse_answers(log_probs: Tensor, topk: int, tail: Tail) -> SparseLogits:
    """Keep the k largest of (M, C) log-probabilities, or logits, and one value for the others; all less the largest.

    Args:
        tail: as for `sparsify`. With "logmeanexp" the k stored classes keep their probabilities exactly.
    """
    maps = sparsify(log_probs[:, :, None, None], topk, tail)
    scores, classes, rest = maps.scores[..., 0, 0], maps.classes[..., 0, 0], maps.tail[:, 0, 0]
    largest = scores[:, 0]
    return SparseLogits(scores - largest[:, None], classes, rest if topk == log_probs.shape[1] else rest - largest)
