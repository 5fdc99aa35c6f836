"""A label set's folder while it is being written: the lock, the shards still to do, and the summary at the end.

The first process decides everything here; the others read its decisions from the files.
"""

import contextlib
import logging
from pathlib import Path

from relabel.labels.manifest import MANIFEST, DamagedManifest, Manifest
from relabel.labels.shard_lines import SHARD_LINES, ShardLine, read_shard_lines, write_shard_lines
from relabel.labels.shards import SHARDS, MappedShard, shard_name
from relabel.runtime import files
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import LOCK, delete_temporary

logger = logging.getLogger(__name__)


def write_lock(labels: Path, group: Processes) -> contextlib.AbstractContextManager[None]:
    """Keep a second run from writing to the same folder. The lock is released when its run ends, however it ends.

    The first process holds the lock for the whole run. If it dies, the other processes may still write some shards, but
    those have the same bytes as a rerun's.
    """
    if not group.is_first:
        return contextlib.nullcontext()
    return files.write_lock(labels, "`relabel annotate` or `import-labels`", "--labels")


def prepare(labels: Path, manifest: Manifest, group: Processes, skip_unreadable: bool = True) -> list[int]:
    """Write, check or repair the manifest, remove what a killed run left unfinished, and return the shards still to do.

    A shard that skipped unreadable images is done again unless `skip_unreadable`: they may have been replaced.
    """
    pending: list[int] = []
    if group.is_first:
        lines = read_shard_lines(labels, drop_damaged=True)
        ensure_manifest(labels, manifest, lines)
        delete_temporary(labels, MANIFEST, SHARD_LINES, SHARDS)
        intact = {i: line for i, line in lines.items() if is_intact(labels, line, manifest)}
        if lines or (labels / SHARD_LINES).exists():
            write_shard_lines(labels, intact)  # also drops torn and damaged lines
        for i in sorted(lines.keys() - intact.keys()):
            logger.info(f"{labels / shard_name(i)} is missing or damaged; making it again")
        incomplete = {i for i, line in intact.items() if line.unreadable and not skip_unreadable}
        pending = [i for i in range(manifest.shard_count) if i not in intact or i in incomplete]
        if not pending:
            logger.info(f"{labels}: all {manifest.shard_count} shards are finished and intact; nothing to do")
        elif len(pending) < manifest.shard_count:
            done = manifest.shard_count - len(pending)
            logger.info(f"{labels}: {done} of {manifest.shard_count} shards are finished and intact; making the rest")
    group.barrier()
    differences = Manifest.load(labels).differences(manifest)
    if differences:  # another node may have different images, or different weights under the same name
        raise InputError(
            f"rank {group.rank}'s settings differ from rank 0's ({'; '.join(differences)}); give all ranks the same options,"
            " images and weights"
        )
    return group.from_first(pending)


def ensure_manifest(labels: Path, manifest: Manifest, lines: dict[int, ShardLine]) -> None:
    """Make sure that LABELS/manifest.json is this manifest. If it is missing or damaged, write it again, provided that every
    finished shard was made with this manifest.

    Raises:
        InputError: the folder holds a different label set, or other files.
    """
    shards_match = all(line.manifest == manifest.identity for line in lines.values())
    if not (labels / MANIFEST).exists():
        others = sorted(p.name for p in labels.iterdir() if p.name != LOCK and not p.name.startswith("."))
        if others and not (lines and shards_match):
            raise InputError(f"{labels} is not empty and is not a label set (it contains {others[0]}); use an empty folder")
        if others:
            logger.info(f"{labels / MANIFEST} is missing; writing it again, since every finished shard matches it")
        manifest.save(labels)
        return
    try:
        found = Manifest.load(labels)
    except DamagedManifest as error:
        if not shards_match:
            raise DamagedManifest(f"{error}, with the same settings and versions") from error
        logger.info(f"{labels / MANIFEST} is damaged; writing it again, since every finished shard matches it")
        manifest.save(labels)
        return
    differences = found.differences(manifest)
    if differences:
        raise InputError(
            f"{labels} holds a label set with different settings ({'; '.join(differences)} as in this run); use a different"
            " --labels, or delete the folder to replace it"
        )


def is_intact(labels: Path, line: ShardLine, manifest: Manifest) -> bool:
    """Whether the shard's line and its file are both as written; either may be damaged."""
    if line.rows + len(line.unreadable) != len(manifest.images_of(line.shard)):
        return False
    try:
        MappedShard.open(labels, line, manifest).check()
    except InputError:
        return False
    return True


def finish(labels: Path, manifest: Manifest) -> None:
    """Sort shards.jsonl and log a summary."""
    lines = read_shard_lines(labels)
    if len(lines) < manifest.shard_count:
        raise InputError(f"{labels}: {manifest.shard_count - len(lines)} shards are missing; rerun to make them")
    write_shard_lines(labels, lines)
    rows = sum(line.rows for line in lines.values())
    skipped = sum(len(line.unreadable) for line in lines.values())
    left_out = f", {skipped} unreadable images left out" if skipped else ""
    logger.info(f"{labels}: {rows} {manifest.contents}, top {manifest.topk} of {manifest.num_classes} classes{left_out}")
