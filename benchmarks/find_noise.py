"""`make results TABLES=noise`: wrong labels that `relabel find-noise` finds on the embedded scenes, beside cleanlab.

5% of 20,000 scenes are moved into the folder of a digit that they do not show. The annotator is trained as the demo's, on
scenes of one digit each that share no glyph with those it judges. cleanlab gets the same annotator's probabilities for the
whole images, exactly: the mean of all ten logits of every cell is the classifier's own output.

Shapes: N images, C classes.
"""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from benchmarks.results import RESULTS, machine, relabel
from pipeline.demo.networks import ANNOTATE_ARGS, ANNOTATOR_MODEL_ARGS, ARCH
from relabel.labels.maps import LabelMaps
from relabel.labels.store import LabelStore
from relabel.labels.whole_image import whole_image_logits
from relabel.runtime.files import atomic_write

SEEDS = (0, 1, 2)  # of the scenes, of what is moved, and of the annotator
SCENES, WRONG_SHARE, RECALL = 20_000, 0.05, 0.95
RANKINGS = {
    "self_confidence": "self-confidence",
    "normalized_margin": "normalised margin",
    "confidence_weighted_entropy": "confidence-weighted entropy",
}


@dataclass(frozen=True)
class Found:
    """What a tool makes of the scenes of one seed: shares in percent, and numbers of images that are labelled right.

    Attributes:
        recall, false_alarms: of those it calls wrong by default.
        alarms_at_recall: false alarms when its ranking is cut where it has found RECALL of the moved scenes.
        shown, original: of all moved scenes, those for which it suggests a digit that they show, and the one whose folder
            they come from.
    """

    recall: float
    false_alarms: int
    alarms_at_recall: int
    shown: float
    original: float


def noise() -> str:
    """A row per tool."""
    measured = [measure(seed) for seed in SEEDS]
    columns = (
        "found, %",
        "false alarms",
        f"false alarms at {100 * RECALL:.0f}% found",
        "suggestion shown, %",
        "original, %",
    )
    lines = ["| tool | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for tool in measured[0]:
        of_seeds = [vars(by_tool[tool]).values() for by_tool in measured]
        lines.append(f"| {tool} | " + " | ".join(map(cell, zip(*of_seeds, strict=True))) + " |")
    caption = (
        f"{SCENES:,} scenes, {SCENES * WRONG_SHARE:,.0f} of them in a wrong folder; mean ± standard deviation over"
        f" {len(SEEDS)} seeds of scenes and annotator. `make results TABLES=noise`, cleanlab"
        f" {version('cleanlab')}, {machine()}."
    )
    return "\n".join([*lines, "", caption])


def cell(values: Sequence[float]) -> str:
    digits = 0 if all(isinstance(value, int) for value in values) else 1
    return f"{statistics.mean(values):,.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def measure(seed: int, scenes: int = SCENES) -> dict[str, Found]:
    """What each tool finds with this seed."""
    folder = RESULTS / "noise" / f"{scenes}-seed{seed}"
    if not (folder / "moved.json").exists():
        relabel("demo-data", str(folder / "data"), f"--train-images={scenes}", "--val-images=100", f"--seed={seed}")
        move(folder, np.random.default_rng([seed, 0]))
    train, model = folder / "data" / "train", [*ANNOTATOR_MODEL_ARGS, "--recipe=scenes-annotator", f"--set=seed={seed}"]
    if not (folder / "annotator" / "weights.pth").exists():
        one_digit = str(folder / "data" / "annotator" / "train")
        relabel("train", one_digit, f"--run-dir={folder / 'annotator'}", "--arch", ARCH, *model, "--workers=0", "--resume")
    for labels, options in (("labels", []), ("all-logits", ["--topk=10"])):
        checkpoint = f"--checkpoint={folder / 'annotator' / 'weights.pth'}"
        more = [*ANNOTATE_ARGS, *options, checkpoint, "--workers=0", "--device=cpu"]
        relabel("annotate", str(train), f"--labels={folder / labels}", "--model", ARCH, *more)
    relabel("find-noise", str(folder / "labels"), f"--images={train}", f"--output={folder / 'noise.csv'}")
    moved = json.loads((folder / "moved.json").read_text(encoding="utf-8"))
    return {"relabel find-noise": by_find_noise(folder / "noise.csv", moved)} | by_cleanlab(folder / "all-logits", moved)


def move(folder: Path, rng: np.random.Generator) -> None:
    """Move some scenes into folders of digits that they do not show; moved.json has the folder they come from, and the
    digits they show, by the new key."""
    data = folder / "data"
    scenes = json.loads((data / "train.json").read_text(encoding="utf-8"))["images"]
    keys, moved = sorted(scenes), {}
    for number in np.sort(rng.permutation(len(keys))[: round(WRONG_SHARE * len(keys))]).tolist():
        original, name = keys[number].split("/")
        shown = scenes[keys[number]]["classes"]
        wrong = str(rng.choice([str(digit) for digit in range(10) if str(digit) not in shown]))
        (data / "train" / keys[number]).rename(data / "train" / wrong / name)
        moved[f"{wrong}/{name}"] = {"original": original, "shown": shown}
    atomic_write(folder / "moved.json", json.dumps(moved).encode())


Moved = dict[str, dict[str, str | list[str]]]


def by_find_noise(table: Path, moved: Moved) -> Found:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))  # most certain first
    keys, issue = [row["key"] for row in rows], [row["is_label_issue"] == "True" for row in rows]
    return score(keys, np.array(issue), [row["predicted_label"] for row in rows], moved)


def by_cleanlab(labels: Path, moved: Moved) -> dict[str, Found]:
    """cleanlab's default decision, and each of its rankings of all images."""
    store = LabelStore.open(labels, LabelMaps)
    logits = whole_image_logits(store.gather(store.rows(store.keys)), 10)
    probabilities = logits.double().softmax(1).numpy()  # (N, C)
    given = np.array([int(key.split("/")[0]) for key in store.keys])
    issue, predicted = find_label_issues(given, probabilities), probabilities.argmax(1)
    found = {}
    for method, name in RANKINGS.items():
        order = np.argsort(get_label_quality_scores(given, probabilities, method=method), kind="stable")
        keys, suggested = [store.keys[i] for i in order], [str(predicted[i]) for i in order]
        found[f"cleanlab, by {name}"] = score(keys, issue[order], suggested, moved)
    return found


def score(keys: Sequence[str], issue: np.ndarray, suggested: Sequence[str], moved: Moved) -> Found:
    """Args: of all images, in the order of a tool's ranking."""
    wrong = np.array([key in moved for key in keys])
    number = int(np.argmax(np.cumsum(wrong) >= RECALL * len(moved))) + 1  # images up to where enough are found
    suggestion = {key: digit for key, digit in zip(keys, suggested, strict=True) if key in moved}
    return Found(
        recall=100 * float(issue[wrong].mean()),
        false_alarms=int((issue & ~wrong).sum()),
        alarms_at_recall=int((~wrong[:number]).sum()),
        shown=100 * statistics.mean(digit in moved[key]["shown"] for key, digit in suggestion.items()),
        original=100 * statistics.mean(digit == moved[key]["original"] for key, digit in suggestion.items()),
    )
