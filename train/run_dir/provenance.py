"""run.json: what made a run's weights, and when, where and by which code it was started and resumed.

What decides the weights has to be the same for a run to be resumed: recipe, model, images, labels and teacher. The rest is
recorded, an entry in "starts" for the start and for every resume, and hinders none.
"""

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from relabel.images.image_set import ImageSet, keys_digest
from relabel.labels.manifest import MANIFEST
from relabel.labels.shard_lines import read_shard_lines
from relabel.labels.store import LabelStore
from relabel.models.card import ModelCard
from relabel.models.weights import load_torch_file
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write, sha256_of
from relabel.runtime.machine import processor, versions
from train.recipe import Recipe
from train.run_dir.checkpoint import LAST
from train.teacher import TeacherChoice

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
PATH_FIELDS = {
    "images",
    "label_folder",
    "initial_weights_file",
    "teacher_file",
}  # where things lie: digests tell what they are
INFORMATION_FIELDS = {"val", "val_digest"}  # nothing is learnt from them: a resume may look at others
# Of an entry of "starts": settings that change the weights' bits, or more
CONDITION_FIELDS = ("precision", "sync_bn", "compile", "processes")


def run_settings(
    card: ModelCard,
    recipe: Recipe,
    store: LabelStore | None,
    image_set: ImageSet,
    pretrained: bool,
    initial: Path | None,
    teacher: TeacherChoice | None,
    val: ImageSet | None,
) -> dict[str, Any]:
    """What decides the weights: the recipe as run, the model, the images and the labels."""
    described: dict[str, Any] = {
        "arch": card.arch,
        "model_kwargs": card.model_kwargs,
        "initial_weights": f"sha256 {sha256_of(initial)}" if initial else "pretrained" if pretrained else "random",
        "initial_weights_file": str(initial) if initial else None,
        "recipe": dataclasses.asdict(recipe),
        "images": image_set.source,
        "image_count": len(image_set),
        "image_digest": keys_digest(image_set.keys),
        "classes": len(card.classes),
        "labels": None,
        "teacher": None,
        "val": val.source if val is not None else None,
        "val_digest": keys_digest(val.keys) if val is not None else None,
    }
    if teacher is not None:
        weights = teacher.checkpoint
        described["teacher"] = dataclasses.asdict(teacher) | {
            "checkpoint": f"sha256 {sha256_of(weights)}" if weights is not None else None
        }
        described["teacher_file"] = str(weights) if weights is not None else None
    if store is not None and recipe.needs_labels:
        described["labels"] = dataclasses.asdict(store.manifest)
        described["label_digest"] = label_set_digest(store.labels)
        described["label_folder"] = str(store.labels)
    return described


def label_set_digest(labels: Path) -> str:
    """sha256 of the manifest and the shard lines, as of `cat manifest.json shards.jsonl`.

    The lines hold each shard's sha256, so that it stands for every label of the set without reading them.
    """
    lines = read_shard_lines(labels)
    said = (labels / MANIFEST).read_bytes() + b"".join(lines[i].to_json().encode() for i in sorted(lines))
    return hashlib.sha256(said).hexdigest()


def start_run(
    run: Path, description: dict[str, Any], how: dict[str, Any], resume: bool, group: Processes
) -> dict[str, Any] | None:
    """Make the run's folder, or go on in it, and record the start. Returns the state to resume from, or None.

    Args:
        how: HOW it trains from here on; a line says where that is not as at the last start.
    Raises:
        InputError: the folder holds a run already and `resume` was not asked for, or one of other settings; or it is not
            the same for all processes.
    """
    said = json.loads(json.dumps(description))  # as it reads back: lists for tuples
    path = run / RUN_FILE
    last = run / LAST
    starts: list[dict[str, Any]] = []
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged; delete the folder and train again") from error
        other = [key for key in said if key not in PATH_FIELDS | INFORMATION_FIELDS and earlier.get(key) != said[key]]
        if other:
            changes = "; ".join(describe_change(key, earlier.get(key), said[key]) for key in other)
            raise InputError(f"{run} holds a run of other settings ({changes}); use another --run-dir, or delete it")
        if last.exists() and not resume:
            raise InputError(f"{run} holds a run already; go on with it by --resume, use another --run-dir, or delete it")
        starts = earlier.get("starts", [])
    elif last.exists():
        raise InputError(f"{run} holds {LAST} but no {RUN_FILE}, so what made it is not known; use another --run-dir")
    state = load_torch_file(last) if last.exists() else None
    if state is not None and "step" not in state:
        raise InputError(f"{last} is no checkpoint of a run of ours; delete it to start anew")
    step = state["step"] if state is not None else 0
    if group.any(step != group.from_first(step)):
        raise InputError(f"not all processes find the same {last}; --run-dir must be a folder that they share")
    group.barrier()  # all have read run.json before it is written again
    if group.is_first:
        if state is not None and starts:
            otherwise = [
                describe_change(key, starts[-1][key], how[key])
                for key in CONDITION_FIELDS
                if starts[-1].get(key, how[key]) != how[key]
            ]
            if otherwise:
                logger.warning(f"{run} goes on otherwise than it was last started: {'; '.join(otherwise)}")
        starts.append(start_record(step, group) | how)
        try:
            run.mkdir(parents=True, exist_ok=True)
            atomic_write(path, (json.dumps(said | {"starts": starts}, indent=2) + "\n").encode())
        except OSError as error:
            raise InputError(f"cannot write {run}: {error}") from error
    return state


def describe_change(key: str, before: Any, now: Any) -> str:
    """One differing setting, or those within a table that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [f"{key}.{k} {before.get(k)!r}, now {now.get(k)!r}" for k in now if before.get(k) != now.get(k)]
        return ", ".join(inner)
    return f"{key} {before!r}, now {now!r}"


def start_record(step: int, group: Processes) -> dict[str, Any]:
    """An entry of "starts": the command that runs now, from which step, when, by which code and on what."""
    start: dict[str, Any] = {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "device": processor(group.device),
        "cpu_cores": os.cpu_count(),
        "versions": versions(),
    }
    git = git_state(Path(__file__))
    return start if git is None else start | {"git": git}


def git_state(file: Path) -> dict[str, Any] | None:
    """The commit that a file is checked out from, and whether anything there was changed since; None where git tracks no
    such file."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # not an installed copy that lies within somebody else's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, no commit yet
        return None
