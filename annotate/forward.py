"""Turn a batch of images into sparse labels on the device, at a batch size that fits in its memory.

Shapes: B images, S and T rows and columns of pixels, k classes kept per cell, H rows and W columns of the label map.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from annotate.convert import FullyConvolutional, out_of_memory_message
from annotate.sparsify import sparsify
from annotate.squash import Squash
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.stored import StoredLabels
from relabel.runtime.compiling import compile_failed, is_compile_error
from relabel.runtime.errors import InputError, out_of_memory
from relabel.runtime.precision import autocast, dtype_from_name

logger = logging.getLogger(__name__)

L = TypeVar("L", bound=StoredLabels, covariant=True)
Part = TypeVar("Part")
Samples = dict[str, Tensor]  # what decoding processes make of an image, by name; of a batch, with a row per image


class Forward(ABC, Generic[L]):
    """Labels a batch of samples when called. If a batch does not fit in memory, the batch size is halved for good.

    The labels do not depend on how images are batched, except for rounding: kernels are chosen by batch size. In float32 it
    is below 1e-5 of a logit, a hundredth of the rounding to the stored float16.
    """

    def __init__(self, name: str, models: Sequence[nn.Module], manifest: Manifest, batch_size: int) -> None:
        self.name, self.models, self.manifest, self.batch_size = name, models, manifest, batch_size
        self.device = next(models[0].parameters()).device

    @abstractmethod
    def sample(self, image: Image.Image, key: str) -> Samples:
        """What the models need to see of an image. Runs in decoding processes."""

    @abstractmethod
    def __call__(self, samples: Samples) -> list[L]:
        """The labels of a batch, in order, in one or several parts. They stay on the device and are not waited for.

        Raises:
            InputError: a single image does not fit in memory, or torch.compile fails at this batch size.
        """

    @property
    def images_at_once(self) -> int:
        """Images of a batch that the decoding processes prepare."""
        return self.batch_size

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the models at once, so that an error shows before the first image is read. Other batch sizes, such as
        that of a shard's last batch, are compiled when they first occur.

        Raises:
            InputError: torch.compile fails for this model, or on this machine.
        """
        for model in self.models:
            model.compile()
        grey = self.sample(Image.new("RGB", (64, 64)), "")
        try:
            self({name: torch.stack([tensor] * self.images_at_once) for name, tensor in grey.items()})
        except InputError:
            raise
        except Exception as error:  # some failures, such as a missing compiler, are not torch.compile's own
            raise compile_failed(self.name, error) from error

    def logits(self, model: nn.Module, images: Tensor, squash: Squash) -> Tensor:
        """The model's output for (B, 3, S, T) uint8 images, at the manifest's precision."""
        images = squash.normalise(images.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, dtype_from_name(self.manifest.precision)):
            logits: Tensor = model(images)
        return logits

    def in_parts(self, batches: Sequence[Tensor], compute: Callable[..., Part]) -> list[Part]:
        """`compute` of the batches, which have as many rows as one another, `batch_size` rows at a time."""
        while True:
            tried = min(self.batch_size, len(batches[0]))
            try:
                return [compute(*parts) for parts in zip(*(torch.split(b, self.batch_size) for b in batches), strict=True)]
            except Exception as error:
                if not out_of_memory(error):
                    if is_compile_error(error):
                        raise compile_failed(self.name, error) from error
                    raise
                if tried == 1:
                    raise InputError(
                        f"{out_of_memory_message(batches[0][:1], self.device, error)}; finished shards are kept"
                    ) from error
            # not inside `except`, where the exception would keep the batch's memory alive
            self.batch_size = tried // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(f"{self.device}: not enough memory for {tried} images at a time; using {self.batch_size}")


class MapForward(Forward[LabelMaps]):
    """Label maps of whole images, squashed to the annotator's input size."""

    def __init__(self, annotator: FullyConvolutional, squash: Squash, manifest: Manifest, batch_size: int) -> None:
        super().__init__(annotator.name, [annotator], manifest, batch_size)
        self.annotator, self.squash = annotator, squash

    def sample(self, image: Image.Image, key: str) -> Samples:
        return {"images": self.squash(image)}

    def __call__(self, samples: Samples) -> list[LabelMaps]:
        return self.in_parts([samples["images"]], self.label_maps)

    def label_maps(self, images: Tensor) -> LabelMaps:
        """(B, 3, S, T) uint8 -> label maps in the dtypes that shards store."""
        logits = self.logits(self.annotator, images, self.squash)
        return sparsify(logits, self.manifest.topk, self.manifest.tail).as_stored(self.manifest.num_classes)
