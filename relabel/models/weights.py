"""Weights of classifiers: read from the forms in which people save them, running no code; and which file they came from."""

import argparse
import contextlib
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from relabel.runtime.errors import InputError, first_line

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin")  # what timm loads from a folder
AVERAGED_NAME = re.compile(r"(?<![a-z])ema(?![a-z])", re.IGNORECASE)  # state_dict_ema, net_ema; not semantic

# What a number of numpy's is pickled as, by numpy 1 and 2: a learning rate that a schedule of numpy's has left beside the
# weights, as the reference's has. Neither this nor what timm keeps its arguments in can run code.
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
SAFE_GLOBALS: list[Any] = [
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    argparse.Namespace,
]


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, without the prefixes of torch.compile and DistributedDataParallel. No code in it runs.

    Args:
        checkpoint: .safetensors, or what torch.save has written: a state_dict, or a dict that holds one under any name. Of
            several, the averaged one is taken (`ema` in its name), else `state_dict` or `model`.
    Raises:
        InputError: missing, no weights file, or several sets of weights of which none is named so.
    """
    if not checkpoint.is_file():
        hub = "; a model on the hub is named as the model" if str(checkpoint).startswith("hf-hub:") else ""
        raise InputError(f"checkpoint {checkpoint} does not exist{hub}")
    check_zip_checksums(checkpoint)
    try:
        if checkpoint.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(checkpoint)
        else:
            loaded = load_weights_only(checkpoint)
    except Exception as error:  # torch and safetensors have a dozen types for a damaged file, none in common
        raise InputError(
            f"{checkpoint} is cut short, not a weights file, or holds more than weights"
            f" ({load_failure_reason(checkpoint, error)}); expected .safetensors, or .pth saved from a state_dict"
        ) from error
    if not is_state_dict(loaded):
        entries = loaded.items() if isinstance(loaded, dict) else ()
        within = [name for name, value in entries if isinstance(name, str) and is_state_dict(value)]
        if not within:
            raise InputError(f"{checkpoint} holds no state_dict of tensors")
        loaded = loaded[select_state_dict(within, checkpoint)]
    weights: dict[str, Tensor] = timm.models.clean_state_dict(loaded)
    weights.pop("n_averaged", None)  # torch.optim.swa_utils counts in it, beside the averaged weights
    return weights


def load_weights_only(path: Path) -> Any:
    """What torch.save has written, where reading it takes no code but torch's own."""
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_failure_reason(checkpoint: Path, error: Exception) -> str:
    """Why torch would not load it: the classes in it that no weights have, such as a whole model's, or else its error."""
    with contextlib.suppress(Exception):  # in a file of the old form, or a torn one, it finds nothing
        if classes := torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint):
            return f"it holds {', '.join(sorted(classes)[:3])}{', ...' if len(classes) > 3 else ''}"
    return first_line(error)


def is_state_dict(loaded: object) -> bool:
    return (
        isinstance(loaded, dict)
        and len(loaded) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items())
    )


def select_state_dict(names: Collection[str], checkpoint: Path) -> str:
    """Which of several sets of weights is the classifier's.

    Raises:
        InputError: none of them is named as such, or two are.
    """
    averaged = [name for name in names if AVERAGED_NAME.search(name)]
    usual = [name for name in ("state_dict", "model") if name in names][:1]
    meant = averaged or usual or list(names)
    if len(meant) > 1:
        raise InputError(f"{checkpoint} holds several sets of weights ({', '.join(meant)}); save the classifier's alone")
    return meant[0]


def load_weights(
    classifier: nn.Module, weights: dict[str, Tensor], checkpoint: Path, model: str, new_head: bool = False
) -> None:
    """Load what was read from a checkpoint of `model`; with `new_head`, a head of other classes is left as it was made.

    Raises:
        InputError: the tensors are not those of `model`.
    """
    own = classifier.state_dict()
    head = head_tensor_names(classifier) if new_head else []
    loaded = strip_wrapper_prefix(weights, own.keys() - set(head), checkpoint)
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
            same_inputs = tensor.ndim and tensor.shape[1:] == loaded[name].shape[1:]
            remedy = (
                f"it has {len(loaded[name])} classes: pass --num-classes {len(loaded[name])}, or as many class folders"
                if same_inputs and tensor.shape[0] == classifier.num_classes
                else "give the model it was trained as"
            )
            raise InputError(
                f"{checkpoint}: {name} is {list(loaded[name].shape)}, {model} with {classifier.num_classes} classes needs"
                f" {list(tensor.shape)}; {remedy}"
            )
    classifier.load_state_dict(loaded)


def strip_wrapper_prefix(weights: dict[str, Tensor], wanted: Collection[str], checkpoint: Path) -> dict[str, Tensor]:
    """The same weights, or, where the classifier was part of a module that trained it, those under its name alone: a
    LightningModule's are called "model.conv1.weight", beside what its loss may hold."""
    some_name = next(iter(wanted))
    prefixes = [name.removesuffix(some_name) for name in weights if name.endswith(f".{some_name}")]
    whole = [prefix for prefix in prefixes if all(f"{prefix}{name}" in weights for name in wanted)]
    if not whole or all(name in weights for name in wanted):
        return weights
    prefix = select_state_dict([prefix.removesuffix(".") for prefix in whole], checkpoint) + "."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_zip_checksums(checkpoint: Path) -> None:
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


def head_tensor_names(classifier: nn.Module) -> list[str]:
    """The tensors of the classifier's last layers, the only ones that depend on the number of classes."""
    heads: Any = classifier.get_classifier()  # type: ignore[operator]
    heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    heads.append(getattr(classifier, "aux_head", None))  # VOLO's of its patch tokens, which get_classifier leaves out
    prefixes = [name for name, module in classifier.named_modules() if any(module is head for head in heads)]
    return [name for name in classifier.state_dict() if any(name.startswith(f"{prefix}.") for prefix in prefixes)]


def weights_in_folder(model: str) -> Path | None:
    """The file of weights of "local-dir:FOLDER", None of another model: they may change under the same name.

    Raises:
        InputError: there are several, and none has the name that timm looks for first.
    """
    scheme, _, folder = model.partition(":")
    if scheme != "local-dir":
        return None
    files = sorted(file for file in Path(folder).glob("*") if file.suffix in WEIGHT_SUFFIXES)
    safetensors_, pickled = Path(folder, "model.safetensors"), Path(folder, "pytorch_model.bin")
    for first in (safetensors_, pickled):  # timm's order
        if first in files:
            return first
    if len(files) > 1:
        raise InputError(
            f"{folder} holds several files of weights ({', '.join(file.name for file in files)}); leave one, or call the one"
            f" that is meant {safetensors_.name} if it is safetensors, else {pickled.name}"
        )
    return next(iter(files), None)


def weights_from_hub(classifier: nn.Module) -> Path | None:
    """The file of published weights that timm has loaded, in the cache of the Hugging Face hub; None if not from there.

    What a hub calls by one name may change too.
    """
    settings: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    repository, _, revision = (settings.get("hf_hub_id") or "").partition("@")
    if not repository:
        return None
    named = settings.get("hf_hub_filename")
    names = (str(Path(named).with_suffix(".safetensors")), named) if named else ("model.safetensors", "pytorch_model.bin")
    for name in names:  # timm's order
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours.

    Raises:
        InputError: missing, damaged, or not written by relabel.
    """
    check_zip_checksums(path)
    try:
        content = load_weights_only(path)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged, or no checkpoint of weights alone ({load_failure_reason(path, error)})"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content
