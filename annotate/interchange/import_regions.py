"""Make a label set of regions from another project's store.

Shapes: B images of a part, N regions of an image.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from annotate.interchange.image_regions import ImageRegions, RegionStore, to_label_regions
from annotate.interchange.import_shards import Part, import_shards, imported_manifest, warn_of_class_order
from relabel.images.image_set import ImageSet
from relabel.labels.layout import no_labels
from relabel.labels.manifest import Manifest
from relabel.runtime.defaults import RegionTarget
from relabel.runtime.errors import InputError


def import_regions(
    source: Path,
    labels: Path,
    image_set: ImageSet,
    store: RegionStore,
    num_classes: int,
    target: RegionTarget,
    shard_size: int,
    workers: int,
) -> None:
    """Make the label set of a store that has been opened.

    Args:
        source: the store, for messages and the manifest.
        workers: reading processes; 0 to read in this one.
    Raises:
        InputError: invalid files (all of a shard's are listed), a different label set in the folder, or a disk error.
    """
    warn_of_class_order(source, image_set, num_classes)
    manifest = imported_manifest(
        image_set.keys,
        model=f"{store.kind} store",
        weights=f"{source.name}, target {target}",
        num_classes=num_classes,
        topk=store.topk,
        tail="logmeanexp",
        grid=None,
        shard_size=shard_size,
        regions=store.regions,
        crop_scale=store.crop_scale,
        crop_ratio=store.crop_ratio,
        hflip=store.hflip,
    )
    reader = RegionReader(store, image_set, manifest, target)
    import_shards(source, labels, image_set.keys, manifest, reader, workers)


@dataclass(frozen=True)
class RegionReader:
    """Reads the regions of any range of images."""

    store: RegionStore
    image_set: ImageSet
    manifest: Manifest
    target: RegionTarget

    def __call__(self, images: range) -> Part:
        found: list[ImageRegions] = []
        sizes: list[tuple[int, int]] = []
        invalid: list[str] = []
        for index in images:
            try:
                found.append(self.read(index, size := self.size_of(index)))
            except InputError as error:
                invalid.append(str(error))
            else:
                sizes.append(size)
        manifest = self.manifest
        if invalid:
            return Part(no_labels(manifest), invalid)
        assert manifest.regions is not None
        stored = to_label_regions(found, sizes, manifest.regions).as_stored(manifest.num_classes)
        overfull = 0
        if self.target == "spread" and manifest.topk < manifest.num_classes:
            overfull = sum(int((image.probs.sum(1, dtype="float32") > 1).sum()) for image in found)
        return Part(stored, [], torch.tensor([self.image_set.file_size(i) for i in images]), overfull)

    def size_of(self, index: int) -> tuple[int, int]:
        """Width and height in pixels, from the file's header."""
        with self.image_set.open_image(index) as encoded:
            return encoded.width, encoded.height

    def read(self, index: int, size: tuple[int, int]) -> ImageRegions:
        found = self.store.read(index, size)
        key, manifest = self.image_set.keys[index], self.manifest
        assert manifest.regions is not None
        if len(found) > manifest.regions:
            raise InputError(
                f"{key} has {len(found)} crops, more than the {manifest.regions} of the files looked at first; pass"
                f" --regions {len(found)}"
            )
        if found.probs.shape[1] != manifest.topk:
            raise InputError(
                f"{key} has {found.probs.shape[1]} classes per crop, and the first file {manifest.topk}; a label set has one"
                " number for all"
            )
        return found
