"""A batch of images to sparse label maps, on the device, at a batch size that fits its memory.

Shapes: B images, S and T rows and columns of pixels, k classes kept per cell, H rows and W columns of the label map.
"""

import logging

import torch
from torch import Tensor

from annotate.convert import FullyConvolutional
from annotate.memory import out_of_memory_message
from annotate.sparsify import sparsify
from annotate.squash import Squash
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.runtime.compiling import compile_failed, is_compile_error
from relabel.runtime.errors import InputError, out_of_memory
from relabel.runtime.precision import autocast, dtype_from_name

logger = logging.getLogger(__name__)


class Forward:
    """Calling it annotates (B, 3, S, T) uint8 images; once a batch did not fit the device's memory, in halves of it.

    The maps do not depend on where a batch is cut, up to the rounding of kernels that are chosen by its size (below 1e-5 of
    a logit in float32, a hundredth of what storing float16 costs).
    """

    def __init__(self, annotator: FullyConvolutional, squash: Squash, manifest: Manifest, batch_size: int) -> None:
        self.annotator, self.squash, self.manifest = annotator, squash, manifest
        self.batch_size = batch_size
        self.device = next(annotator.parameters()).device

    def __call__(self, images: Tensor) -> list[LabelMaps]:
        """The maps of these images, in order, in one part or several, still on the device: the host does not wait here.

        Raises:
            InputError: a single image does not fit, or torch.compile does not work for batches of this size.
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
            # outside of `except`, which would keep the batch's memory alive
            self.batch_size = tried // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(f"{self.device} has no memory for {tried} images at a time: going on with {self.batch_size}")

    @torch.inference_mode()
    def compile(self) -> None:
        """Compile the annotator, so that what cannot be compiled is known before the first image. Batches of another size,
        such as a shard's last one, are compiled when they come.

        Raises:
            InputError: torch.compile does not work for this annotator, or on this machine.
        """
        self.annotator.compile()
        try:
            self(torch.zeros(self.batch_size, 3, *self.squash.input_size, dtype=torch.uint8))
        except InputError:
            raise
        except Exception as error:  # a missing compiler, an operator it does not know: not all of them are torch.compile's
            raise compile_failed(self.annotator.name, error) from error

    def label_maps(self, images: Tensor) -> LabelMaps:
        """(B, 3, S, T) uint8 -> label maps in the stored types."""
        images = images.to(self.device, non_blocking=True)
        images = self.squash.normalise(images).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, dtype_from_name(self.manifest.precision)):
            logits = self.annotator(images)
        return sparsify(logits, self.manifest.topk, self.manifest.tail).as_stored(self.manifest.num_classes)
