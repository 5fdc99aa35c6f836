"""Create any timm classifier with the weights asked for, or refuse by name: annotator, student and evaluation alike."""

import difflib
import re
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from relabel.models.weights import load_weights, read_weights
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
        checkpoint: load these weights instead: .safetensors, or .pth with weights alone (no code in it can run).
        num_classes: C; the model's own number if None.
        input_size: rows and columns of pixels it will run at; a model of a fixed input size is built for them.
        new_head: the checkpoint may be of another class count, or of none; the head is then random, as timm makes it.
        weights_option: how the command line names `checkpoint`, for messages.
    Returns:
        the classifier in eval mode, on the CPU.
    Raises:
        InputError: no such model, weights not to be had, a checkpoint of another architecture or class count, or an input
            size that the model cannot be built for.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"--num-classes {num_classes}: expected at least 1")
    check_model_name(model)
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
            raise InputError(f"{error}; if that was at another size, leave --input-size out") from error
        # Trained at the model's own size, perhaps: timm resamples its positions, as it does with published weights.
        classifier = create_timm_model(model, kwargs, False, None, weights_option)
        load_weights(classifier, weights, checkpoint, model, new_head)
        classifier.set_input_size(img_size=input_size)  # type: ignore[operator]
    return classifier.eval()


def check_model_name(model: str) -> None:
    if ":" in model or timm.is_model(model):
        return
    near = difflib.get_close_matches(model, timm.list_models(pretrained=True) + timm.list_models(), n=3, cutoff=0.5)
    hint = f" did you mean {', '.join(near)}?" if near else ""
    remedy = resnext_hint(model.split(".")[0]) or f"{hint} `timm.list_models()` lists them all".lstrip()
    raise InputError(f"timm has no model named {model!r}; {remedy}")


def create_timm_model(
    model: str, kwargs: dict[str, Any], published: bool, input_size: tuple[int, int] | None, weights_option: str
) -> nn.Module:
    """timm.create_model, for images of `input_size` where the model must know it.

    Raises:
        InputError: timm cannot make it, makes another in its place, or makes one without classes.
    """
    sized: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # silent replacements are refused below
            sized = image_size_kwargs(model, input_size, kwargs)
            classifier: nn.Module = timm.create_model(model, pretrained=published, **kwargs, **sized)
    except TypeError as error:
        if sized:
            raise InputError(f"{model} has a fixed input size: leave --input-size out, or choose another model") from error
        raise InputError(f"{model} does not take these --model-kwargs: {error}") from error
    except Exception as error:  # a hub that cannot be reached has a dozen exception types, none in common
        if published and can_create(model, kwargs | sized):
            reason = first_line(error).rstrip(".")
            raise InputError(
                f"cannot get the published weights of {model}: {reason}. Check the network (weights are kept in HF_HOME"
                f" once loaded), or pass your own with {weights_option}"
            ) from error
        given = {name: value for name, value in (kwargs | sized).items() if value is not None and name != "num_classes"}
        raise InputError(f"timm cannot make {model} with {given or 'its defaults'}: {first_line(error)}") from error
    settings: Any = classifier.pretrained_cfg
    name, made = model.split(".")[0], settings.get("architecture")
    if ":" not in model and made not in (None, name):
        replacement = ".".join(filter(None, (made, settings.get("tag"))))
        hint = resnext_hint(name) or f"name {replacement} if that is what you want"
        raise InputError(f"timm makes {replacement} when asked for {name}, which is another; {hint}")
    if not classifier.num_classes:
        raise InputError(
            f"{model} has no classes (num_classes 0: its output is features); pass --num-classes and {weights_option}"
        )
    return classifier


def image_size_kwargs(model: str, input_size: tuple[int, int] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """img_size, where a model must know the size of its images when it is built and that is not its own size."""
    if input_size is None or "img_size" in kwargs:
        return {}
    resolved = timm.models.resolve_model_input_args(model, {"img_size": input_size}, **kwargs)
    if "img_size" not in resolved or tuple(resolved["pretrained_cfg"]["input_size"][-2:]) == input_size:
        return {}
    return {"img_size": input_size}


def resnext_hint(name: str) -> str:
    """How to have a ResNeXt-101 that timm takes for a narrower one, or has no entry for; "" if `name` is none."""
    match = re.fullmatch(r"(?:ig_)?(resnext101_32x(\d+)d)", name)
    if match is None:
        return ""
    if timm.is_model(match[1]):
        return f"name {match[1]}.fb_wsl_ig1b_ft_in1k if that is what you want"
    return f"build it as resnext101_32x8d with --model-kwargs base_width={match[2]}, and its weights as --checkpoint"


def can_create(model: str, kwargs: dict[str, Any]) -> bool:
    """Whether timm makes the model with random weights, so that only the published ones are the trouble."""
    if ":" in model:
        return model.startswith("hf-hub:")  # its definition is on the hub too
    try:
        timm.create_model(model, **kwargs)
    except Exception:
        return False
    return True


def check_image_size(classifier: nn.Module, model: str, size: int, setting: str) -> None:
    """Show a classifier in eval mode one image of size x size pixels.

    Raises:
        InputError: it takes no images of that size, as many transformers take one size alone; `setting` is what to set.
    """
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{model} takes no images of {setting} = {size} ({first_line(error)}); set {setting} to the size that it is"
            f" made for, or make it for another: --model-kwargs img_size={size}"
        ) from error
