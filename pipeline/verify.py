"""Check a label set from its bytes to its meaning. A finding is one line that names the file, the row and the remedy."""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from relabel.images.classes import ClassNames
from relabel.images.image_set import ImageSet, keys_digest
from relabel.images.keys import KeyIndex, decode_keys, encode_keys
from relabel.images.sources import find_images
from relabel.labels.manifest import MANIFEST, Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.pooling import whole_image_top1
from relabel.labels.shard_lines import ShardLine, read_shard_lines
from relabel.labels.shards import MappedShard, shard_name
from relabel.runtime.defaults import MIN_AGREEMENT
from relabel.runtime.errors import InputError
from relabel.runtime.files import sha256_of
from relabel.runtime.machine import cores

REMEDY = "delete it and run the command that made the label set again"
MAX_NAMED = 5  # classes named
POOL_BATCH = 256
INFINITE = 0x7C00  # bits of float16's infinity; those of NaN are larger
CHECK_BATCH = 256  # rows judged at a time, so that what it takes stays in a core's cache


@dataclass
class Report:
    """What verify found: `findings` is empty if all is sound; `notes` are for the reader."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    labels: Path, images: Path | str | None = None, min_agreement: float = MIN_AGREEMENT, names: ClassNames | None = None
) -> Report:
    """Check structure, checksums, values and keys; with images, coverage and agreement with the folders' classes.

    Args:
        min_agreement: share of images whose map, pooled over the whole image, must have the folder's class on top. A wrong
            class order or a wrong normalisation brings it down to chance.
        names: what to call the classes; WordNet's lemmas if None.
    Raises:
        InputError: no label set there at all, or no image folder.
    """
    manifest = Manifest.load(labels)
    lines = read_shard_lines(labels)
    image_set = find_images(images) if images is not None else None
    report = Report()
    examine = functools.partial(check_shard, labels, lines, manifest, pool=image_set is not None)
    with ThreadPoolExecutor(cores()) as threads:  # hashing and numpy let others run meanwhile
        examined = threads.map(examine, range(manifest.shard_count))
        shards = list(tqdm(examined, total=manifest.shard_count, desc="verify", unit="shard", disable=None))
    report.findings += [finding for shard in shards for finding in shard.findings]
    unreadable = [key for shard in shards for key in shard.unreadable]
    surplus = sorted(lines.keys() - set(range(manifest.shard_count)))
    if surplus:
        report.findings.append(
            f"{labels}: shards.jsonl lists shard {surplus[0]}, the manifest knows {manifest.shard_count}; annotate anew"
        )
    complete = not report.findings
    keys = np.concatenate([shard.keys for shard in shards])  # (N,) bytes
    check_keys(report, labels, manifest, keys, encode_keys(unreadable), complete)
    if image_set is not None:
        check_coverage(report, labels, image_set, keys, encode_keys(unreadable), complete)
        if len(keys):
            named, top1 = names or ClassNames(), np.concatenate([shard.top1 for shard in shards])
            check_agreement(report, labels, manifest, image_set, keys, top1, min_agreement, named)
    skipped = f", {len(unreadable)} unreadable images left out" if unreadable else ""
    grid = "x".join(map(str, manifest.grid))
    report.notes.insert(
        0,
        f"{labels}: {len(keys)} label maps of {grid} cells, top {manifest.topk} of {manifest.num_classes} classes by"
        f" {manifest.model} ({manifest.kind}){skipped}",
    )
    return report


@dataclass
class ShardReport:
    """What a shard holds: nothing where it cannot be trusted."""

    findings: list[str]
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.bytes_))  # (n,)
    unreadable: tuple[str, ...] = ()
    top1: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # (n,) of whole images, if asked for


def check_shard(labels: Path, lines: dict[int, ShardLine], manifest: Manifest, number: int, *, pool: bool) -> ShardReport:
    """Structure, checksum and values of one shard; with `pool`, the best class of each whole image too."""
    path = labels / shard_name(number)
    if number not in lines:
        return ShardReport([f"{path}: not finished; run the command that made the label set again"])
    line = lines[number]
    try:
        shard = MappedShard.open(labels, line, manifest)
    except InputError as error:
        return ShardReport([str(error)])
    if sha256_of(path) != line.sha256:  # its values cannot be trusted, so they are not judged
        return ShardReport([f"{path}: its bytes changed after it was written (sha256); {REMEDY}"])
    findings = [f"{path} {finding}; {REMEDY}" for finding in check_values(shard, manifest)]
    if line.manifest not in (None, manifest.identity):
        findings.append(f"{path}: {MANIFEST} is not the one that it was made by; {REMEDY}")
    try:
        decode_keys(shard.keys)
    except ValueError as error:
        findings.append(f"{path}: {error}; such a set is not to be trusted")
    keys = np.array(shard.keys)  # copied: else the whole file would stay mapped
    return ShardReport(findings, keys, line.unreadable, *([whole_image_classes(shard, manifest)] if pool else []))


def check_values(shard: MappedShard, manifest: Manifest) -> list[str]:
    """What is wrong with a shard's values, each with the first row that shows it."""
    parts = [slice(first, first + CHECK_BATCH) for first in range(0, len(shard.keys), CHECK_BATCH)]
    of_parts = [value_faults(shard.scores[part], shard.classes[part], shard.tail[part], manifest) for part in parts]
    found = []
    for what in of_parts[0] if of_parts else []:
        bad = np.concatenate([faults[what] for faults in of_parts])
        if bad.any():
            first = int(bad.argmax())
            found.append(f"row {first} ({key_name(shard.keys[first])}): {what}, in {int(bad.sum())} rows in all")
    return found


def value_faults(scores: np.ndarray, classes: np.ndarray, tail: np.ndarray, manifest: Manifest) -> dict[str, np.ndarray]:
    """(n,) whether a row has it, of everything that can be wrong with the values of n rows."""
    scores, tail = sortable_bits(scores), sortable_bits(tail)
    twice = np.zeros(len(classes), dtype=bool)
    for apart in range(1, manifest.topk):  # comparing the few classes of a cell in pairs is faster than sorting them
        twice |= (classes[:, apart:] == classes[:, :-apart]).any((1, 2, 3))
    return {
        "scores are not finite": np.abs(scores).max((1, 2, 3), initial=0) >= INFINITE,
        "tail is not finite": np.abs(tail).max((1, 2), initial=0) >= INFINITE,
        "scores are not sorted, largest first": (scores[:, 1:] > scores[:, :-1]).any((1, 2, 3)),
        f"classes are beyond the {manifest.num_classes} of the manifest": (classes >= manifest.num_classes).any((1, 2, 3)),
        "a cell stores a class twice": twice,
    }


def sortable_bits(values: np.ndarray) -> np.ndarray:
    """float16 -> int16 that compare as the values do, -0 as 0, infinities and NaN from INFINITE on; and faster."""
    bits = values.view(np.int16)
    sign = bits >> 15  # 0 or -1
    ordered = bits & 0x7FFF
    ordered ^= sign
    ordered -= sign
    return ordered


def key_name(key: bytes) -> str:
    return key.decode(errors="replace")


def check_keys(
    report: Report, labels: Path, manifest: Manifest, keys: np.ndarray, unreadable: np.ndarray, complete: bool
) -> None:
    """Keys, as bytes, are unique, and together those that the manifest was made for."""
    together = np.sort(np.concatenate([keys, unreadable]))
    doubled = np.unique(together[1:][together[1:] == together[:-1]])
    if len(doubled):
        report.findings.append(
            f"{labels}: {len(doubled)} keys stand in it twice (first: {key_name(doubled[0])}); annotate anew"
        )
    if complete and keys_digest(key.decode() for key in together.tolist()) != manifest.image_digest:
        report.findings.append(f"{labels / MANIFEST}: its image digest is not that of the shards' keys; annotate anew")


def check_coverage(
    report: Report, labels: Path, image_set: ImageSet, keys: np.ndarray, unreadable: np.ndarray, complete: bool
) -> None:
    """Every image has a map, and every map an image."""
    images = encode_keys(image_set.keys)
    missing = images[KeyIndex(np.concatenate([keys, unreadable])).find(images) < 0]
    surplus = np.unique(keys[KeyIndex(images).find(keys) < 0])
    if len(missing) and complete:  # else the unfinished shards, found above, are the reason
        report.findings.append(
            f"{labels}: {len(missing)} of {len(image_set)} images of {image_set.source} have no label map (first:"
            f" {key_name(missing[0])}); annotate this folder into a new label set"
        )
    if len(surplus):
        report.findings.append(
            f"{labels}: {len(surplus)} label maps have no image in {image_set.source} (first: {key_name(surplus[0])}); name"
            " the images they were made from, or annotate anew"
        )


def check_agreement(
    report: Report,
    labels: Path,
    manifest: Manifest,
    image_set: ImageSet,
    keys: np.ndarray,
    top1: np.ndarray,
    min_agreement: float,
    names: ClassNames,
) -> None:
    """How often the map of the whole image has the folder's class on top, and where it does so least."""
    mismatch = manifest.class_mismatch(image_set.classes)
    if mismatch is not None:
        report.findings.append(
            f"{labels / MANIFEST}: {mismatch} ({image_set.source}); use an annotator with the images' classes, or tell"
            " annotate its classes by --classes"
        )
        return
    image_of = KeyIndex(encode_keys(image_set.keys)).find(keys)
    known = image_of >= 0
    if not known.any():
        return
    targets = image_set.targets[image_of[known]]
    agrees = top1[known] == targets
    share = float(agrees.mean())
    counts = np.bincount(targets, minlength=len(image_set.classes))
    per_class = np.bincount(targets, weights=agrees, minlength=len(image_set.classes)) / np.maximum(counts, 1)
    present = np.flatnonzero(counts)
    worst = present[np.argsort(per_class[present], kind="stable")][:MAX_NAMED]
    named = ", ".join(f"{names(image_set.classes[c])} {100 * per_class[c]:.0f}%" for c in worst)
    report.notes.append(
        f"whole-image top-1 is the folder's class for {100 * share:.1f}% of {len(targets)} images; lowest: {named}"
    )
    if share < min_agreement:
        report.findings.append(
            f"{labels}: whole-image top-1 is the folder's class for {100 * share:.1f}% of images, expected at least"
            f" {100 * min_agreement:.0f}%: the annotator's class order or preprocessing is probably not that of"
            f" {image_set.source}; if it is, lower --min-agreement"
        )


def whole_image_classes(shard: MappedShard, manifest: Manifest) -> np.ndarray:
    """(n,) class with the largest mean logit over the image."""
    top1 = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(shard.keys), POOL_BATCH):
        part = slice(first, first + POOL_BATCH)
        maps = LabelMaps(
            torch.from_numpy(np.array(shard.scores[part])),
            torch.from_numpy(shard.classes[part].astype(np.int64)),
            torch.from_numpy(np.array(shard.tail[part])),
        )
        if int(maps.classes.max()) >= manifest.num_classes:
            top1.append(np.full(len(maps), -1))  # found and named already
            continue
        top1.append(whole_image_top1(maps, manifest.num_classes).numpy())
    return np.concatenate(top1)
