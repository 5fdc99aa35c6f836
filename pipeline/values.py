"""What can be wrong with the values of a shard whose bytes are as they were written.

Shapes: n rows of a shard, k classes kept per cell or region, H rows and W columns of the label map, N regions of an image.
"""

import numpy as np

from relabel.labels.manifest import Manifest
from relabel.labels.regions import ERASED, MIRRORED, PHOTOMETRIC
from relabel.labels.shards import MappedShard

INFINITE = 0x7C00  # the bits of float16 infinity; NaN has larger ones
CHECK_BATCH = 256  # rows checked at a time, so that the working set fits in a core's cache
FLAGS = MIRRORED | PHOTOMETRIC | ERASED


def check_values(shard: MappedShard, manifest: Manifest) -> list[str]:
    """Each kind of fault in a shard's values, with the number of rows that have it and the first of them."""
    parts = [slice(first, first + CHECK_BATCH) for first in range(0, len(shard.keys), CHECK_BATCH)]
    faults_by_part = [faults({name: array[part] for name, array in shard.arrays.items()}, manifest) for part in parts]
    findings = []
    for fault in faults_by_part[0] if faults_by_part else []:
        bad = np.concatenate([faults[fault] for faults in faults_by_part])  # (n,) bool
        if bad.any():
            first = int(bad.argmax())
            key = shard.keys[first].decode(errors="replace")
            findings.append(f"{fault} in {bad.sum()} of {len(bad)} rows, first in row {first} ({key})")
    return findings


def faults(arrays: dict[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """For each kind of fault that the values of n rows can have: (n,) whether a row has it."""
    scores, classes, tail = (arrays[name] for name in ("scores", "classes", "tail"))
    if manifest.regions is None:
        return logit_faults(scores, classes, tail, manifest, "cell")
    count, boxes = arrays["count"], arrays["boxes"]
    present = np.arange(manifest.regions) < count[:, None]  # (n, N)
    of_regions = logit_faults(  # as of a map of N x 1 cells
        scores.swapaxes(1, 2)[..., None], classes.swapaxes(1, 2)[..., None], tail[..., None], manifest, "region", present
    )
    empty: np.ndarray = (boxes[..., 0] >= boxes[..., 2]) | (boxes[..., 1] >= boxes[..., 3])
    return of_regions | {
        f"more regions are counted than stored (the manifest has {manifest.regions})": count > manifest.regions,
        "a region's box is empty": np.any(empty & present, axis=1),
        "flags are unknown": np.any(arrays["flags"] > FLAGS, axis=1),
    }


def logit_faults(
    scores: np.ndarray,
    classes: np.ndarray,
    tail: np.ndarray,
    manifest: Manifest,
    place: str,
    present: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The faults of scores and classes (n, k, H, W) and tail (n, H, W).

    Args:
        place: what each of H x W is.
        present: (n, H) which places are not empty; all if None.
    """
    scores, tail = sortable_bits(scores), sortable_bits(tail)
    duplicate = np.zeros((len(classes), *classes.shape[2:]), dtype=bool)
    for shift in range(1, manifest.topk):  # comparing the few classes of a place in pairs is faster than sorting them
        duplicate |= (classes[:, shift:] == classes[:, :-shift]).any(1)
    if present is not None:
        duplicate &= present[..., None]
    return {
        "scores are not finite": np.abs(scores).max((1, 2, 3), initial=0) >= INFINITE,
        "tail is not finite": np.abs(tail).max((1, 2), initial=0) >= INFINITE,
        "scores are not sorted in descending order": (scores[:, 1:] > scores[:, :-1]).any((1, 2, 3)),
        f"classes are out of range (the manifest has {manifest.num_classes})": (classes >= manifest.num_classes).any(
            (1, 2, 3)
        ),
        f"a {place} stores a class twice": duplicate.any((1, 2)),
    }


def sortable_bits(values: np.ndarray) -> np.ndarray:
    """float16 -> int16 in the same order, which compares faster. -0 equals 0; infinities and NaN are at least INFINITE."""
    bits = values.view(np.int16)
    sign = bits >> 15  # 0 or -1
    ordered = bits & 0x7FFF
    ordered ^= sign
    ordered -= sign
    return ordered
