"""One training step: from a batch of crops on the device to new weights.

Label maps add one gather and one pooling, both on the device. Neither host nor device waits for the other, unless the
optimizer does: timm's AdamP fetches numbers to decide by, up to twice for each weight tensor. The training loop and
benchmarks/training_step.py run this same code.

Shapes: B crops of a batch, C classes, S pixels of a crop's side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relabel.models.preprocessing import Preprocessing, normalise
from relabel.runtime.compiling import compile_failed, is_compile_error
from relabel.runtime.errors import InputError
from relabel.runtime.precision import autocast
from train.augment import augment
from train.crops import Crops
from train.cutmix import draw_paste
from train.loss import loss_with_tokens
from train.recipe import Recipe
from train.supervision import Supervision

Output = Tensor | tuple[Tensor, Tensor]
Forward = Callable[[Tensor], Output]


def compiled(model: nn.Module) -> Forward:
    """The model's forward pass by torch.compile, which compiles it on the first call.

    Raises:
        InputError: on that call, if torch cannot compile this model or finds no compiler on this machine.
    """
    forward = torch.compile(model)

    def checked(batch: Tensor) -> Output:
        try:
            output: Output = forward(batch)
        except Exception as error:
            if is_compile_error(error):
                raise compile_failed("the model", error) from error
            raise
        return output

    return checked


@dataclass(frozen=True)
class TrainingStep:
    """Forward, loss, backward, update.

    Attributes:
        forward: the model in training mode, compiled or not: (B, 3, S, S) -> (B, C) logits, and token logits if any.
        scaler: scales the loss where gradients would vanish in float16; does nothing if not enabled.
        autocast_dtype: what the forward pass computes in; float32 if None.
    """

    forward: Forward
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    targets: Supervision
    preprocessing: Preprocessing
    recipe: Recipe
    autocast_dtype: torch.dtype | None

    def __call__(self, crops: Crops, step: int, epoch: int) -> Tensor:
        """Train on a batch; step and epoch are counted from 0.

        Returns:
            (3,) float64 on the device: number of crops, sum of their losses, number of those whose top-1 class is right.
        """
        pixels = augment(crops.images, crops.mirrored, crops.draws, self.recipe)
        paste = draw_paste(step, epoch, pixels, self.recipe)
        if paste is not None:
            paste.paste_into(pixels)
        target, token_target = self.targets(crops, pixels, paste)
        batch = normalise(pixels, self.preprocessing.mean, self.preprocessing.std).contiguous(
            memory_format=torch.channels_last
        )
        output = self.run_forward(batch)
        loss, logits = loss_with_tokens(output, target, token_target, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            right = (logits.argmax(1) == crops.targets).sum()
            return torch.stack([torch.full_like(loss, len(batch)), loss * len(batch), right]).double()

    def run_forward(self, batch: Tensor) -> Output:
        """(B, 3, S, S) normalised crops -> the student's output.

        Raises:
            InputError: batch norm has a single value per channel.
        """
        try:
            with autocast(batch.device, self.autocast_dtype):
                return self.forward(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"a process has a batch of {len(batch)}, and the model's last features are one cell: batch norm needs"
                f" more than one value per channel. Set a batch_size above {self.recipe.batch_size}, or a larger image_size"
            ) from error
