"""Turn a timm classifier into a fully convolutional annotator, which predicts logits at every location of its feature map.

A linear head after average pooling is a 1x1 convolution before it (Yun et al. 2021, appendix A), so the mean of the logit
map equals the classifier's logits. Instead of rebuilding heads family by family, we pass every location to the model's own
head as a separate image: pooling over 1x1 is the identity, and the rest of the head then applies to that location.

How the map relates to the classifier's own logits is measured on a batch of noise, not looked up:

    exact      the mean of the map equals the logits: resnet, efficientnet, regnet, swin ...
    nonlinear  head(mean of locations) equals the logits, but the head is not linear, so the mean of the map is only close
               to them: convnext, mobilenetv3 ...
    dense      the model has a head for single locations (annotate/dense_heads.py), and computes its logits another way
    token      the head reads a class token, and the map is a projection that was never trained: rejected by default
    other      the head does not pool by averaging: rejected

Shapes: B images, S and T rows and columns of pixels, C classes, H rows and W columns of the map, F features.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from annotate.dense_heads import dense_head_of
from relabel.runtime.errors import InputError, first_line, out_of_memory

REJECTED = {
    "token": "its head reads a class token, so its patch tokens were never trained to predict classes",
    "other": "its head does not pool by averaging, so its output at a single location is not meaningful",
}
# Output sizes of timm's published CLIP image towers. Its published classifiers have 1,000 classes or more than 11,000.
EMBEDDINGS = (384, 512, 640, 768, 1024, 1152, 1280)
NO_CLASSES = "its output is an embedding to compare with text embeddings, not class logits"
TOLERANCE = 1e-2  # in standard deviations of the logits; rounding is below 1e-5, the gaps of other kinds are above 3e-2


class FullyConvolutional(nn.Module):
    """(B, 3, S, T) normalised images -> (B, C, H, W) logits; always in eval mode. Created by `fully_convolutional`.

    Attributes:
        kind: exact, nonlinear, dense, token or other, as measured.
        recentre: shift each class of the map so that its mean equals the classifier's logit.
        flip: average with the map of the mirrored image, mirrored back.
        outputs: (C,) int64 indices of the classifier outputs to return, in this order; None for all. Set by `select`.
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
        self.prefix_tokens = int(getattr(classifier, "num_prefix_tokens", has_class_token))  # coat and volo lack it
        self.dense_head = dense_head_of(classifier)

    def train(self, mode: bool = True) -> "FullyConvolutional":
        """Stay in eval mode: in train mode, batch norm would treat locations as a batch and update its statistics."""
        return super().train(False)

    def select(self, outputs: Sequence[int]) -> None:
        """Return only these outputs of the classifier, in this order."""
        self.outputs = torch.tensor(outputs, device=next(self.parameters()).device)

    def forward(self, images: Tensor) -> Tensor:
        if not self.flip:
            return self.logit_map(images)
        return (self.logit_map(images).float() + self.logit_map(images.flip(-1)).flip(-1).float()) / 2

    def logit_map(self, images: Tensor) -> Tensor:
        features = self.classifier.forward_features(images)  # type: ignore[operator]
        return self.map_from_features(features, images.shape)

    def map_from_features(self, features: Tensor, image_shape: torch.Size) -> Tensor:
        """Turn the output of `forward_features` for images of this shape into (B, C, H, W) logits."""
        locations = self.as_locations(features, image_shape)
        if self.dense_head is not None:
            logits = self.dense_head(locations)
        else:
            logits = self.apply_head(locations.flatten(0, 2), features.ndim).view(*locations.shape[:3], -1)
        logits = logits.permute(0, 3, 1, 2)
        if self.recentre:
            image_logits = self.classifier.forward_head(features).float()  # type: ignore[operator]
            logits = logits.float()  # autocast would round both the mean and the sum
            logits = logits + (image_logits - logits.mean((2, 3)))[:, :, None, None]
        return logits if self.outputs is None else logits.index_select(1, self.outputs)

    def as_locations(self, features: Tensor, image_shape: torch.Size) -> Tensor:
        """The features that the head would pool over, as (B, H, W, F).

        Raises:
            InputError: the features do not form a grid over the image.
        """
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"{self.name} cannot annotate: its features ({found}) are not a single feature map")
        if features.ndim == 4:
            return features if self.channels_last else features.permute(0, 2, 3, 1)
        tokens = features[:, self.prefix_tokens :]  # (B, H * W, F)
        count, (rows, columns) = tokens.shape[1], image_shape[-2:]
        if count <= 1:
            raise InputError(f"{self.name} cannot annotate: its features are a class token, not a feature map")
        height = round(math.sqrt(count * rows / columns))
        if height == 0 or count % height:
            raise InputError(
                f"{self.name} cannot annotate: its {count} tokens do not form a grid over {rows}x{columns} pixels"
            )
        return tokens.reshape(len(tokens), height, count // height, -1)

    def apply_head(self, locations: Tensor, feature_dims: int) -> Tensor:
        """(n, F) -> (n, C): apply the model's own head to each vector as if it were an image of one location."""
        if feature_dims == 3:  # fill prefix tokens with the same vector, in case the head reads them
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
    """Convert a trained timm classifier. It stays on its device.

    Args:
        classifier: a timm model with `forward_features`, `forward_head` and its trained weights.
        input_size: rows and columns of pixels; None for the model's native size.
        recentre, flip: see FullyConvolutional.
        class_token: also accept models of kind "token", whose maps are projections that were never trained.
    Returns:
        the annotator; its `kind` tells how its map relates to the classifier's logits.
    Raises:
        InputError: the model cannot annotate; the message gives its name and the reason.
    """
    annotator = FullyConvolutional(classifier)
    if not hasattr(classifier, "forward_features") or not hasattr(classifier, "forward_head"):
        raise InputError(
            f"{annotator.name} cannot annotate: it lacks forward_features or forward_head, which timm's models have"
        )
    size = input_size or native_size(classifier)
    device = next(classifier.parameters()).device
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    annotator.kind = measure_kind(annotator, noise)
    if annotator.kind in REJECTED and not (annotator.kind == "token" and class_token):
        hint = " (annotate --class-token uses it anyway)" if annotator.kind == "token" else ""
        raise InputError(
            f"{annotator.name} cannot annotate: {REJECTED[annotator.kind]}{hint}; choose a model with"
            " average pooling, such as tf_efficientnet_l2.ns_jft_in1k_475 or resnet50.a1_in1k"
        )
    annotator.recentre, annotator.flip = recentre, flip
    return annotator


def native_size(classifier: nn.Module) -> tuple[int, int]:
    """Rows and columns of pixels in the model's own timm settings."""
    rows, columns = resolve_model_data_config(classifier)["input_size"][-2:]
    return rows, columns


@torch.inference_mode()
def measure_kind(annotator: FullyConvolutional, images: Tensor) -> str:
    """Measure the kind on (B, 3, S, T) normalised images. Weights must be trained or random: a zero head gives no signal.

    Raises:
        InputError: the model cannot run on these images, its features do not form a grid, or its logits are constant.
    """
    with size_errors(annotator.name, annotator.classifier, images):
        features = annotator.classifier.forward_features(images)  # type: ignore[operator]
        return kind_from_features(annotator, features, images.shape)


@contextlib.contextmanager
def size_errors(name: str, classifier: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn whatever the model raises on (B, 3, S, T) images into an InputError that names their size."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # an unsupported size may raise anything
        if out_of_memory(error):
            raise InputError(out_of_memory_message(images, images.device, error)) from error
        size, native = ("x".join(map(str, hw)) for hw in (images.shape[-2:], native_size(classifier)))
        hint = f"; its native size is {native}, and some models accept only multiples of it or of their stride"
        raise InputError(
            f"{name} cannot annotate at {size} pixels: {first_line(error)}{hint if size != native else ''}"
        ) from error


def out_of_memory_message(images: Tensor, device: torch.device, error: BaseException) -> str:
    """For (B, 3, S, T) images that do not fit in the device's memory."""
    count = f"{len(images)} images" if len(images) > 1 else "a single image"
    return (
        f"{device}: not enough memory for {count} of {'x'.join(map(str, images.shape[-2:]))} pixels ({first_line(error)});"
        " use a smaller --input-size, another annotator, or another device"
    )


def check_logits(name: str, logits: Tensor) -> None:
    """Raises InputError if logits of noise show that a classifier's weights are damaged, or were never trained."""
    if not bool(logits.isfinite().all()):
        raise InputError(f"{name} cannot annotate: its logits are not finite, so its weights are damaged")
    if not float(logits.std()) > 0:
        raise InputError(f"{name} cannot annotate: its logits are all the same, so it was never trained")


def kind_from_features(annotator: FullyConvolutional, features: Tensor, image_shape: torch.Size) -> str:
    """Measure the kind on the features of images of this shape."""
    locations = annotator.as_locations(features, image_shape)
    if locations.shape[1:3] == (1, 1):
        size = "x".join(map(str, image_shape[-2:]))
        raise InputError(
            f"{annotator.name} cannot annotate at {size} pixels: its map is a single cell; use a larger --input-size"
        )
    logits = annotator.classifier.forward_head(features)  # type: ignore[operator]
    check_logits(annotator.name, logits)
    spread = float(logits.std())

    def near(a: Tensor, b: Tensor) -> bool:
        return float((a - b).abs().max()) <= TOLERANCE * spread

    mean_of_map = annotator.map_from_features(features, image_shape).mean((2, 3))
    if near(mean_of_map, logits):
        return "exact"
    if annotator.dense_head is not None:
        return "dense"
    logits_of_mean = annotator.apply_head(locations.mean((1, 2)), features.ndim)
    if near(logits_of_mean, logits):
        return "nonlinear"
    return "token" if near(mean_of_map, logits_of_mean) else "other"
