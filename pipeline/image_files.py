"""Are the image files still those that were annotated? Their sizes are recorded in the shards, and mostly their sha256."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from relabel.images.decoding import UnavailableImage
from relabel.images.image_set import ImageSet
from relabel.images.keys import KeyIndex


@dataclass(frozen=True)
class Recorded:
    """What a shard records of its image files: keys (n,), and file_size (n,) and file_sha256 (n, 32), or None."""

    keys: np.ndarray
    file_size: np.ndarray | None
    file_sha256: np.ndarray | None


@dataclass(frozen=True)
class FileReport:
    """What the check found.

    Attributes:
        checked, unknown: number of images whose files were compared, and of those of which nothing is recorded to compare.
        changed: keys of the images whose files are different, or cannot be read.
    """

    checked: int
    unknown: int
    changed: list[str]


def check_image_files(
    image_set: ImageSet, of_images: KeyIndex, shards: Sequence[Recorded], contents: bool, workers: int
) -> FileReport:
    """Compare the sizes of all files, and with `contents` their sha256, which reads them.

    Args:
        of_images: finds the images by their keys.
    """
    check = functools.partial(changed_files, image_set, of_images, contents)
    with ThreadPoolExecutor(workers) as threads:  # they wait for the disk
        found = list(tqdm(threads.map(check, shards), total=len(shards), desc="image files", unit="shard", disable=None))
    return FileReport(
        sum(checked for checked, _, _ in found),
        sum(unknown for _, unknown, _ in found),
        [image_set.keys[index] for _, _, changed in found for index in changed],
    )


def changed_files(image_set: ImageSet, of_images: KeyIndex, contents: bool, shard: Recorded) -> tuple[int, int, list[int]]:
    """Of a shard: how many images were checked, how many could not be, and the indices of those that changed."""
    sizes, digests = shard.file_size, shard.file_sha256
    indices = of_images.find(shard.keys)
    known = int((indices >= 0).sum())
    if sizes is None:
        return 0, known, []
    changed = []
    for row, index in enumerate(indices.tolist()):
        if index >= 0 and is_changed(
            image_set, index, int(sizes[row]), digests[row] if contents and digests is not None else None
        ):
            changed.append(index)
    return known, known if contents and digests is None else 0, changed


def is_changed(image_set: ImageSet, index: int, size: int, sha256: np.ndarray | None) -> bool:
    try:
        if image_set.file_size(index) != size:
            return True
        return sha256 is not None and image_set.fingerprint(index)[1] != sha256.tobytes()
    except UnavailableImage:
        return True
