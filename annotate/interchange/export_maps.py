"""Write a label set as one `.pt` file per image, [2, k, H, W]: scores, then class indices, as the reference code and
TokenLabeling read them. The tail is lost: those programs count a class that is not stored as 0.

Both pass a crop's top and left to RoIAlign as x and y. Transposed maps ("xy") compensate for that, so that they pool what
the crop shows. But TokenLabeling mirrors a map along its last axis, which in transposed maps is the image's rows.
"""

import io
from pathlib import Path

import torch
from tqdm import tqdm

from relabel.labels.store import LabelStore
from relabel.runtime.defaults import Axes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_folder


def export_maps(labels: Path, output: Path, axes: Axes = "yx") -> int:
    """Write OUTPUT/CLASS/NAME.pt for every label map; returns how many. The folder is complete or absent.

    Args:
        axes: "yx": a map's first axis is the rows of the image; "xy": its columns.
    Raises:
        InputError: no label set, an output folder that is not empty, a key that points outside of it, or a full disk.
    """
    store = LabelStore.open(labels).check()
    keys = store.keys  # checked: none points outside of the output folder
    paths = [Path(key).with_suffix(".pt") for key in keys]
    if len(set(paths)) < len(paths):
        key_of: dict[Path, str] = {}
        for path, key in zip(paths, keys, strict=True):
            if key_of.setdefault(path, key) != key:
                raise InputError(f"{key_of[path]} and {key} would both be written to {path}; this format cannot hold both")
    with atomic_folder(output) as unfinished:
        for row, path in enumerate(tqdm(paths, desc="export", unit="map", disable=None)):
            maps = store.gather(torch.tensor([row]))
            buffer = io.BytesIO()
            stored = torch.stack([maps.scores[0].float(), maps.classes[0].float()])
            torch.save(stored.transpose(2, 3).contiguous() if axes == "xy" else stored, buffer)
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_bytes(buffer.getvalue())
    return len(store)
