"""Create any timm classifier with the requested weights, or say what is wrong: for annotator, student and evaluation."""

import difflib
import re
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from relabel.models.weights import count_classes, load_weights, read_weights
from relabel.runtime.errors import InputError, first_line


def create_classifier(
    model: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    input_size: tuple[int, int] | None = None,
    new_head: bool = False,
    weights_option: str = "--checkpoint",
) -> nn.Module:
    """timm.create_model, with its errors and its silent replacements turned into messages.

    Args:
        model: a timm name ("resnet50.a1_in1k"), "hf-hub:owner/name" or "local-dir:folder".
        pretrained: load the published weights.
        checkpoint: load these weights instead: .safetensors, or a .pth of only weights (no code in it can run).
        num_classes: C; the model's default if None.
        input_size: rows and columns of the images in pixels; a model with a fixed input size is built for this one.
        new_head: reinitialise the head if the checkpoint has none or its class count differs.
        weights_option: the command-line option of `checkpoint`, for messages.
    Returns:
        the classifier in eval mode, on the CPU.
    Raises:
        InputError: there is no such model, its weights are not available, the checkpoint is of another architecture or class
            count, or the model cannot be built for the input size.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"--num-classes {num_classes}: expected at least 1")
    check_model_name(model, weights_option)
    kwargs: dict[str, Any] = {"num_classes": num_classes, **(model_kwargs or {})}
    if checkpoint is None:
        return create_timm_model(model, kwargs, pretrained, input_size, weights_option).eval()
    weights = read_weights(checkpoint)
    classifier = create_timm_model(model, kwargs, False, input_size, weights_option)
    try:
        load_weights(classifier, weights, checkpoint, model, new_head)
    except InputError as error:
        if not image_size_kwargs(model, input_size, kwargs):
            raise
        if not hasattr(classifier, "set_input_size"):
            raise InputError(f"{error}; if it was trained at another size, leave --input-size out") from error
        # Perhaps it was trained at the model's default size: timm resamples position embeddings, as for published weights.
        classifier = create_timm_model(model, kwargs, False, None, weights_option)
        load_weights(classifier, weights, checkpoint, model, new_head)
        classifier.set_input_size(img_size=input_size)  # type: ignore[operator]
    return classifier.eval()


def classes_in_checkpoint(
    checkpoint: Path, model: str, model_kwargs: dict[str, Any] | None = None, weights_option: str = "--checkpoint"
) -> int | None:
    """How many classes the head has in a checkpoint of a timm model; None if it holds no such head.

    Raises:
        InputError: there is no such model, or the checkpoint cannot be read.
    """
    check_model_name(model, weights_option)
    any_head = create_timm_model(model, {"num_classes": 2, **(model_kwargs or {})}, False, None, weights_option)
    return count_classes(any_head, read_weights(checkpoint), checkpoint)


def check_model_name(model: str, weights_option: str) -> None:
    if ":" in model or timm.is_model(model):
        return
    near = difflib.get_close_matches(model, timm.list_models(pretrained=True) + timm.list_models(), n=3, cutoff=0.5)
    hint = f" did you mean {', '.join(near)}?" if near else ""
    remedy = resnext_hint(model.split(".")[0], weights_option) or f"{hint} `timm.list_models()` lists them all".lstrip()
    raise InputError(f"timm has no model named {model!r}; {remedy}")


def create_timm_model(
    model: str, kwargs: dict[str, Any], published: bool, input_size: tuple[int, int] | None, weights_option: str
) -> nn.Module:
    """timm.create_model, with `input_size` for models that need to know it.

    Raises:
        InputError: timm cannot create the model, creates a different one, or creates one without classes.
    """
    if kwargs.get("in_chans", 3) != 3:
        raise InputError(f"in_chans={kwargs['in_chans']!r}: images are decoded as RGB, 3 channels; leave in_chans out")
    if kwargs.get("features_only"):
        raise InputError(f"features_only={kwargs['features_only']!r}: it builds a model without classes; leave it out")
    sized: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # silent replacements are rejected below
            sized = image_size_kwargs(model, input_size, kwargs)
            classifier: nn.Module = timm.create_model(model, pretrained=published, **kwargs, **sized)
    except TypeError as error:
        if sized:
            raise InputError(f"{model} has a fixed input size: leave --input-size out, or choose another model") from error
        raise InputError(f"{model} does not accept these --model-kwargs: {error}") from error
    except Exception as error:  # an unreachable hub raises a dozen exception types without a common base
        if published and can_create(model, kwargs | sized):
            reason = first_line(error).rstrip(".")
            raise InputError(
                f"cannot load the published weights of {model}: {reason}. Check the network (downloads are cached in"
                f" HF_HOME), or pass your own weights with {weights_option}"
            ) from error
        arguments = {name: value for name, value in (kwargs | sized).items() if value is not None and name != "num_classes"}
        raise InputError(f"timm cannot create {model} with {arguments or 'its defaults'}: {first_line(error)}") from error
    settings: Any = classifier.pretrained_cfg
    name, created = model.split(".")[0], settings.get("architecture")
    if ":" not in model and created not in (None, name):
        replacement = ".".join(filter(None, (created, settings.get("tag"))))
        hint = resnext_hint(name, weights_option) or f"pass {replacement} if that is what you want"
        raise InputError(f"timm creates {replacement} for {name}, which is a different model; {hint}")
    if not classifier.num_classes:
        raise InputError(
            f"{model} has no classes (num_classes is 0: it outputs features); pass weights that have by {weights_option}"
            " (annotate: with --num-classes)"
        )
    return classifier


def image_size_kwargs(model: str, input_size: tuple[int, int] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`img_size`, if the model is built for one image size and that is not its default; else nothing."""
    if input_size is None or "img_size" in kwargs:
        return {}
    resolved = timm.models.resolve_model_input_args(model, {"img_size": input_size}, **kwargs)
    if "img_size" not in resolved or tuple(resolved["pretrained_cfg"]["input_size"][-2:]) == input_size:
        return {}
    return {"img_size": input_size}


def resnext_hint(name: str, weights_option: str) -> str:
    """How to get a ResNeXt-101 that timm replaces by a narrower one or has no entry for; "" for any other name."""
    match = re.fullmatch(r"(?:ig_)?(resnext101_32x(\d+)d)", name)
    if match is None:
        return ""
    if timm.is_model(match[1]):
        return f"pass {match[1]}.fb_wsl_ig1b_ft_in1k if that is what you want"
    return f"pass resnext101_32x8d with --model-kwargs base_width={match[2]}, and its weights as {weights_option}"


def can_create(model: str, kwargs: dict[str, Any]) -> bool:
    """Whether timm can create the model with random weights, so that only the published weights are the problem."""
    if ":" in model:
        return model.startswith("hf-hub:")  # its definition is on the hub too
    try:
        timm.create_model(model, **kwargs)
    except Exception:
        return False
    return True


def check_image_size(classifier: nn.Module, model: str, size: int, setting: str) -> None:
    """Run a classifier in eval mode on one image of size x size pixels.

    Args:
        setting: the name of the size's setting, for the message.
    Raises:
        InputError: the classifier does not accept that size; many transformers accept only one.
    """
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{model} does not accept images of {setting} = {size} ({first_line(error)}); set {setting} to the size that it"
            f" is built for, or build it for this one: --model-kwargs img_size={size}"
        ) from error
