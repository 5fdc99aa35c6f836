"""`make results`: measure the tables of docs/results.md, on the embedded scenes and over seeds, and write them there.

    targets      students trained with different targets; all other settings are the same
    robustness   two of these students under attack and on corrupted images
    regions      students trained on stored regions, on label maps, on both, and by a live teacher
    fidelity     how close stored targets come to the classifier's own answers
    noise        wrong labels that `relabel find-noise` and cleanlab find

Finished runs are kept, so it can be stopped and started again. A run that was started with different settings stops it with
an error. `make results TABLES=robustness` makes only that table.
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
from train.run_dir.metrics import read_metrics

JOBS = 2  # students at a time, one thread each
RESULTS = REPOSITORY / "results"
DOCUMENT = REPOSITORY / "docs" / "results.md"

SCENES = "validation scenes"


@dataclass(frozen=True)
class LabelSet:
    """A label set of the training scenes: the loss of its annotator, and its tail."""

    annotator_loss: str
    tail: str = "mean"
    transposed: bool = False  # swap rows and columns of every map, which is what pooling with swapped boxes reads

    @property
    def path(self) -> Path:
        return RESULTS / "labels" / f"{self.annotator_loss}-{self.tail}{'-transposed' if self.transposed else ''}"


@dataclass(frozen=True)
class Arm:
    """A row of a table: a recipe, the settings that override it, and a label set."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    labels: LabelSet | None = None
    options: tuple[str, ...] = ()  # further ones of `relabel train`

    def run(self, epochs: int, seed: int) -> Path:
        return RESULTS / "runs" / f"target-{self.name.replace(' ', '-').replace(',', '')}-{epochs}epochs-seed{seed}"


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
EPOCHS, SEEDS = (12, 30), (0, 1, 2, 3, 4)


def main() -> None:
    names = sys.argv[1:] or list(TABLES)
    unknown = sorted(set(names) - set(TABLES))
    if unknown:
        sys.exit(f"unknown table {', '.join(unknown)}; expected {' or '.join(TABLES)}")
    if not (RESULTS / "data").exists():
        relabel("demo-data", str(RESULTS / "data"))
    for name in names:
        table = TABLES[name]()
        write_table(name, table)
        print(table)


def targets() -> str:
    """Train every arm for each number of epochs, with every seed; a row per arm."""
    prepare()
    accuracies = train_all([(arm, epochs, seed) for seed in SEEDS for epochs in EPOCHS for arm in TARGETS])
    rows = {arm.name: [[accuracies[arm, epochs, seed] for seed in SEEDS] for epochs in EPOCHS] for arm in TARGETS}
    columns = [f"{epochs} epochs" for epochs in EPOCHS]
    return as_table(columns, rows, f"Multi-label accuracy in percent on 1,000 {SCENES}")


def robustness() -> str:
    """Evaluate two of the arms on clean, attacked and corrupted scenes."""
    prepare()
    epochs = EPOCHS[-1]
    arms = (SINGLE, RELABEL)
    jobs = [(arm, epochs, seed) for seed in SEEDS for arm in arms]
    train_all(jobs)
    suite = RESULTS / "suite"
    if not (suite / "corrupted").exists():
        suite.mkdir(parents=True, exist_ok=True)
        relabel("corrupt", str(RESULTS / "data" / "val"), str(suite / "corrupted"))
    with ThreadPoolExecutor(JOBS) as pool:
        accuracies = pool.map(lambda job: under_stress(*job), jobs)
        measured = dict(zip(jobs, tqdm(accuracies, total=len(jobs), unit="run"), strict=True))
    rows = {arm.name: list(zip(*(measured[arm, epochs, seed] for seed in SEEDS), strict=True)) for arm in arms}
    columns = ["as they are", "FGSM, 8/255", "corrupted"]
    caption = f"Multi-label accuracy in percent after {epochs} epochs, on 1,000 {SCENES} and on corrupted copies of them"
    return as_table(columns, rows, caption)


def under_stress(arm: Arm, epochs: int, seed: int) -> tuple[float, float, float]:
    """Multi-label accuracy on clean, attacked and corrupted scenes, in percent."""
    run = arm.run(epochs, seed)
    if not (run / "robustness.json").exists():
        data = RESULTS / "data"
        relabel(
            *("eval", str(data / "val"), "--checkpoint", str(run / "weights.pth"), "--multilabels", str(data / "val.json")),
            *("--fgsm", "--suite", str(RESULTS / "suite"), "--output", str(run / "robustness.json")),
            *("--workers", "0", "--device", "cpu"),
        )
    result = json.loads((run / "robustness.json").read_text(encoding="utf-8"))
    key = "multilabel_accuracy"
    return result[key], result["fgsm"][key], 100 - result["suite"]["corrupted"]["multilabel_corruption_error"]


def train_all(jobs: list[tuple[Arm, int, int]]) -> dict[tuple[Arm, int, int], float]:
    """Train a student for every arm, number of epochs and seed; their multi-label accuracies in percent."""
    with ThreadPoolExecutor(JOBS) as pool:
        accuracies = pool.map(lambda job: train_student(*job), jobs)
        return dict(zip(jobs, tqdm(accuracies, total=len(jobs), unit="run"), strict=True))


def prepare() -> None:
    """Train two annotators and make their label sets."""
    data = RESULTS / "data"
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
    """Write the same label set with rows and columns of every map swapped."""
    store = LabelStore.open(source)
    assert store.manifest.shard_count == 1, "the scenes fit one shard"
    maps = store.gather(store.rows(store.keys))
    swapped = LabelMaps(*(t.transpose(-1, -2).contiguous() for t in (maps.scores, maps.classes, maps.tail)))
    manifest: Manifest = replace(store.manifest, grid=(store.manifest.map_grid[1], store.manifest.map_grid[0]))
    labels.mkdir(parents=True, exist_ok=True)
    manifest.save(labels)
    append_shard_line(labels, write_shard(labels, 0, store.keys, swapped, manifest))


def train_student(arm: Arm, epochs: int, seed: int) -> float:
    """Train one student, or resume it; its multi-label accuracy on the validation scenes, in percent."""
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


def as_table(columns: list[str], rows: Mapping[str, Sequence[Sequence[float]]], caption: str) -> str:
    """Markdown; every cell is the mean ± sample standard deviation over the seeds."""
    lines = [f"| target | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    spread = f"mean ± standard deviation over {len(SEEDS)} seeds of the student"
    lines += ["", f"{caption}; {spread}. `make results`, {machine()}."]
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured with."""
    python, versions = platform.python_version(), f"torch {torch.__version__}, timm {timm.__version__}"
    return f"{cpu_model()}, one thread per student, Python {python}, {versions}"


def write_table(name: str, table: str) -> None:
    """Write the table between its two markers in docs/results.md."""
    begin, end = f"<!-- make results, {name}: begin -->", f"<!-- make results, {name}: end -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    atomic_write(DOCUMENT, f"{before}{begin}\n{table}\n{end}{after}".encode())


def of_regions(name: str) -> str:
    """A table of benchmarks/region_results.py, which uses what is above."""
    from benchmarks import region_results

    table: str = getattr(region_results, name)()
    return table


def of_noise() -> str:
    """The table of benchmarks/find_noise.py, which uses what is above."""
    from benchmarks import find_noise

    return find_noise.noise()


TABLES: dict[str, Callable[[], str]] = {
    "targets": targets,
    "robustness": robustness,
    "regions": lambda: of_regions("regions"),
    "fidelity": lambda: of_regions("fidelity"),
    "noise": of_noise,
}

if __name__ == "__main__":
    main()
