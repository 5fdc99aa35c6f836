"""run.json: what determines a run's weights, and when, where and by which code the run was started and resumed.

A run is resumed only with the same recipe, model, images, labels and teacher, which determine its weights. Everything else
may differ: it is recorded in "starts", one entry for the start and one for every resume.
"""

import contextlib
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

from relabel.images.class_lists import TIMM_CLASSES
from relabel.images.image_set import keys_digest
from relabel.labels.manifest import MANIFEST
from relabel.labels.shard_lines import read_shard_lines
from relabel.models.card import ModelCard
from relabel.runtime import files
from relabel.runtime.distributed import Processes
from relabel.runtime.errors import InputError
from relabel.runtime.files import atomic_write, delete_temporary, sha256_of
from relabel.runtime.machine import processor, versions
from relabel.runtime.typed import parse_json, typed
from train.divergence import DIVERGED
from train.options import TrainOptions
from train.recipe import Recipe
from train.run_dir.checkpoint import LAST, SAFETENSORS, WEIGHTS, read_last
from train.run_dir.metrics import CURVES, METRICS
from train.training_set import TrainingSet

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
WRITTEN = (LAST, SAFETENSORS, WEIGHTS, METRICS, CURVES, DIVERGED, RUN_FILE)  # the files of a run
# Their content is identified by digests
PATH_FIELDS = {"images", "label_folder", "map_folder", "initial_weights_file", "teacher_file"}
INFORMATION_FIELDS = {"val", "val_digest"}  # do not affect the weights: a resumed run may validate on other images
CONDITION_FIELDS = ("precision", "sync_bn", "compile", "processes")  # of a start; these may change the weights a little


def run_settings(card: ModelCard, recipe: Recipe, data: TrainingSet, options: TrainOptions) -> dict[str, Any]:
    """Everything that determines the weights: the recipe as run, the model, the images and the labels."""
    initial, teacher, store = options.initial_weights, options.teacher, data.store
    settings: dict[str, Any] = {
        "arch": card.arch,
        "model_kwargs": card.model_kwargs,
        "initial_weights": f"sha256 {sha256_of(initial)}" if initial else "pretrained" if options.pretrained else "random",
        "initial_weights_file": str(initial) if initial else None,
        "recipe": dataclasses.asdict(recipe),
        "images": data.images.source,
        "image_count": len(data.images),
        "image_digest": keys_digest(data.images.keys),
        "classes": len(card.classes),
        "labels": None,
        "teacher": None,
        "val": data.val.source if data.val is not None else None,
        "val_digest": keys_digest(data.val.keys) if data.val is not None else None,
    }
    if teacher is not None:
        weights = teacher.checkpoint
        settings["teacher"] = dataclasses.asdict(teacher) | {
            "checkpoint": f"sha256 {sha256_of(weights)}" if weights is not None else None
        }
        if teacher.classes is None:  # as in the runs before it could be given
            del settings["teacher"]["classes"]
        elif teacher.classes != TIMM_CLASSES:
            settings["teacher"]["classes"] = f"sha256 {sha256_of(Path(teacher.classes))}"
        settings["teacher_file"] = str(weights) if weights is not None else None
    if store is not None and recipe.needs_labels:
        settings["labels"] = store.manifest.as_json()
        settings["label_digest"] = label_set_digest(store.labels)
        settings["label_folder"] = str(store.labels)
    if data.maps is not None:
        settings["maps"] = data.maps.manifest.as_json()
        settings["map_digest"] = label_set_digest(data.maps.labels)
        settings["map_folder"] = str(data.maps.labels)
    return settings


def recipe_defaults() -> dict[str, Any]:
    """The default of every setting that has one, as it reads back from JSON."""
    fields = {f.name: f.default for f in dataclasses.fields(Recipe) if f.default is not dataclasses.MISSING}
    defaults: dict[str, Any] = json.loads(json.dumps(fields))
    return defaults


def label_set_digest(labels: Path) -> str:
    """sha256 of the manifest and the lines of shards.jsonl in the order of the shards.

    The lines hold the sha256 of each shard, so the digest covers every label without reading any.
    """
    lines = read_shard_lines(labels)
    content = (labels / MANIFEST).read_bytes() + b"".join(lines[i].to_json().encode() for i in sorted(lines))
    return hashlib.sha256(content).hexdigest()


def write_lock(run: Path, group: Processes) -> contextlib.AbstractContextManager[None]:
    """Make the run directory, and keep a second training out of it while this one runs. The first process locks for all."""
    if not group.is_first:
        return contextlib.nullcontext()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {run}: {error}") from error
    return files.write_lock(run, "`relabel train`", "--run-dir")


def start_run(
    run: Path, settings: dict[str, Any], conditions: dict[str, Any], resume: bool, group: Processes
) -> dict[str, Any] | None:
    """Create the run directory, or continue in it, and record the start in run.json.

    Args:
        settings: from `run_settings`.
        conditions: CONDITION_FIELDS of this start; a warning names those that differ from the last start.
    Returns:
        what last.pt holds, or None if there is none yet.
    Raises:
        InputError: the folder holds a run and `resume` is not set, or a run with different settings; or the processes do
            not share the folder.
    """
    settings = json.loads(json.dumps(settings))  # as they read back: lists for tuples
    path, last = run / RUN_FILE, run / LAST
    starts: list[dict[str, Any]] = []
    if path.exists():
        try:
            earlier = typed(parse_json(path.read_bytes()), dict[str, Any])
            starts = typed(earlier.get("starts", []), list[dict[str, Any]])
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); delete the folder and train again") from error
        if isinstance(earlier.get("recipe"), dict):
            earlier["recipe"] = recipe_defaults() | earlier["recipe"]  # settings that did not exist yet had their default
        may_differ = PATH_FIELDS | INFORMATION_FIELDS
        changed = [key for key in settings if key not in may_differ and earlier.get(key) != settings[key]]
        if changed:
            changes = "; ".join(describe_change(key, earlier.get(key), settings[key]) for key in changed)
            raise InputError(f"{run} holds a run with different settings ({changes}); use another --run-dir, or delete it")
        if last.exists() and not resume:
            raise InputError(f"{run} already holds a run; continue it with --resume, use another --run-dir, or delete it")
    elif last.exists():
        raise InputError(f"{run} holds {LAST} but no {RUN_FILE}, so its settings are unknown; use another --run-dir")
    else:
        strangers = [name for name in WRITTEN if (run / name).is_file()]
        if strangers:
            raise InputError(f"{run} holds {strangers[0]}, but no run that wrote it; use another --run-dir, or move it away")
    saved = read_last(last) if last.exists() else None
    step = saved["step"] if saved is not None else 0
    if group.any(step != group.from_first(step)):
        raise InputError(f"not all processes find the same {last}; --run-dir must be a folder that they share")
    group.barrier()  # all have read run.json before it is rewritten
    if group.is_first:
        if saved is not None and starts:
            changes = "; ".join(
                describe_change(key, starts[-1][key], conditions[key])
                for key in CONDITION_FIELDS
                if starts[-1].get(key, conditions[key]) != conditions[key]
            )
            if changes:
                logger.warning(f"resuming {run} with different settings: {changes}")
        starts.append(start_record(step, group) | conditions)
        try:
            atomic_write(path, (json.dumps(settings | {"starts": starts}, indent=2) + "\n").encode())
            delete_temporary(run, *WRITTEN)
        except OSError as error:
            raise InputError(f"cannot write {run}: {error}") from error
    return saved


def describe_change(key: str, before: Any, now: Any) -> str:
    """One differing setting, or those within a table that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [f"{key}.{k} {before.get(k)!r}, now {now.get(k)!r}" for k in now if before.get(k) != now.get(k)]
        return ", ".join(inner)
    return f"{key} {before!r}, now {now!r}"


def start_record(step: int, group: Processes) -> dict[str, Any]:
    """An entry of "starts": the first step, the time, the command, the hardware and the versions of this start."""
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
    """The commit of a file's checkout, and whether the checkout has changes; None if git does not track the file."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # fails for an installed copy inside another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # no git, no checkout, no commit yet
        return None
