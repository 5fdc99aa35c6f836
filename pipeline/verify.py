"""Check a label set: file structure, checksums, values, keys, and agreement with the images it was made from.

A finding is one line that names the file, the row and what to do.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.image_files import Recorded, check_image_files
from pipeline.values import check_values
from relabel.images.classes import ClassNames
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.keys import KeyIndex, decode_keys, encode_keys
from relabel.images.sources import find_images
from relabel.labels.layout import kind_of_labels
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.shard_lines import ShardLine, missing_shards, read_shard_lines
from relabel.labels.shards import REMEDY, MappedShard, shard_name
from relabel.labels.store import as_tensor
from relabel.labels.whole_image import whole_image_top1
from relabel.runtime.defaults import MIN_AGREEMENT
from relabel.runtime.errors import InputError
from relabel.runtime.workers import decoding_workers

MAX_NAMED = 5  # classes listed as having the lowest agreement, and shards that are not finished or have unreadable images
MAX_UNREADABLE = 0.2  # of the images; with more, a disk was probably missing when they were annotated
POOL_BATCH = 256


@dataclass
class Report:
    """What verify found. `findings` is empty if the label set is OK; `notes` are for information."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    labels: Path,
    images: Path | str | None = None,
    min_agreement: float = MIN_AGREEMENT,
    names: ClassNames | None = None,
    workers: int | None = None,
    contents: bool = False,
) -> Report:
    """Check structure, checksums, values and keys; with images, also coverage, whether an image file has changed its size
    since, and agreement with the ground-truth labels.

    Args:
        contents: read every image file, and compare its sha256 with the one recorded when it was annotated.
        min_agreement: the share of images whose whole-image top-1 class must be the ground-truth label. A wrong class
            order or a wrong normalisation brings agreement down to chance.
        names: display names of the classes; WordNet's lemmas if None.
        workers: threads, each with a shard of its own; as many as there are cores if None, and one at least.
    Raises:
        InputError: `labels` is not a label set, `images` is not a source of images, or `min_agreement` is not a share.
    """
    if not 0 <= min_agreement <= 1:
        raise InputError(f"--min-agreement {min_agreement}: expected a share within [0, 1]")
    manifest = Manifest.load(labels)
    lines = read_shard_lines(labels)
    image_set = find_images(images) if images is not None else None
    report = Report()
    finished = sorted(shard for shard in lines if shard < manifest.shard_count)
    check = functools.partial(check_shard, labels, lines, manifest, pool=image_set is not None)
    with ThreadPoolExecutor(max(1, decoding_workers(workers))) as threads:  # hashing and numpy release the GIL
        shards = list(tqdm(threads.map(check, finished), total=len(finished), desc="verify", unit="shard", disable=None))
    report.findings += [finding for shard in shards for finding in shard.findings]
    report.findings += unfinished_shards(labels, lines, manifest)
    unreadable = [key for shard in shards for key in shard.unreadable]
    surplus = sorted(lines.keys() - set(finished))
    if surplus:
        report.findings.append(
            f"{labels}: shards.jsonl lists shard {surplus[0]}, but the manifest has only {manifest.shard_count} shards;"
            " annotate again"
        )
    complete = not report.findings
    keys = np.concatenate([np.empty(0, dtype=np.bytes_), *(shard.keys for shard in shards)])  # (N,) bytes
    check_keys(report, labels, manifest, keys, encode_keys(unreadable), complete)
    if image_set is not None:
        of_images = KeyIndex(image_set.keys.encoded)
        check_coverage(report, labels, manifest, image_set, of_images, keys, encode_keys(unreadable), complete)
        check_files(report, labels, image_set, of_images, shards, contents, max(1, decoding_workers(workers)))
        if len(keys):
            top1 = np.concatenate([shard.top1 for shard in shards])
            check_agreement(report, labels, manifest, image_set, of_images, keys, top1, min_agreement, names or ClassNames())
    if len(unreadable) > MAX_UNREADABLE * (len(keys) + len(unreadable)):
        affected = [shard_name(number) for number, shard in zip(finished, shards, strict=True) if shard.unreadable]
        more = f" and {len(affected) - MAX_NAMED} more" if len(affected) > MAX_NAMED else ""
        report.findings.append(
            f"{labels}: {len(unreadable)} of {len(keys) + len(unreadable)} images were unreadable and are left out (first:"
            f" {unreadable[0]}), expected at most {100 * MAX_UNREADABLE:.0f}%. If they can be read now, delete"
            f" {', '.join(affected[:MAX_NAMED])}{more} and run the command that made the label set again"
        )
    skipped = f", {len(unreadable)} unreadable images left out" if unreadable else ""
    report.notes.insert(
        0,
        f"{labels}: {len(keys)} {manifest.contents}, top {manifest.topk} of {manifest.num_classes} classes by"
        f" {manifest.model} ({manifest.kind}){skipped}",
    )
    return report


def unfinished_shards(labels: Path, lines: dict[int, ShardLine], manifest: Manifest) -> list[str]:
    """Names the first shards without a line, and counts the others: a manifest may promise a thousand million."""
    missing = missing_shards(lines, manifest.shard_count)
    numbers = (shard for shard in itertools.count() if shard not in lines)
    named = list(itertools.islice(numbers, min(missing, MAX_NAMED)))
    findings = [
        f"{labels / shard_name(shard)}: not finished; run the command that made the label set again" for shard in named
    ]
    if missing > len(named):
        findings.append(f"{labels}: {missing - len(named)} more of its {manifest.shard_count} shards are not finished")
    return findings


@dataclass
class ShardReport:
    """The findings and the contents of one shard. The contents are empty if the file is damaged."""

    findings: list[str]
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.bytes_))  # (n,)
    unreadable: tuple[str, ...] = ()
    top1: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # (n,) whole-image classes, if pooled
    file_size: np.ndarray | None = None  # (n,) bytes of each image file when it was annotated, if recorded
    file_sha256: np.ndarray | None = None  # (n, 32), if recorded


def check_shard(labels: Path, lines: dict[int, ShardLine], manifest: Manifest, number: int, *, pool: bool) -> ShardReport:
    """Check structure, checksum and values of one shard; with `pool`, also compute the top-1 class of each whole image."""
    path = labels / shard_name(number)
    line = lines[number]
    try:
        shard = MappedShard.open(labels, line, manifest)
        shard.check_bytes()
    except InputError as error:  # its values cannot be trusted, so they are not checked
        return ShardReport([str(error)])
    findings = [f"{path}: {finding}; {REMEDY}" for finding in check_values(shard, manifest)]
    try:
        decode_keys(shard.keys)
    except ValueError as error:
        findings.append(f"{path}: {error}; do not use this label set")
    keys = np.array(shard.keys)  # a copy, as the others: a view would keep the whole file mapped
    of_files = (None if array is None else np.array(array) for array in (shard.file_size, shard.file_sha256))
    top1 = whole_image_classes(shard, manifest) if pool else np.empty(0, dtype=np.int64)
    return ShardReport(findings, keys, line.unreadable, top1, *of_files)


def key_name(key: bytes) -> str:
    return key.decode(errors="replace")


def check_keys(
    report: Report, labels: Path, manifest: Manifest, keys: np.ndarray, unreadable: np.ndarray, complete: bool
) -> None:
    """Check that the keys, as bytes, are unique, and that together they are the images of the manifest."""
    all_keys = np.sort(np.concatenate([keys, unreadable]))
    duplicates = np.unique(all_keys[1:][all_keys[1:] == all_keys[:-1]])
    if len(duplicates):
        report.findings.append(
            f"{labels}: {len(duplicates)} keys occur more than once (first: {key_name(duplicates[0])}); annotate again"
        )
    if complete and keys_digest(key.decode() for key in all_keys.tolist()) != manifest.image_digest:
        report.findings.append(f"{labels / MANIFEST}: its image digest does not match the shards' keys; annotate again")


def check_coverage(
    report: Report,
    labels: Path,
    manifest: Manifest,
    image_set: ImageSet,
    of_images: KeyIndex,
    keys: np.ndarray,
    unreadable: np.ndarray,
    complete: bool,
) -> None:
    """Check that every image has labels, and that all labels have an image."""
    what = "label map" if manifest.regions is None else "regions"
    missing = of_images.keys[KeyIndex(np.concatenate([keys, unreadable])).find(of_images.keys) < 0]
    surplus = np.unique(keys[of_images.find(keys) < 0])
    if len(missing) and complete:  # otherwise the shards reported above are the reason
        report.findings.append(
            f"{labels}: {len(missing)} of {len(image_set)} images of {image_set.source} have no {what} (first:"
            f" {key_name(missing[0])}); annotate this folder into a new label set"
        )
    if len(surplus):
        report.findings.append(
            f"{labels}: {len(surplus)} {'label maps' if manifest.regions is None else 'keys with regions'} have no image in"
            f" {image_set.source} (first: {key_name(surplus[0])}); pass the images they were made from, or annotate again"
        )


def check_files(
    report: Report,
    labels: Path,
    image_set: ImageSet,
    of_images: KeyIndex,
    shards: list[ShardReport],
    contents: bool,
    workers: int,
) -> None:
    """Check that the image files are those that were annotated: by their sizes, or with `contents` by their sha256."""
    recorded = [Recorded(shard.keys, shard.file_size, shard.file_sha256) for shard in shards]
    found = check_image_files(image_set, of_images, recorded, contents, workers)
    how = "content" if contents else "size"
    if found.unknown:
        report.notes.append(f"{found.unknown} images: the {how} of their files was not recorded, so it is not checked")
    if found.changed:
        report.findings.append(
            f"{labels}: the files of {len(found.changed)} of {found.checked} images have another {how} than when they were"
            f" annotated (first: {found.changed[0]}); restore them, or annotate again into an empty folder"
        )


def check_agreement(
    report: Report,
    labels: Path,
    manifest: Manifest,
    image_set: ImageSet,
    of_images: KeyIndex,
    keys: np.ndarray,
    top1: np.ndarray,
    min_agreement: float,
    names: ClassNames,
) -> None:
    """Check how often the whole-image top-1 class is the ground-truth label, and list the classes that agree least."""
    mismatch = manifest.class_mismatch(image_set.classes)
    if mismatch is not None:
        report.findings.append(
            f"{labels / MANIFEST}: {mismatch} ({image_set.source}); use an annotator of these classes, or pass"
            " the names of its outputs to `relabel annotate --classes`"
        )
        return
    indices = of_images.find(keys)
    known = indices >= 0
    if not known.any():
        return
    targets = image_set.targets[indices[known]]
    agrees = top1[known] == targets
    share = float(agrees.mean())
    counts = np.bincount(targets, minlength=len(image_set.classes))
    per_class = np.bincount(targets, weights=agrees, minlength=len(image_set.classes)) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    worst = present[np.argsort(per_class[present], kind="stable")][:MAX_NAMED]
    lowest = ", ".join(f"{names(image_set.classes[c])} {100 * per_class[c]:.0f}%" for c in worst)
    report.notes.append(
        f"whole-image top-1 is the ground-truth label for {100 * share:.1f}% of {len(targets)} images; lowest: {lowest}"
    )
    if share < min_agreement:
        report.findings.append(
            f"{labels}: whole-image top-1 is the ground-truth label for {100 * share:.1f}% of images, expected at"
            f" least {100 * min_agreement:.0f}%: the annotator probably has another class order than {image_set.source}, or"
            " needs other preprocessing; if both are right, lower --min-agreement"
        )


def whole_image_classes(shard: MappedShard, manifest: Manifest) -> np.ndarray:
    """(n,) the class that a label map or the regions of an image give most; -1 where the classes are damaged."""
    top1 = [np.empty(0, dtype=np.int64)]
    batch = max(1, POOL_BATCH // (manifest.regions or 1))
    for first in range(0, len(shard.keys), batch):
        part = {name: as_tensor(np.array(array[first : first + batch])) for name, array in shard.arrays.items()}
        labels = kind_of_labels(manifest).from_stored(part)
        if int(part["classes"].long().max()) >= manifest.num_classes:
            top1.append(np.full(len(labels), -1))  # already reported
            continue
        top1.append(whole_image_top1(labels, manifest.num_classes).numpy())
    return np.concatenate(top1)
