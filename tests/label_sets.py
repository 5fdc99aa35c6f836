"""Label sets with the maps a test wants, written by the project's own writer; and images that only have names."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.keys import Keys, encode_keys
from relabel.images.sources import path_in_folder
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions
from relabel.labels.shard_lines import append_shard_line
from relabel.labels.shards import write_shard


def named_images(classes: tuple[str, ...], keys: Sequence[str], targets: list[int]) -> ImageSet:
    """Images by name alone, where none of them is read."""
    encoded = encode_keys(keys)
    return ImageSet("images", classes, Keys(encoded), np.array(targets), encoded, functools.partial(path_in_folder, Path()))


def manifest_of(keys: Sequence[str], stored: LabelMaps | LabelRegions, num_classes: int, **changes: Any) -> Manifest:
    if isinstance(stored, LabelRegions):
        _, regions, topk = stored.scores.shape
        of_kind: dict[str, Any] = {"topk": topk, "grid": None, "regions": regions, "tail": "logmeanexp"}
    else:
        of_kind = {"topk": stored.scores.shape[1], "grid": tuple(stored.scores.shape[2:]), "tail": "mean"}
    fields: dict[str, Any] = {
        "model": "generated",
        "model_kwargs": {},
        "weights": "none",
        "weights_sha256": None,
        "num_classes": num_classes,
        "kind": "exact",
        "input_size": (32, 32),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "precision": "float32",
        "image_count": len(keys),
        "image_digest": keys_digest(keys),
        "shard_size": len(keys),
        "timm_version": "0",
        "torch_version": "0",
    }
    return Manifest(**(fields | of_kind | changes))


def write_label_set(
    labels: Path,
    keys: Sequence[str],
    stored: LabelMaps | LabelRegions,
    num_classes: int,
    shard_size: int | None = None,
    **changes: Any,
) -> None:
    """One label set of these maps or regions, in shards of `shard_size` images (all in one by default)."""
    manifest = manifest_of(keys, stored, num_classes, shard_size=shard_size or len(keys), **changes)
    labels.mkdir(parents=True)
    manifest.save(labels)
    for shard in range(manifest.shard_count):
        part = slice(shard * manifest.shard_size, (shard + 1) * manifest.shard_size)
        append_shard_line(labels, write_shard(labels, shard, keys[part], stored.part(part), manifest))
