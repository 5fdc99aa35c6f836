"""Turn a timm classifier into a fully convolutional annotator: one vector of logits per location of its feature map.

A linear head after average pooling is a 1x1 convolution before it (Yun et al. 2021, appendix A), so the mean of the logit
map equals the classifier's logits. Instead of rebuilding heads family by family, every location is given to the model's
own head as an image of its own: pooling over 1x1 is the identity, and whatever follows it is applied per location.

How the map relates to the classifier's own logits is measured on a batch of noise, not looked up:

    exact      the mean of the map is the logits: resnet, efficientnet, regnet, swin ...
    nonlinear  head(mean of locations) is, but the head is not linear: convnext, mobilenetv3 ...; the map's mean is near
    dense      a head of the model's own names every location (annotate/dense_heads.py); the logits come from elsewhere
    token      the head reads a class token; the map is a projection that nobody trained: refused unless asked for
    other      the head pools in a way of its own: refused

Shapes: B images, S and T rows and columns of pixels, C classes, H rows and W columns of the map, F features.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from annotate.dense_heads import dense_head_of
from annotate.memory import out_of_memory_message
from relabel.runtime.errors import InputError, first_line, out_of_memory

REFUSED = {
    "token": "its head reads a class token, so its patch tokens were never trained to name what they show",
    "other": "its head pools locations in a way of its own, so a map of single locations is not what it computes",
}
# Outputs of timm's published CLIP image towers; its published classifiers have 1,000 classes or more than 11,000
EMBEDDINGS = (384, 512, 640, 768, 1024, 1152, 1280)
NO_CLASSES = "its outputs are an embedding, made to be compared with that of a text, and no classes"
TOLERANCE = 1e-2  # of the logits' standard deviation; rounding is below 1e-5 of it, the gaps of other kinds above 3e-2


class FullyConvolutional(nn.Module):
    """(B, 3, S, T) normalised images -> (B, C, H, W) logits; always in eval mode. Made by `fully_convolutional`.

    Attributes:
        kind: exact, nonlinear, dense, token or other, as measured.
        recentre: add to every class what its map's mean lacks of the classifier's logit, so that the mean is exact.
        flip: average with the map of the mirrored image, mirrored back.
        outputs: (C,) int64 which of the classifier's outputs to give, in this order; all of them if None. Set by `select`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        self.name = str((getattr(classifier, "pretrained_cfg", None) or {}).get("architecture") or type(classifier).__name__)
        self.kind = ""
        self.recentre = self.flip = False
        self.outputs: Tensor | None = None
        self.channels_last = str(getattr(classifier, "output_fmt", "NCHW")).endswith("NHWC")
        has_class_token = any("cls_token" in name for name, _ in classifier.named_parameters())
        self.prefix_tokens = int(getattr(classifier, "num_prefix_tokens", has_class_token))  # coat and volo do not say
        self.dense_head = dense_head_of(classifier)

    def train(self, mode: bool = True) -> "FullyConvolutional":
        """Stay in eval mode: in train mode batch norm would take locations for a batch, and change its statistics."""
        return super().train(False)

    def select(self, outputs: Sequence[int]) -> None:
        """Give only these of the classifier's outputs, in this order."""
        self.outputs = torch.tensor(outputs, device=next(self.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        if not self.flip:
            return self.logit_map(images)
        return (self.logit_map(images).float() + self.logit_map(images.flip(-1)).flip(-1).float()) / 2

    def logit_map(self, images: Tensor) -> Tensor:
        return self.map_of(self.classifier.forward_features(images), images.shape)  # type: ignore[operator]

    def map_of(self, features: Tensor, image_shape: torch.Size) -> Tensor:
        """The classifier's own features of images of that shape -> (B, C, H, W) logits."""
        locations = self.as_locations(features, image_shape)
        if self.dense_head is not None:
            logits = self.dense_head(locations)
        else:
            logits = self.apply_head(locations.flatten(0, 2), features.ndim).view(*locations.shape[:3], -1)
        logits = logits.permute(0, 3, 1, 2)
        if self.recentre:
            of_image = self.classifier.forward_head(features).float()  # type: ignore[operator]
            logits = logits.float()  # under autocast a mean would be rounded, and sums too
            logits = logits + (of_image - logits.mean((2, 3)))[:, :, None, None]
        return logits if self.outputs is None else logits.index_select(1, self.outputs)

    def as_locations(self, features: Tensor, image_shape: torch.Size) -> Tensor:
        """What the head would pool over, as (B, H, W, F).

        Raises:
            InputError: the features form no grid over the image.
        """
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"{self.name} cannot annotate: its features ({found}) are not one map over the image")
        if features.ndim == 4:
            return features if self.channels_last else features.permute(0, 2, 3, 1)
        tokens = features[:, self.prefix_tokens :]  # (B, H * W, F)
        count, (rows, columns) = tokens.shape[1], image_shape[-2:]
        if count <= 1:
            raise InputError(f"{self.name} cannot annotate: its features are a class token, not a map over the image")
        height = round(math.sqrt(count * rows / columns))
        if height == 0 or count % height:
            raise InputError(f"{self.name} cannot annotate: its {count} tokens form no grid over {rows}x{columns} pixels")
        return tokens.reshape(len(tokens), height, count // height, -1)

    def apply_head(self, locations: Tensor, feature_dims: int) -> Tensor:
        """(n, F) -> (n, C): the model's own head, with each vector as an image of one location."""
        if feature_dims == 3:  # prefix tokens, if the head reads them, hold the location's own vector
            features = locations.unsqueeze(1).expand(-1, self.prefix_tokens + 1, -1)
        else:
            features = locations[:, None, None, :] if self.channels_last else locations[:, :, None, None]
        logits: Tensor = self.classifier.forward_head(features)  # type: ignore[operator]
        return logits


def fully_convolutional(
    classifier: nn.Module,
    input_size: tuple[int, int] | None = None,
    *,
    recentre: bool = False,
    flip: bool = False,
    class_token: bool = False,
) -> FullyConvolutional:
    """Convert a trained timm classifier, on whatever device it is.

    Args:
        classifier: a timm model with `forward_features`, `forward_head` and its trained weights.
        input_size: rows and columns of pixels to run it at; its own setting if None.
        recentre, flip: see FullyConvolutional.
        class_token: take models of kind "token" too, whose maps are projections that nobody trained.
    Returns:
        the annotator; its `kind` tells how its map relates to the classifier's logits.
    Raises:
        InputError: the model cannot annotate; the message names it and the reason.
    """
    annotator = FullyConvolutional(classifier)
    if not hasattr(classifier, "forward_features") or not hasattr(classifier, "forward_head"):
        raise InputError(
            f"{annotator.name} cannot annotate: it has no forward_features and forward_head, as timm's models do"
        )
    size = input_size or native_size(classifier)
    device = next(classifier.parameters()).device
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    annotator.kind = measure_kind(annotator, noise)
    if annotator.kind in REFUSED and not (annotator.kind == "token" and class_token):
        hint = " (--class-token takes it all the same)" if annotator.kind == "token" else ""
        raise InputError(
            f"{annotator.name} cannot annotate: {REFUSED[annotator.kind]}{hint}; choose a model that pools its map on"
            " average, such as tf_efficientnet_l2.ns_jft_in1k_475 or resnet50.a1_in1k"
        )
    annotator.recentre, annotator.flip = recentre, flip
    return annotator


def native_size(classifier: nn.Module) -> tuple[int, int]:
    """Rows and columns of pixels that the model was made for."""
    rows, columns = resolve_model_data_config(classifier)["input_size"][-2:]
    return rows, columns


@torch.inference_mode()
def measure_kind(annotator: FullyConvolutional, images: Tensor) -> str:
    """Measure the kind on (B, 3, S, T) normalised images. Weights must be trained or random: a zero head hides all.

    Raises:
        InputError: the model cannot run on these images, its features form no grid, or its logits are constant.
    """
    with size_errors(annotator, images):
        features = annotator.classifier.forward_features(images)  # type: ignore[operator]
        return kind_from_features(annotator, features, images.shape)


@contextlib.contextmanager
def size_errors(annotator: FullyConvolutional, images: Tensor) -> Iterator[None]:
    """Within, what a model raises at (B, 3, S, T) images becomes an InputError that names their size."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what a model makes of a size that it was not made for is not listed anywhere
        if out_of_memory(error):
            raise InputError(out_of_memory_message(images, images.device, error)) from error
        asked, own = ("x".join(map(str, size)) for size in (images.shape[-2:], native_size(annotator.classifier)))
        hint = (
            f"; its own size is {own}, and some models take multiples of it or of their stride only" if asked != own else ""
        )
        raise InputError(f"{annotator.name} cannot annotate at {asked} pixels: {first_line(error)}{hint}") from error


def kind_from_features(annotator: FullyConvolutional, features: Tensor, image_shape: torch.Size) -> str:
    """The kind, measured on features of images of that shape."""
    locations = annotator.as_locations(features, image_shape)
    if locations.shape[1:3] == (1, 1):
        size = "x".join(map(str, image_shape[-2:]))
        raise InputError(
            f"{annotator.name} cannot annotate at {size} pixels: its map is a single cell; use a larger --input-size"
        )
    logits = annotator.classifier.forward_head(features)  # type: ignore[operator]
    if not bool(logits.isfinite().all()):
        raise InputError(f"{annotator.name} cannot annotate: its logits are not finite, so its weights are damaged")
    spread = float(logits.std())
    if not spread > 0:
        raise InputError(f"{annotator.name} cannot annotate: it gives every class the same logit, so it was never trained")

    def near(a: Tensor, b: Tensor) -> bool:
        return float((a - b).abs().max()) <= TOLERANCE * spread

    mean_of_map = annotator.map_of(features, image_shape).mean((2, 3))
    if near(mean_of_map, logits):
        return "exact"
    if annotator.dense_head is not None:
        return "dense"
    of_mean = annotator.apply_head(locations.mean((1, 2)), features.ndim)
    if near(of_mean, logits):
        return "nonlinear"
    return "token" if near(mean_of_map, of_mean) else "other"
