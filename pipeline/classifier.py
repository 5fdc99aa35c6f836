"""Create any timm classifier with the weights asked for, or refuse by name: annotator, student and evaluation alike."""

import ast
import difflib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import InputError, first_line

# What a number of numpy's is pickled as, by numpy 1 and 2: a learning rate that a schedule of numpy's has left beside the
# weights, as the reference's has. Nothing in it can run.
NUMPY_NUMBER: Any = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    (NUMPY_NUMBER, "numpy.core.multiarray.scalar"),
    (NUMPY_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def parse_model_kwargs(pairs: list[str], option: str = "--model-kwargs") -> dict[str, Any]:
    """KEY=VALUE arguments, as in timm's scripts: a value is a Python literal, or else a string.

    Raises:
        InputError: an argument without `=`.
    """
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"{option} {pair!r}: expected KEY=VALUE, such as output_stride=8")
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
    return kwargs


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
        checkpoint: load these weights instead: .safetensors, or .pth with weights alone (nothing is unpickled).
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
    name = model.split(".")[0] if ":" not in model else None
    if ":" not in model and not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(pretrained=True) + timm.list_models(), n=3, cutoff=0.5)
        hint = f" did you mean {', '.join(near)}?" if near else ""
        remedy = resnext_of_width(name) or f"{hint} `timm.list_models()` lists them all".lstrip()
        raise InputError(f"timm has no model named {model!r}; {remedy}")
    published = pretrained and checkpoint is None
    kwargs: dict[str, Any] = {"num_classes": num_classes, **(model_kwargs or {})}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # silent replacements are refused below
            sized = image_size_kwargs(model, input_size, kwargs)
            kwargs |= sized
            classifier: nn.Module = timm.create_model(model, pretrained=published, **kwargs)
    except TypeError as error:
        if "img_size" in kwargs and "img_size" not in (model_kwargs or {}):
            raise InputError(f"{model} has a fixed input size: leave --input-size out, or choose another model") from error
        raise InputError(f"{model} does not take these --model-kwargs: {error}") from error
    except Exception as error:  # a hub that cannot be reached has a dozen exception types, none in common
        if published and can_be_made(model, kwargs):
            reason = first_line(error).rstrip(".")
            raise InputError(
                f"cannot get the published weights of {model}: {reason}. Check the network (weights are kept in HF_HOME"
                f" once loaded), or pass your own with {weights_option}"
            ) from error
        given = {name: value for name, value in kwargs.items() if value is not None and name != "num_classes"}
        raise InputError(f"timm cannot make {model} with {given or 'its defaults'}: {first_line(error)}") from error
    settings: Any = classifier.pretrained_cfg
    made = settings.get("architecture")
    if name is not None and made is not None and made != name:
        replacement = ".".join(filter(None, (made, settings.get("tag"))))
        hint = resnext_of_width(name) or f"name {replacement} if that is what you want"
        raise InputError(f"timm makes {replacement} when asked for {name}, which is another; {hint}")
    if not classifier.num_classes:
        raise InputError(
            f"{model} has no classes (num_classes 0: its output is features); pass --num-classes and {weights_option}"
        )
    if checkpoint is not None:
        try:
            load_weights(classifier, checkpoint, model, new_head)
        except InputError as error:
            if not sized:
                raise
            if not hasattr(classifier, "set_input_size"):
                raise InputError(f"{error}; if that was at another size, leave --input-size out") from error
            # Trained at the model's own size, perhaps: timm resamples its positions, as it does with published weights.
            own = {"checkpoint": checkpoint, "num_classes": num_classes, "model_kwargs": model_kwargs, "new_head": new_head}
            classifier = create_classifier(model, **own)  # type: ignore[arg-type]
            classifier.set_input_size(img_size=input_size)  # type: ignore[operator]
    return classifier.eval()


def image_size_kwargs(model: str, input_size: tuple[int, int] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """img_size, where a model must know the size of its images when it is built and that is not its own size."""
    if input_size is None or "img_size" in kwargs:
        return {}
    resolved = timm.models.resolve_model_input_args(model, {"img_size": input_size}, **kwargs)
    if "img_size" not in resolved or tuple(resolved["pretrained_cfg"]["input_size"][-2:]) == input_size:
        return {}
    return {"img_size": input_size}


def resnext_of_width(name: str | None) -> str:
    """How to have a ResNeXt-101 that timm takes for a narrower one, or has no entry for; "" if `name` is none."""
    match = re.fullmatch(r"(?:ig_)?(resnext101_32x(\d+)d)", name or "")
    if match is None:
        return ""
    if timm.is_model(match[1]):
        return f"name {match[1]}.fb_wsl_ig1b_ft_in1k if that is what you want"
    return f"build it as resnext101_32x8d with --model-kwargs base_width={match[2]}, and its weights as --checkpoint"


def can_be_made(model: str, kwargs: dict[str, Any]) -> bool:
    """Whether timm makes the model with random weights, so that only the published ones are the trouble."""
    if ":" in model:
        return model.startswith("hf-hub:")  # its definition is on the hub too
    try:
        timm.create_model(model, **kwargs)
    except Exception:
        return False
    return True


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, through timm: EMA weights if it has them, without `module.` prefixes, never unpickled.

    Raises:
        InputError: missing, or no weights file.
    """
    if not checkpoint.is_file():
        hub = "; a model on the hub is named as the model" if str(checkpoint).startswith("hf-hub:") else ""
        raise InputError(f"checkpoint {checkpoint} does not exist{hub}")
    refuse_damaged(checkpoint)
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            loaded = timm.models.load_state_dict(str(checkpoint), weights_only=True)
    except Exception as error:  # torch and safetensors have a dozen types for a damaged file, none in common
        raise InputError(
            f"{checkpoint} is cut short, no weights file, or holds more than weights ({first_line(error)}); expected"
            " .safetensors, or .pth saved from a state_dict"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{checkpoint} holds no state_dict of tensors")
    loaded.pop("n_averaged", None)  # torch.optim.swa_utils counts in it, beside the averaged weights
    return loaded


def load_weights(classifier: nn.Module, checkpoint: Path, model: str, new_head: bool = False) -> None:
    """Load a checkpoint of `model`; with `new_head`, a head of other classes is left as it was made.

    Raises:
        InputError: missing, no weights file, or its tensors are not those of `model`.
    """
    own, loaded = classifier.state_dict(), read_weights(checkpoint)
    if new_head:
        head = head_names(classifier)
        if any(name not in loaded or loaded[name].shape != own[name].shape for name in head):
            loaded = {**loaded, **{name: own[name] for name in head}}
    missing, surplus = own.keys() - loaded.keys(), loaded.keys() - own.keys()
    if missing or surplus:
        examples = ", ".join(sorted(missing)[:2] + sorted(surplus)[:2])
        raise InputError(
            f"{checkpoint} is no checkpoint of {model}: {len(missing)} of {len(own)} tensors missing, {len(surplus)} unknown"
            f" (such as {examples}); give the model it was trained as, with its --model-kwargs"
        )
    for name, tensor in own.items():
        if tensor.shape != loaded[name].shape:
            head = tensor.ndim and tensor.shape[1:] == loaded[name].shape[1:] and tensor.shape[0] == classifier.num_classes
            remedy = (
                f"it has {len(loaded[name])} classes: pass --num-classes {len(loaded[name])}, or as many class folders"
                if head
                else "give the model it was trained as"
            )
            raise InputError(
                f"{checkpoint}: {name} is {list(loaded[name].shape)}, {model} with {classifier.num_classes} classes needs"
                f" {list(tensor.shape)}; {remedy}"
            )
    classifier.load_state_dict(loaded)


def refuse_damaged(checkpoint: Path) -> None:
    """Compare the checksums that torch.save has put into a file: torch.load does not, and one flipped byte is enough.

    Raises:
        InputError: a record of the file is not what was written. (.safetensors and files of before 2020 have no checksums.)
    """
    try:
        with zipfile.ZipFile(checkpoint) as records:
            damaged = records.testzip()
    except Exception:  # no zip file, or not even that any more: what reads it says so
        return
    if damaged is not None:
        raise InputError(f"{checkpoint} is damaged: {damaged} in it is not what was saved (CRC-32); get or make it anew")


def head_names(classifier: nn.Module) -> list[str]:
    """The tensors of the classifier's last layers, the only ones that depend on the number of classes."""
    heads: Any = classifier.get_classifier()  # type: ignore[operator]
    heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    heads.append(getattr(classifier, "aux_head", None))  # VOLO's of its patch tokens, which get_classifier leaves out
    prefixes = [name for name, module in classifier.named_modules() if any(module is head for head in heads)]
    return [name for name in classifier.state_dict() if any(name.startswith(f"{prefix}.") for prefix in prefixes)]


def choose_device(device: str | None) -> torch.device:
    """The device named, or CUDA where there is one, else the CPU.

    Raises:
        InputError: torch does not know or does not see that device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # else pinning memory would open a context on the first one too
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not to be had: {first_line(error)}") from error
    return chosen
