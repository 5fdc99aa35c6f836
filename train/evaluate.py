"""Evaluate a classifier on an image folder: top-1, top-5, and accuracy against all the classes that an image shows.

Shapes: B images, C classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipeline.distributed import Processes
from pipeline.errors import InputError
from pipeline.images import ImageSet, batches_of, leave_signals_to_the_main_process


@dataclass(frozen=True)
class View:
    """How an image is shown to the classifier: a centre crop of `crop` of the shorter side, `size` pixels square."""

    size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_mode: str = "center"  # timm's: center, squash or border


class CentreCrops(Dataset[tuple[Tensor, int]]):
    """((3, size, size) normalised image, index) of the folder's images."""

    def __init__(self, folder: ImageSet, view: View, indices: range) -> None:
        self.folder, self.indices = folder, indices
        self.transform = create_transform(
            (3, view.size, view.size),
            is_training=False,
            interpolation=view.interpolation,
            mean=view.mean,
            std=view.std,
            crop_pct=view.crop,
            crop_mode=view.crop_mode,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        index = self.indices[i]
        return self.transform(self.folder.read(index)), index


def read_multilabels(path: Path, folder: ImageSet) -> Tensor:
    """(N, C) bool: which classes each image of the folder shows.

    The file is JSON: {"images": {KEY: {"classes": [NAME, ...]}}}, a key for every image of the folder.

    Raises:
        InputError: no such file, another layout, an image without an entry, or a class that is no folder.
    """
    try:
        images = json.loads(path.read_text())["images"]
        classes_of = {key: images[key]["classes"] for key in folder.keys if key in images}
    except FileNotFoundError as error:
        raise InputError(f"labels JSON {path} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} is not {{"images": {{KEY: {{"classes": [NAME, ...]}}}}}}: {type(error).__name__} {error}'
        ) from error
    missing = [key for key in folder.keys if key not in classes_of]
    if missing:
        raise InputError(f"{path} says nothing of {len(missing)} of {len(folder)} images (first: {', '.join(missing[:3])})")
    number = {name: i for i, name in enumerate(folder.classes)}
    shown = torch.zeros(len(folder), len(folder.classes), dtype=torch.bool)
    for i, key in enumerate(folder.keys):
        for name in classes_of[key]:
            if name not in number:
                raise InputError(f"{path}: {key} shows {name!r}, which is no class folder of {folder.source}")
            shown[i, number[name]] = True
    return shown


@torch.inference_mode()
def evaluate(
    classifier: nn.Module,
    folder: ImageSet,
    view: View,
    group: Processes,
    *,
    multilabels: Tensor | None = None,
    batch_size: int = 256,
    workers: int = 0,
    amp: bool = False,
) -> dict[str, Any]:
    """Count right answers over all images, each once however many processes share the work.

    Args:
        classifier: (B, 3, size, size) -> (B, C); put in eval mode and left in the mode it came in.
        multilabels: (N, C) bool from `read_multilabels`.
    Returns:
        images, top1, top5 (of all, in percent; top5 only for more than 5 classes) and, with multilabels,
        multilabel_accuracy: percent of images whose top-1 class is among those shown, as in ReaL (Beyer et al. 2020).
    """
    was_training = classifier.training
    classifier.eval()
    indices = range(group.rank, len(folder), group.world)
    loader = DataLoader(
        CentreCrops(folder, view, indices),
        batch_size,
        num_workers=workers,
        pin_memory=group.device.type == "cuda",
        worker_init_fn=leave_signals_to_the_main_process,
    )
    targets = torch.from_numpy(folder.targets)
    right = torch.zeros(4, dtype=torch.float64, device=group.device)  # images, top-1, top-5, multi-label
    bar = tqdm(total=len(indices), unit="img", desc="eval", leave=False, disable=None if group.is_first else True)
    with bar:
        for images, index in batches_of(loader):
            images = images.to(group.device, non_blocking=True)
            with torch.autocast(group.device.type, torch.bfloat16, enabled=amp):
                logits = classifier(images)
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
            hits = ranked == targets[index].to(group.device).unsqueeze(1)
            right[0] += len(index)
            right[1] += hits[:, 0].sum()
            right[2] += hits.any(1).sum()
            if multilabels is not None:
                right[3] += multilabels[index, ranked[:, 0].cpu()].sum()
            bar.update(len(index))
    classifier.train(was_training)
    images_seen, top1, top5, multi = group.sum(right).tolist()
    result: dict[str, Any] = {"images": int(images_seen), "top1": round(100 * top1 / images_seen, 4)}
    if len(folder.classes) > 5:
        result["top5"] = round(100 * top5 / images_seen, 4)
    if multilabels is not None:
        result["multilabel_accuracy"] = round(100 * multi / images_seen, 4)
    return result


def refuse_other_classes(folder: ImageSet, classes: tuple[str, ...], whose: str) -> None:
    """Raises InputError where the folder's class names are not those that a model was trained with, in order."""
    if folder.classes == classes:
        return
    if len(folder.classes) != len(classes):
        raise InputError(f"{folder.source} has {len(folder.classes)} class folders, {whose} was trained with {len(classes)}")
    differing = [f"{a} is not {b}" for a, b in zip(folder.classes, classes, strict=True) if a != b]
    raise InputError(f"{folder.source} has other classes than {whose}: {'; '.join(differing[:3])}")
