"""`make results`: the arms of the README's table on the embedded scenes, over seeds and two schedules; writes that table.

Every arm shares every setting but the target. A finished run is kept: stop it and start it again as you like.
"""

import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from pipeline.machine import cpu_model
from pipeline.manifest import SHARD_LINES, Manifest, append_shard_line, write_whole
from pipeline.scenes import ANNOTATE_ARGS, ANNOTATOR_MODEL_ARGS, ARCH, REPOSITORY, STUDENT_ARGS
from pipeline.shards import LabelMaps, LabelStore, write_shard
from train.metrics import read_metrics

SCHEDULES = (12, 30)  # epochs
SEEDS = (0, 1, 2, 3, 4)
JOBS = 2  # students at a time, one thread each
RESULTS = REPOSITORY / "results"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- make results: begin -->", "<!-- make results: end -->"


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
    name: str
    target: str
    labels: LabelSet | None = None


ARMS = (
    Arm("single label", "folder"),
    Arm("ReLabel", "localized-multi", LabelSet("ce")),
    Arm("ReLabel, annotator trained with BCE", "localized-multi", LabelSet("bce")),
    Arm("the same, log-mean-exp as tail", "localized-multi", LabelSet("bce", "logmeanexp")),
    Arm("the same, zero as tail", "localized-multi", LabelSet("bce", "zero")),
    Arm("ReLabel with x and y swapped", "localized-multi", LabelSet("ce", transposed=True)),
    Arm("whole-image multi-label", "global-multi", LabelSet("ce")),
)


def main() -> None:
    prepare()
    jobs = [(arm, epochs, seed) for seed in SEEDS for epochs in SCHEDULES for arm in ARMS]
    with ThreadPoolExecutor(JOBS) as pool:
        done = pool.map(lambda job: train_student(*job), jobs)
        accuracies = dict(zip(jobs, tqdm(done, total=len(jobs), unit="run"), strict=True))
    table = as_table(accuracies)
    write_readme(table)
    print(table)


def prepare() -> None:
    """Scenes, two annotators and their label sets."""
    data = RESULTS / "data"
    if not data.exists():
        relabel("demo-data", str(data))
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(train_annotator, ("ce", "bce")))
    for labels in {arm.labels for arm in ARMS if arm.labels}:
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
    """Train one student if that is not done; its multi-label accuracy on the validation scenes, in percent."""
    run = RESULTS / "runs" / f"{ARMS.index(arm)}-{epochs}epochs-seed{seed}"
    if not (run / "weights.pth").exists():
        data = RESULTS / "data"
        recipe = "scenes-relabel" if arm.labels else "scenes-single"
        settings = [f"target={arm.target}", f"epochs={epochs}", f"seed={seed}"]
        relabel(
            *("train", str(data / "train"), "--run-dir", str(run), "--arch", ARCH, "--recipe", recipe),
            *STUDENT_ARGS,
            *(f"--set={setting}" for setting in settings),
            *(["--labels", str(arm.labels.path)] if arm.labels else []),
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


def as_table(accuracies: dict[tuple[Arm, int, int], float]) -> str:
    """Mean ± sample standard deviation over the seeds, for every arm and schedule."""
    lines = [
        f"| trained towards | {' | '.join(f'{epochs} epochs' for epochs in SCHEDULES)} |",
        f"|---|{'---|' * len(SCHEDULES)}",
    ]
    for arm in ARMS:
        cells = []
        for epochs in SCHEDULES:
            values = [accuracies[arm, epochs, seed] for seed in SEEDS]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        lines.append(f"| {arm.name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Multi-label accuracy in percent on 1,000 validation scenes, mean ± standard deviation over {len(SEEDS)} seeds of"
        f" the student. `make results`, {cpu_model()}, one thread a student, Python {platform.python_version()},"
        f" torch {torch.__version__}, timm {timm.__version__}.",
    ]
    return "\n".join(lines)


def write_readme(table: str) -> None:
    """Put the table between the two markers of the README."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write_whole(README, f"{before}{BEGIN}\n{table}\n{END}{after}".encode())


if __name__ == "__main__":
    main()
