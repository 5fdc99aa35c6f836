"""Turn a batch of images into sparse label maps on the device, at a batch size that fits in its memory.

Shapes: B images, S and T rows and columns of pixels, k classes kept per cell, H rows and W columns of the label map.
"""

import logging

import torch
from torch import Tensor

from annotate.convert import FullyConvolutional, out_of_memory_message
from annotate.sparsify import sparsify
from annotate.squash import Squash
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.runtime.compiling import compile_failed, is_compile_error
from relabel.runtime.errors import InputError, out_of_memory
from relabel.runtime.precision import autocast, dtype_from_name

logger = logging.getLogger(__name__)


class Forward:
    """Annotates (B, 3, S, T) uint8 images when called. If a batch does not fit in memory, the batch size is halved for good.

    The maps do not depend on how images are batched, except for rounding: kernels are chosen by batch size. In float32 it is
    below 1e-5 of a logit, a hundredth of the rounding to the stored float16.
    """

    def __init__(self, annotator: FullyConvolutional, squash: Squash, manifest: Manifest, batch_size: int) -> None:
        self.annotator, self.squash, self.manifest = annotator, squash, manifest
        self.batch_size = batch_size
        self.device = next(annotator.parameters()).device

    def __call__(self, images: Tensor) -> list[LabelMaps]:
        """The maps of these images, in order, in one or several parts. They stay on the device and are not waited for.

        Raises:
            InputError: a single image does not fit in memory, or torch.compile fails at this batch size.
        """
        while True:
            tried = min(self.batch_size, len(images))
            try:
                return [self.label_maps(part) for part in torch.split(images, self.batch_size)]
            except Exception as error:
                if not out_of_memory(error):
                    if is_compile_error(error):
                        raise compile_failed(self.annotator.name, error) from error
                    raise
                if tried == 1:
                    raise InputError(
                        f"{out_of_memory_message(images[:1], self.device, error)}; finished shards are kept"
                    ) from error
            # not inside `except`, where the exception would keep the batch's memory alive
            self.batch_size = tried // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(f"{self.device}: not enough memory for {tried} images at a time; using {self.batch_size}")

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the annotator at once, so that an error shows before the first image is read. Other batch sizes, such as
        that of a shard's last batch, are compiled when they first occur.

        Raises:
            InputError: torch.compile fails for this annotator, or on this machine.
        """
        self.annotator.compile()
        try:
            self(torch.zeros(self.batch_size, 3, *self.squash.input_size, dtype=torch.uint8))
        except InputError:
            raise
        except Exception as error:  # some failures, such as a missing compiler, are not torch.compile's own
            raise compile_failed(self.annotator.name, error) from error

    def label_maps(self, images: Tensor) -> LabelMaps:
        """(B, 3, S, T) uint8 -> label maps in the dtypes that shards store."""
        images = images.to(self.device, non_blocking=True)
        images = self.squash.normalise(images).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, dtype_from_name(self.manifest.precision)):
            logits = self.annotator(images)
        return sparsify(logits, self.manifest.topk, self.manifest.tail).as_stored(self.manifest.num_classes)
