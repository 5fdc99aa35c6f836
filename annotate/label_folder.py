"""The label set's folder while it is being written: who may write, what is still to do, and what is said at the end.

Everything here is decided by the first process, and read by the others from the files.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from relabel.labels.manifest import MANIFEST, DamagedManifest, Manifest
from relabel.labels.shard_lines import SHARD_LINES, ShardLine, read_shard_lines, write_shard_lines
from relabel.labels.shards import MappedShard, shard_name
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import lock, sha256_of

LOCK = ".lock"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def write_lock(labels: Path, group: Processes) -> Iterator[None]:
    """Refuse a second run on the same folder while the first lives; a dead run's lock is gone with it.

    The first process holds the lock for all: what the others of a dying run may still write has the same bytes.
    """
    if not group.is_first:
        yield
        return
    with (labels / LOCK).open("w") as file:
        try:
            if not lock(file, wait=False):
                logger.warning(f"{labels} lies on a file system without locks; see that no other run writes it")
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"another `relabel annotate` or `import-maps` is writing {labels}; wait for it, or use another --labels"
            ) from error
        yield


def prepare(labels: Path, manifest: Manifest, group: Processes, skip_unreadable: bool = True) -> list[int]:
    """Make, check or mend the manifest, drop what a killed run left half done, and list the shards still to make.

    A shard that lacks unreadable images is made again where they are not to be skipped: they may have been replaced.
    """
    pending: list[int] = []
    if group.is_first:
        lines = read_shard_lines(labels, drop_damaged=True)
        ensure_manifest(labels, manifest, lines)
        for leftover in labels.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)  # a dying process of the run before may just have done so
        sound = {i: line for i, line in lines.items() if is_intact(labels, line, manifest)}
        if lines or (labels / SHARD_LINES).exists():
            write_shard_lines(labels, sound)  # also drops torn and damaged lines
        for i in sorted(lines.keys() - sound.keys()):
            logger.info(f"{labels / shard_name(i)} is missing or damaged: made again")
        again = {i for i, line in sound.items() if line.unreadable and not skip_unreadable}
        pending = [i for i in range(manifest.shard_count) if i not in sound or i in again]
        if not pending:
            logger.info(f"{labels}: all {manifest.shard_count} shards are there and sound, nothing to do")
        elif len(pending) < manifest.shard_count:
            done = manifest.shard_count - len(pending)
            logger.info(f"{labels}: {done} of {manifest.shard_count} shards are there and sound, making the rest")
    group.barrier()
    differences = Manifest.load(labels).differences(manifest)
    if differences:  # another node may have other images, or other weights under the same name
        raise InputError(f"process {group.rank} would write another label set than the first: {'; '.join(differences)}")
    return group.from_first(pending)


def ensure_manifest(labels: Path, manifest: Manifest, lines: dict[int, ShardLine]) -> None:
    """See that LABELS/manifest.json is this one: write it where there is none, or where it is damaged and every finished
    shard says that it was made by this one.

    Raises:
        InputError: the folder holds another label set, or other files.
    """
    made_by_it = all(line.manifest == manifest.identity for line in lines.values())
    if not (labels / MANIFEST).exists():
        strangers = sorted(p.name for p in labels.iterdir() if p.name != LOCK and not p.name.startswith("."))
        if strangers and not (lines and made_by_it):
            raise InputError(f"{labels} is not empty and no label set (it holds {strangers[0]}); use an empty folder")
        if strangers:
            logger.info(f"{labels / MANIFEST} is missing: written again, as every finished shard was made by it")
        manifest.save(labels)
        return
    try:
        found = Manifest.load(labels)
    except DamagedManifest as error:
        if not made_by_it:
            raise DamagedManifest(f"{error}, with the same settings and versions") from error
        logger.info(f"{labels / MANIFEST} is damaged: written again, as every finished shard was made by it")
        manifest.save(labels)
        return
    differences = found.differences(manifest)
    if differences:
        raise InputError(
            f"{labels} holds another label set ({'; '.join(differences)} of this run); use another --labels, or delete the"
            " folder to replace it"
        )


def is_intact(labels: Path, line: ShardLine, manifest: Manifest) -> bool:
    """Whether line and file are what was written: the line may be damaged as well as the file."""
    images = len(manifest.images_of(line.shard))
    if line.file != shard_name(line.shard) or line.rows + len(line.unreadable) != images:
        return False
    if line.manifest not in (None, manifest.identity):
        return False
    try:
        MappedShard.open(labels, line, manifest)
    except InputError:
        return False
    return sha256_of(labels / line.file) == line.sha256


def finish(labels: Path, manifest: Manifest) -> None:
    """Order shards.jsonl and say what there is now."""
    lines = read_shard_lines(labels)
    if len(lines) < manifest.shard_count:
        raise InputError(f"{labels}: {manifest.shard_count - len(lines)} shards are missing; rerun to make them")
    write_shard_lines(labels, lines)
    rows = sum(line.rows for line in lines.values())
    skipped = sum(len(line.unreadable) for line in lines.values())
    left_out = f", {skipped} unreadable images left out" if skipped else ""
    grid = "x".join(map(str, manifest.grid))
    logger.info(
        f"{labels}: {rows} label maps of {grid} cells, top {manifest.topk} of {manifest.num_classes} classes{left_out}"
    )
