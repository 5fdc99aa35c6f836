"""`make results`: the tables of the README, on the embedded scenes, over seeds; writes them there.

    targets      what students are trained towards, every setting but the target shared
    robustness   two of those students under corruptions and attack
    recipes      every row of the paper's table, by its own recipe file with nothing but sizes and lengths overridden

A finished run is kept, unless its settings have changed: that is refused. Stop it and start it again as you like.
`make results TABLES=robustness` makes that one.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from pipeline.demo.networks import ANNOTATE_ARGS, ANNOTATOR_MODEL_ARGS, ARCH, REPOSITORY, STUDENT_ARGS
from relabel.labels.manifest import Manifest
from relabel.labels.maps import LabelMaps
from relabel.labels.shard_lines import SHARD_LINES, append_shard_line
from relabel.labels.shards import write_shard
from relabel.labels.store import LabelStore
from relabel.runtime.files import atomic_write
from relabel.runtime.machine import cpu_model
from train import recipe as recipes
from train.run_dir.metrics import read_metrics

JOBS = 2  # students at a time, one thread each
RESULTS = REPOSITORY / "results"
README = REPOSITORY / "README.md"

SCENES = "validation scenes"

# What ImageNet's recipes are told about scenes of 64 pixels and a short training: sizes and lengths, and nothing else
SIZES = ("batch_size=32", "image_size=40", "eval_size=64", "eval_crop=1.0", "eval_epochs=1000", "warmup_epochs=3")


@dataclass(frozen=True)
class LabelSet:
    """A label set of the training scenes: whose maps, with which tail."""

    annotator_loss: str
    tail: str = "mean"
    transposed: bool = False  # x and y of the map swapped: what pooling with swapped boxes reads

    @property
    def path(self) -> Path:
        return RESULTS / "labels" / f"{self.annotator_loss}-{self.tail}{'-transposed' if self.transposed else ''}"


@dataclass(frozen=True)
class Arm:
    """A row of a table: a recipe and what it is told."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    labels: LabelSet | None = None
    options: tuple[str, ...] = ()

    def run(self, epochs: int, seed: int) -> Path:
        told = "recipe" if self.name == self.recipe else "target"
        return RESULTS / "runs" / f"{told}-{self.name.replace(' ', '-').replace(',', '')}-{epochs}epochs-seed{seed}"


CE = LabelSet("ce")
SINGLE, RELABEL = Arm("single label", "scenes-single"), Arm("ReLabel", "scenes-relabel", labels=CE)
TARGETS = (
    SINGLE,
    RELABEL,
    Arm("ReLabel, annotator trained with BCE", "scenes-relabel", labels=LabelSet("bce")),
    Arm("the same, log-mean-exp as tail", "scenes-relabel", labels=LabelSet("bce", "logmeanexp")),
    Arm("the same, zero as tail", "scenes-relabel", labels=LabelSet("bce", "zero")),
    Arm("ReLabel with x and y swapped", "scenes-relabel", labels=LabelSet("ce", transposed=True)),
    Arm("whole-image multi-label", "scenes-relabel", ("target=global-multi",), CE),
)
TARGET_SCHEDULES, TARGET_SEEDS = (12, 30), (0, 1, 2, 3, 4)
RECIPE_EPOCHS, RECIPE_SEEDS = 60, (0, 1, 2)  # in a third of that, most rows do not get off chance


def recipe_rows() -> list[Arm]:
    """Every recipe that is not of the scenes themselves."""
    rows = []
    for name in recipes.recipe_names():
        if name.startswith("scenes-"):
            continue
        recipe = recipes.load_recipe(name)
        settings = (*SIZES, "cutmix_off_epochs=1") if recipe.cutmix else SIZES
        options: tuple[str, ...] = ()
        if recipe.target == "teacher":
            options = ("--teacher-checkpoint", str(annotator_of("ce") / "weights.pth"))
        if recipe.start == "pretrained":  # there are no other pretrained weights of this network
            options = ("--initial-weights", str(annotator_of("ce") / "weights.pth"))
        rows.append(Arm(name, name, settings, CE if recipe.needs_labels else None, options))
    return rows


def main() -> None:
    asked = sys.argv[1:] or list(TABLES)
    if set(asked) - set(TABLES):
        sys.exit(f"no table {', '.join(sorted(set(asked) - set(TABLES)))}; there are {', '.join(TABLES)}")
    prepare()
    for name in asked:
        table = TABLES[name]()
        write_readme(name, table)
        print(table)


def targets() -> str:
    return accuracy_table("trained towards", TARGETS, TARGET_SCHEDULES, TARGET_SEEDS)


def recipe_table() -> str:
    return accuracy_table("recipe", recipe_rows(), (RECIPE_EPOCHS,), RECIPE_SEEDS)


def accuracy_table(first: str, arms: Sequence[Arm], schedules: Sequence[int], seeds: Sequence[int]) -> str:
    """Train every arm by every schedule and seed; a row an arm, a column a schedule."""
    accuracies = train_all([(arm, epochs, seed) for seed in seeds for epochs in schedules for arm in arms])
    rows = {
        f"`{arm.name}`" if arm.name == arm.recipe else arm.name: [[accuracies[arm, n, s] for s in seeds] for n in schedules]
        for arm in arms
    }
    columns = [f"{epochs} epochs" for epochs in schedules]
    return as_table(first, columns, rows, f"Multi-label accuracy in percent on 1,000 {SCENES}", seeds)


def robustness() -> str:
    epochs = TARGET_SCHEDULES[-1]
    arms = (SINGLE, RELABEL)
    jobs = [(arm, epochs, seed) for seed in TARGET_SEEDS for arm in arms]
    train_all(jobs)
    suite = RESULTS / "suite"
    if not (suite / "corrupted").exists():
        suite.mkdir(parents=True, exist_ok=True)
        relabel("corrupt", str(RESULTS / "data" / "val"), str(suite / "corrupted"))
    with ThreadPoolExecutor(JOBS) as pool:
        measured = dict(
            zip(jobs, tqdm(pool.map(lambda j: under_stress(*j), jobs), total=len(jobs), unit="run"), strict=True)
        )
    rows = {arm.name: list(zip(*(measured[arm, epochs, s] for s in TARGET_SEEDS), strict=True)) for arm in arms}
    columns = ["as they are", "FGSM, 8/255", "corrupted"]
    caption = f"Multi-label accuracy in percent after {epochs} epochs, on 1,000 {SCENES} and on corrupted copies of them"
    return as_table("trained towards", columns, rows, caption, TARGET_SEEDS)


def under_stress(arm: Arm, epochs: int, seed: int) -> tuple[float, float, float]:
    """Multi-label accuracy as the scenes are, attacked, and corrupted."""
    run = arm.run(epochs, seed)
    if not (run / "robustness.json").exists():
        data = RESULTS / "data"
        relabel(
            *("eval", str(data / "val"), "--checkpoint", str(run / "weights.pth"), "--multilabels", str(data / "val.json")),
            *("--fgsm", "--suite", str(RESULTS / "suite"), "--output", str(run / "robustness.json")),
            *("--workers", "0", "--device", "cpu"),
        )
    found = json.loads((run / "robustness.json").read_text(encoding="utf-8"))
    key = "multilabel_accuracy"
    return found[key], found["fgsm"][key], 100 - found["suite"]["corrupted"]["multilabel_corruption_error"]


def train_all(jobs: list[tuple[Arm, int, int]]) -> dict[tuple[Arm, int, int], float]:
    with ThreadPoolExecutor(JOBS) as pool:
        done = pool.map(lambda job: train_student(*job), jobs)
        return dict(zip(jobs, tqdm(done, total=len(jobs), unit="run"), strict=True))


def prepare() -> None:
    """Scenes, two annotators and their label sets."""
    data = RESULTS / "data"
    if not data.exists():
        relabel("demo-data", str(data))
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(train_annotator, ("ce", "bce")))
    for labels in {arm.labels for arm in TARGETS if arm.labels}:
        source = replace(labels, transposed=False)
        options = ["--tail", labels.tail, "--checkpoint", str(annotator_of(labels.annotator_loss) / "weights.pth")]
        relabel("annotate", str(data / "train"), "--labels", str(source.path), "--model", ARCH, *ANNOTATE_ARGS, *options)
        if labels.transposed and not (labels.path / SHARD_LINES).exists():
            write_transposed(source.path, labels.path)


def annotator_of(loss: str) -> Path:
    return RESULTS / "annotators" / loss


def train_annotator(loss: str) -> None:
    if not (annotator_of(loss) / "weights.pth").exists():
        options = ["--recipe", "scenes-annotator", "--set", f"loss={loss}", "--workers", "0", "--resume"]
        images = RESULTS / "data" / "annotator" / "train"
        relabel("train", str(images), "--run-dir", str(annotator_of(loss)), "--arch", ARCH, *ANNOTATOR_MODEL_ARGS, *options)


def write_transposed(source: Path, labels: Path) -> None:
    """The same label set with rows and columns of every map exchanged."""
    store = LabelStore.open(source)
    assert store.manifest.shard_count == 1, "the scenes fit one shard"
    maps = store.gather(store.rows(store.keys))
    swapped = LabelMaps(*(t.transpose(-1, -2).contiguous() for t in (maps.scores, maps.classes, maps.tail)))
    manifest: Manifest = replace(store.manifest, grid=(store.manifest.grid[1], store.manifest.grid[0]))
    labels.mkdir(parents=True, exist_ok=True)
    manifest.save(labels)
    append_shard_line(labels, write_shard(labels, 0, store.keys, swapped, manifest))


def train_student(arm: Arm, epochs: int, seed: int) -> float:
    """Train one student, or go on where it stopped; its multi-label accuracy on the validation scenes, in percent."""
    run, data = arm.run(epochs, seed), RESULTS / "data"
    relabel(
        *("train", str(data / "train"), "--run-dir", str(run), "--arch", ARCH, "--recipe", arm.recipe),
        *STUDENT_ARGS,
        *(f"--set={setting}" for setting in (*arm.settings, f"epochs={epochs}", f"seed={seed}")),
        *(["--labels", str(arm.labels.path)] if arm.labels else []),
        *arm.options,
        *("--val", str(data / "val"), "--multilabels", str(data / "val.json")),
        *("--workers", "0", "--device", "cpu", "--resume"),
    )
    return float(read_metrics(run)[-1]["val"]["multilabel_accuracy"])


def relabel(*arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", *arguments]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stdout}\n{finished.stderr}")


def as_table(
    first: str, columns: list[str], rows: Mapping[str, Sequence[Sequence[float]]], caption: str, seeds: Sequence[int]
) -> str:
    """Mean ± sample standard deviation over the seeds, in every cell."""
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, cells in rows.items():
        shown = [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    machine = f"{cpu_model()}, one thread a student, Python {platform.python_version()}, torch {torch.__version__}"
    spread = f"mean ± standard deviation over {len(seeds)} seeds of the student"
    lines += ["", f"{caption}; {spread}. `make results`, {machine}, timm {timm.__version__}."]
    return "\n".join(lines)


def write_readme(name: str, table: str) -> None:
    """Put the table between its two markers of the README."""
    begin, end = f"<!-- make results, {name}: begin -->", f"<!-- make results, {name}: end -->"
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    atomic_write(README, f"{before}{begin}\n{table}\n{end}{after}".encode())


TABLES: dict[str, Callable[[], str]] = {"targets": targets, "robustness": robustness, "recipes": recipe_table}

if __name__ == "__main__":
    main()
