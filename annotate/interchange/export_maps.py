"""Write label maps as one `.pt` file per image, [2, k, S, S]: scores, then classes, as the reference code and TokenLabeling
read them.

Both count a class that a cell does not store as 0. So the scores are written less the cell's tail, which keeps the tail: the
softmax of the pooled logits does not change if the same number is subtracted from all of them.

Both pass a crop's top and left to RoIAlign as x and y. Maps with the image's columns first compensate for that, and the
reference then pools what the crop shows. TokenLabeling pools a crop's tokens, too, and mirrors maps along the last axis, for
which the rows must come first: its own files have them first, and so have those written here.

Shapes: k classes stored per cell, S rows and columns of the label map.
"""

import io
from typing import Literal

import torch

from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.runtime.errors import InputError

REFERENCE_CLASSES = 1000  # which the reference's reader takes every map to have
SMALLEST_GRID = 6  # TokenLabeling keeps the crop and the ground-truth label in the first six cells of a row
MOST_CLASSES = 2048  # TokenLabeling's class numbers are float16, which is exact up to this
TOKENS_ADVICE = (
    "TokenLabeling's trainer exchanges x and y of every crop, in its own maps too: the target of a crop's class token is"
    " that of the crop mirrored along the image's diagonal. Its grid of tokens and its mirroring are right"
)


def check_grid(store: LabelStore[LabelMaps], kind: Literal["relabel", "token-labeling"]) -> None:
    """Raises InputError for label maps that the reader would misread in silence."""
    manifest = store.manifest
    rows, columns = manifest.map_grid
    if rows != columns:
        raise InputError(
            f"{store.labels} has maps of {rows}x{columns} cells. The readers of {kind} take every map for a square; annotate"
            " with a square --input-size"
        )
    if kind == "relabel" and manifest.num_classes != REFERENCE_CLASSES:
        raise InputError(
            f"{store.labels} has {manifest.num_classes} classes. The reference code takes every map to have"
            f" {REFERENCE_CLASSES}"
        )
    if kind == "relabel" and manifest.window is not None:
        raise InputError(
            f"{store.labels} has maps of the central square of each image. The reference code takes a map for that of the"
            " whole image"
        )
    if kind == "token-labeling" and (rows < SMALLEST_GRID or manifest.num_classes > MOST_CLASSES):
        raise InputError(
            f"{store.labels} has maps of {rows}x{columns} cells and {manifest.num_classes} classes. TokenLabeling needs at"
            f" least {SMALLEST_GRID}x{SMALLEST_GRID} cells and at most {MOST_CLASSES} classes"
        )


def map_file(maps: LabelMaps, kind: Literal["relabel", "token-labeling"]) -> bytes:
    """The content of the file of one label map (B = 1)."""
    scores = maps.scores[0].float() - maps.tail[0].float()
    stored = torch.stack([scores, maps.classes[0].float()])  # (2, k, rows, columns)
    buffer = io.BytesIO()
    torch.save(stored.transpose(2, 3).contiguous() if kind == "relabel" else stored, buffer)
    return buffer.getvalue()
