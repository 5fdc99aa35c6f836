"""Which datasets the shards of a label set have: label maps or regions, as its manifest says.

Shapes: k classes kept per cell or region, H rows and W columns of a label map, N regions of an image.
"""

import numpy as np
import torch

from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.regions import LabelRegions
from relabel.labels.stored import SCORE_DTYPE, StoredLabels, class_dtype


def kind_of_labels(manifest: Manifest) -> type[LabelMaps] | type[LabelRegions]:
    return LabelMaps if manifest.regions is None else LabelRegions


def layout(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The shape of one image's row of each dataset, and its type."""
    k, of_class = manifest.topk, class_dtype(manifest.num_classes)
    if manifest.regions is None:
        grid = manifest.map_grid
        return {"scores": ((k, *grid), SCORE_DTYPE), "classes": ((k, *grid), of_class), "tail": (grid, SCORE_DTYPE)}
    n = manifest.regions
    return {
        "boxes": ((n, 4), np.dtype(np.uint16)),
        "flags": ((n,), np.dtype(np.uint8)),
        "scores": ((n, k), SCORE_DTYPE),
        "classes": ((n, k), of_class),
        "tail": ((n,), SCORE_DTYPE),
        "count": ((), np.dtype(np.uint16)),
    }


def no_labels(manifest: Manifest) -> StoredLabels:
    """The labels of no images, as for a shard whose images are all unreadable."""
    empty = {name: torch.empty(0, *shape) for name, (shape, _) in layout(manifest).items()}
    return kind_of_labels(manifest)(**empty)
