"""Classifier weights: read every common form of checkpoint without running code in it; and find where weights came from."""

import argparse
import contextlib
import itertools
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, BinaryIO

import huggingface_hub
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from relabel.runtime.errors import InputError, first_line

PICKLES = 5  # in a file of torch.save's old format: magic number, protocol, machine, content, names of the storages
MAX_INSTRUCTIONS = 5_000_000  # of a pickle; a thousand tensors with an optimizer's state take a hundred thousand
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".bin")  # that timm loads from a folder
AVERAGED_NAME = re.compile(  # as a word of its own: matches state_dict_ema, modelEMA and emaModel; not semantic, not SCHEMA
    r"(?<![A-Za-z])(ema|swa|averaged|polyak|shadow)(?![a-z])"
    r"|(?<![A-Z])(EMA|SWA|Ema|Swa|Averaged|Polyak|Shadow)(?![a-z])"
)
BATCH_COUNT = "num_batches_tracked"  # of batch norm: old torch does not save it, and no prediction depends on it

# Types that a checkpoint may contain beside tensors; none can run code. NumPy scalars, as NumPy 1 and 2 pickle them: the
# reference implementation saves a learning rate as one. A Namespace: timm saves its arguments in one.
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
SAFE_GLOBALS: list[Any] = [
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    argparse.Namespace,
]


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by name, without the prefixes of torch.compile and DistributedDataParallel. Runs no code in it.

    Args:
        checkpoint: .safetensors, or what torch.save wrote: a state_dict, or a dict that contains one under any name,
            perhaps inside a second dict. Of several, averaged weights come first (`ema` in the name), then `state_dict`,
            then `model`.
    Raises:
        InputError: the file is missing, not a weights file, contains several sets of weights under other names, or averaged
            weights in a form that cannot be read.
    """
    check_checkpoint_file(checkpoint)
    check_zip_checksums(checkpoint)
    try:
        if checkpoint.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(checkpoint)
        else:
            loaded = load_weights_only(checkpoint)
    except Exception as error:  # torch and safetensors raise a dozen types for a damaged file
        raise InputError(
            f"{checkpoint} is truncated, not a weights file, or contains more than weights"
            f" ({load_failure_reason(checkpoint, error)}); expected .safetensors, or a .pth saved from a state_dict"
        ) from error
    if not is_state_dict(loaded):
        entries = named_entries(loaded)
        outer = {name: value for name, value in entries.items() if is_state_dict(value)}
        inner = {
            f"{outside}.{name}": value
            for outside, content in entries.items()
            if outside not in outer
            for name, value in named_entries(content).items()
            if is_state_dict(value)
        }
        averaged_inner = {name: value for name, value in inner.items() if AVERAGED_NAME.search(name)}
        sets = outer | averaged_inner or inner
        if not sets:
            raise InputError(f"{checkpoint} contains no state_dict of tensors")
        chosen = select_state_dict(sets, checkpoint)
        unread = None if AVERAGED_NAME.search(chosen) else averaged_tensors(loaded)
        if unread is not None:
            raise InputError(
                f"{checkpoint} has averaged weights under {unread}, in a form that cannot be read, beside {chosen}; save the"
                " set that you want as a state_dict of its own"
            )
        loaded = sets[chosen]
    weights: dict[str, Tensor] = timm.models.clean_state_dict(loaded)
    weights.pop("n_averaged", None)  # a counter that torch.optim.swa_utils stores beside the averaged weights
    for name, tensor in weights.items():
        if problem := odd_storage(tensor):
            raise InputError(f"{checkpoint}: {name} is {problem}; expected a state_dict of dense tensors")
    return weights


def named_entries(loaded: object) -> dict[str, Any]:
    return {name: value for name, value in loaded.items() if isinstance(name, str)} if isinstance(loaded, dict) else {}


def averaged_tensors(content: object) -> str | None:
    """The first name in nested dicts that means an average and holds tensors, such as callbacks.ema; None without one."""
    for name, value in named_entries(content).items():
        if AVERAGED_NAME.search(name) and holds_tensors(value):
            return name
        inner = None if is_state_dict(value) else averaged_tensors(value)  # names within a module mean something else
        if inner is not None:
            return f"{name}.{inner}"
    return None


def holds_tensors(content: object) -> bool:
    """Whether these dicts and lists hold a tensor that is not one number, such as a decay."""
    if isinstance(content, Tensor):
        return content.ndim > 0
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return any(map(holds_tensors, values))


def load_weights_only(path: Path) -> Any:
    """Read what torch.save wrote, without running any code in it."""
    with path.open("rb") as file:
        check_pickle_size(file)
    with torch.serialization.safe_globals(SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_pickle_size(file: BinaryIO) -> None:
    """Counts the instructions in what torch.save wrote, before torch follows them: each may make an object.

    Raises:
        Oversized: there are more than any checkpoint of tensors has, or the records unpack to more than the file.
    """
    streams: list[IO[bytes]] = [file]
    if zipfile.is_zipfile(file):
        records = zipfile.ZipFile(file)
        check_unpacked_size(records)
        streams = [records.open(name) for name in records.namelist() if name.endswith(".pkl")]
    for stream in streams:
        stream.seek(0)
        with contextlib.suppress(ValueError, EOFError, IndexError, struct.error):  # damaged: torch reports it
            for _ in range(PICKLES):
                if sum(1 for _ in itertools.islice(pickletools.genops(stream), MAX_INSTRUCTIONS)) == MAX_INSTRUCTIONS:
                    raise Oversized(f"it makes more than {MAX_INSTRUCTIONS} objects")


def check_unpacked_size(records: zipfile.ZipFile) -> None:
    """Adds up the sizes of a file's records, before any of them is unpacked: torch.save compresses none.

    Raises:
        Oversized: together they are larger than the file: compressed, or several in the same place.
    """
    assert records.fp is not None
    unpacked, size = sum(record.file_size for record in records.infolist()), records.fp.seek(0, os.SEEK_END)
    if unpacked > size:
        raise Oversized(f"its records unpack to {unpacked} bytes and the file has {size}; torch.save compresses nothing")


class Oversized(Exception):
    """A file that would fill the memory with more than the weights in it."""


def check_checkpoint_file(path: Path) -> None:
    """Raises InputError if there is no such file."""
    if path.is_file():
        return
    if path.exists():
        raise InputError(f"checkpoint {path} is {'a folder' if path.is_dir() else 'not a regular file'}; name a file")
    hint = "; pass a model on the hub as the model's name instead" if str(path).startswith("hf-hub:") else ""
    raise InputError(f"checkpoint {path} does not exist{hint}")


def odd_storage(tensor: Tensor) -> str | None:
    """Why a tensor is not an ordinary array of numbers, all of which were in its file; None if it is one."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"not dense ({tensor.layout})"
    if tensor.is_complex():
        return "complex"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "an expanded view of fewer numbers"
    return None


def load_failure_reason(checkpoint: Path, error: Exception) -> str:
    """Why torch did not load it: what it contains that is refused, such as a whole model's classes; else torch's error."""
    # Fails on files in the old format and on truncated ones. What we allow is not listed
    with contextlib.suppress(Exception), torch.serialization.safe_globals(SAFE_GLOBALS):
        if classes := torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint):
            return f"it contains {', '.join(sorted(classes)[:3])}{', ...' if len(classes) > 3 else ''}"
    return torch_reason(error)


def torch_reason(error: Exception) -> str:
    """One line of torch's message, without its advice to load the file unsafely."""
    if unpickling := re.search(r"WeightsUnpickler error: *(.*)", str(error)):
        return first_line(ValueError(unpickling[1])).rstrip(". ")
    if "weights_only" in str(error):
        return "it contains more than tensors, or is not a file of torch.save"
    return first_line(error)


def is_state_dict(loaded: object) -> bool:
    return (
        isinstance(loaded, dict)
        and len(loaded) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items())
    )


def select_state_dict(names: Collection[str], checkpoint: Path) -> str:
    """Choose the classifier's weights from several sets, by name.

    Raises:
        InputError: the names do not decide.
    """
    averaged = [name for name in names if AVERAGED_NAME.search(name)]
    usual = [name for name in ("state_dict", "model") if name in names][:1]
    candidates = averaged or usual or list(names)
    if len(candidates) > 1:
        raise InputError(
            f"{checkpoint} contains several sets of weights ({', '.join(candidates)}); save only the classifier's"
        )
    return candidates[0]


def load_weights(
    classifier: nn.Module, weights: dict[str, Tensor], checkpoint: Path, model: str, new_head: bool = False
) -> None:
    """Load weights into a classifier; with `new_head`, keep the classifier's own head if the checkpoint's does not fit.

    Args:
        checkpoint, model: where the weights come from, and the classifier's name; for messages.
    Raises:
        InputError: the tensors are not those of the classifier.
    """
    own = classifier.state_dict()
    head = head_tensor_names(classifier) if new_head else []
    counts = {name for name in own if name.endswith(BATCH_COUNT)}
    loaded = strip_wrapper_prefix(weights, own.keys() - set(head) - counts, checkpoint)
    norms = {name for name in counts if f"{name.removesuffix(BATCH_COUNT)}running_mean" in loaded}
    loaded = {name: own[name] for name in norms} | loaded
    if any(name not in loaded or loaded[name].shape != own[name].shape for name in head):
        loaded = {**loaded, **{name: own[name] for name in head}}
    missing, surplus = own.keys() - loaded.keys(), loaded.keys() - own.keys()
    if missing or surplus:
        examples = ", ".join(sorted(missing)[:2] + sorted(surplus)[:2])
        raise InputError(
            f"{checkpoint} is not a checkpoint of {model}: {len(missing)} of {len(own)} tensors missing, {len(surplus)}"
            f" unknown (such as {examples}); pass the model it was trained as, with its --model-kwargs"
        )
    for name, tensor in own.items():
        if tensor.shape != loaded[name].shape:
            same_inputs = tensor.ndim and tensor.shape[1:] == loaded[name].shape[1:]
            remedy = (
                f"it has {len(loaded[name])} classes: use as many class folders (annotate: or pass --num-classes"
                f" {len(loaded[name])})"
                if same_inputs and tensor.shape[0] == classifier.num_classes
                else "pass the model it was trained as"
            )
            raise InputError(
                f"{checkpoint}: {name} is {list(loaded[name].shape)}, {model} with {classifier.num_classes} classes needs"
                f" {list(tensor.shape)}; {remedy}"
            )
        if tensor.is_floating_point() and tensor.isfinite().all() and not loaded[name].float().isfinite().all():
            raise InputError(
                f"{checkpoint}: {name} has values that are not finite, so what {model} predicts with it means nothing; use"
                " weights that were saved before the training diverged"
            )
    classifier.load_state_dict(loaded)


def count_classes(classifier: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> int | None:
    """How many classes the classifier's head has in these weights; None if it is not in them."""
    names = [name for name in classifier.state_dict() if not name.endswith(BATCH_COUNT)]
    loaded = strip_wrapper_prefix(weights, names, checkpoint)
    counts = {len(loaded[name]) for name in head_tensor_names(classifier) if name in loaded and loaded[name].ndim}
    return counts.pop() if len(counts) == 1 else None


def strip_wrapper_prefix(weights: dict[str, Tensor], wanted: Collection[str], checkpoint: Path) -> dict[str, Tensor]:
    """The classifier's weights without the prefix of a module that trained it, and without that module's other tensors.

    A LightningModule, for example, saves "model.conv1.weight", beside tensors of its loss.
    """
    some_name = next(iter(wanted))
    prefixes = [name.removesuffix(some_name) for name in weights if name.endswith(f".{some_name}")]
    complete = [prefix for prefix in prefixes if all(f"{prefix}{name}" in weights for name in wanted)]
    if not complete or all(name in weights for name in wanted):
        return weights
    prefix = select_state_dict([prefix.removesuffix(".") for prefix in complete], checkpoint) + "."
    averaged = [name for name in weights if not name.startswith(prefix) and AVERAGED_NAME.search(name)]
    if not AVERAGED_NAME.search(prefix) and len(averaged) > len(wanted) // 2:  # fewer are a loss's or a codebook's own
        raise InputError(
            f"{checkpoint} has averaged weights such as {averaged[0]}, in a form that cannot be read, beside those under"
            f" {prefix.removesuffix('.')}; save the set that you want as a state_dict of its own"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_zip_checksums(checkpoint: Path) -> None:
    """Verify the checksums that torch.save wrote into a file. torch.load does not, and one flipped byte changes a weight.

    Raises:
        InputError: a record of the file is damaged, or unpacks to more than the file. (.safetensors files, and files from
            before 2020, have no checksums.)
    """
    try:
        with zipfile.ZipFile(checkpoint) as records:
            check_unpacked_size(records)
            damaged = records.testzip()
    except Oversized as error:
        raise InputError(f"{checkpoint} is not a weights file: {error}. Save the weights again with torch.save") from error
    except Exception:  # not a zip file, or too damaged for one: reading the weights reports it
        return
    if damaged is not None:
        raise InputError(
            f"{checkpoint} is damaged: its record {damaged} fails the CRC-32 check; download or create it again"
        )


def head_tensor_names(classifier: nn.Module) -> list[str]:
    """The tensors of the classifier's last layers, the only ones whose shapes depend on the number of classes."""
    heads: Any = classifier.get_classifier()  # type: ignore[operator]
    heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    heads.append(getattr(classifier, "aux_head", None))  # VOLO's head for patch tokens, which get_classifier omits
    prefixes = [name for name, module in classifier.named_modules() if any(module is head for head in heads)]
    return [name for name in classifier.state_dict() if any(name.startswith(f"{prefix}.") for prefix in prefixes)]


def weights_in_folder(model: str) -> Path | None:
    """The weights file of "local-dir:FOLDER", which may change while its name stays; None for other models.

    Raises:
        InputError: there are several files, and none has a name that timm prefers.
    """
    scheme, _, folder = model.partition(":")
    if scheme != "local-dir":
        return None
    files = sorted(file for file in Path(folder).glob("*") if file.suffix in WEIGHT_SUFFIXES)
    safetensors_, pickled = Path(folder, "model.safetensors"), Path(folder, "pytorch_model.bin")
    for preferred in (safetensors_, pickled):  # in timm's order
        if preferred in files:
            return preferred
    if len(files) > 1:
        raise InputError(
            f"{folder} contains several weights files ({', '.join(file.name for file in files)}); keep only one, or rename"
            f" the right one to {safetensors_.name} if it is safetensors, else to {pickled.name}"
        )
    return next(iter(files), None)


def weights_from_hub(classifier: nn.Module) -> Path | None:
    """The file in the Hugging Face cache from which timm loaded published weights; None if they came from elsewhere.

    The weights behind a name on the hub may change too.
    """
    settings: dict[str, Any] = classifier.pretrained_cfg  # type: ignore[assignment]
    repository, _, revision = (settings.get("hf_hub_id") or "").partition("@")
    if not repository:
        return None
    named = settings.get("hf_hub_filename")
    names = (str(Path(named).with_suffix(".safetensors")), named) if named else ("model.safetensors", "pytorch_model.bin")
    for name in names:  # in timm's order
        found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a relabel checkpoint.

    Raises:
        InputError: the file is missing, damaged, or not written by relabel.
    """
    check_checkpoint_file(path)
    check_zip_checksums(path)
    try:
        content = load_weights_only(path)
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise InputError(f"{path} is damaged, or contains more than weights ({load_failure_reason(path, error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} contains a {type(content).__name__}, not a checkpoint")
    return content
