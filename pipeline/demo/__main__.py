"""`make demo`: the whole chain on the embedded digit scenes, through make's own targets.

data -> annotator -> annotate -> verify -> train (single and relabel, side by side) -> eval (clean, attacked, corrupted) ->
compare, then a table, a picture and a report to look at.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.demo.networks import ANNOTATE_ARGS, ANNOTATOR_MODEL_ARGS, ARCH, REPOSITORY, STUDENT_ARGS
from relabel.runtime.errors import InputError

ARMS = {"single": "ground-truth label", "relabel": "label map, pooled over the crop"}  # arm: its target


def main(arguments: list[str]) -> int:
    try:
        run_demo(Path(arguments[0] if arguments else "demo"))
    except InputError as error:
        print(f"relabel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrelabel: interrupted; run `make demo` again to continue", file=sys.stderr)
        return 130
    return 0


def run_demo(folder: Path) -> None:
    """Run every stage that is not finished yet, then show the results.

    Raises:
        InputError: a stage failed; its own error message is printed above.
    """
    data, labels, annotator = folder / "data", folder / "labels", folder / "annotator"
    times: dict[str, float] = {}
    with stage("data", times):
        if data.exists():
            print(f"{data} already exists")
        else:
            run([[sys.executable, "-m", "pipeline", "demo-data", str(data)]])
    with stage("annotator", times):
        variables = {"IMAGENET": data / "annotator", "RUN": annotator, "RECIPE": "scenes-annotator", "ARCH": ARCH}
        run([make("train", **variables, ARCH_ARGS=shlex.join(ANNOTATOR_MODEL_ARGS), WORKERS=1)])
    label_set = {
        "IMAGENET": data,
        "LABELS": labels,
        "ANNOTATOR": ARCH,
        "ANNOTATOR_ARGS": shlex.join(ANNOTATE_ARGS),
        "CHECKPOINT": annotator / "weights.pth",
        "WORKERS": 1,
    }
    for name in ("annotate", "verify"):
        with stage(name, times):
            run([make(name, **label_set)])
    students = [
        label_set
        | {
            "ARCH": ARCH,
            "ARCH_ARGS": shlex.join(STUDENT_ARGS),
            "RECIPE": f"scenes-{arm}",
            "RUN": folder / arm,
            "WORKERS": 0,
            "MULTILABELS": data / "val.json",
        }
        for arm in ARMS
    ]
    with stage("train", times, "both arms side by side, one thread each"):
        run([make("train", **variables) for variables in students], prefixes=list(ARMS))
    suite = folder / "suite"
    with stage("corrupt", times):
        if (suite / "corrupted").exists():
            print(f"{suite / 'corrupted'} already exists")
        else:
            suite.mkdir(exist_ok=True)
            run([[sys.executable, "-m", "pipeline", "corrupt", str(data / "val"), str(suite / "corrupted")]])
    with stage("eval", times, "clean, attacked and corrupted scenes"):
        stress = {"EVAL_ARGS": f"--suite {shlex.quote(str(absolute(suite)))} --fgsm"}
        run([make("eval", **variables, **stress) for variables in students], prefixes=list(ARMS))
    with stage("compare", times, "with a 95% bootstrap interval"):
        weights = [str(folder / arm / "weights.pth") for arm in ("relabel", "single")]
        options = ["--checkpoint", weights[0], "--compare", weights[1], "--multilabels", str(data / "val.json")]
        options += ["--output", str(folder / "compare.json")]
        run([[sys.executable, "-m", "pipeline", "eval", str(data / "val"), *options, "--workers", "0"]])
    results = {arm: json.loads((folder / arm / "eval.json").read_text(encoding="utf-8")) for arm in ARMS}
    with stage("picture", times):
        from pipeline.demo.picture import draw_scenes

        picture = folder / "scenes.png"
        draw_scenes(data, labels, picture)
    page = folder / "report.html"
    with stage("report", times):
        runs = [f"--run={folder / arm}" for arm in ("relabel", "single")]
        options = ["--images", str(data / "train"), *runs, "--output", str(page)]
        run([[sys.executable, "-m", "pipeline", "report", str(labels), *options]])
    print(table(results, times))
    print(f"\nPicture: {picture} shows scenes, their label maps, and the targets of random crops.")
    print(f"Learning curves: {', '.join(str(folder / arm / 'curves.png') for arm in ARMS)}")
    print(f"Report: open {page.resolve().as_uri()} in a browser to look at the labels, and to draw boxes on the pictures.")


@contextmanager
def stage(name: str, times: dict[str, float], note: str = "") -> Iterator[None]:
    print(f"\n== {name}{f' ({note})' if note else ''}", flush=True)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def make(target: str, **variables: object) -> list[str]:
    return [
        "make",
        "--no-print-directory",
        "-C",
        str(REPOSITORY),
        target,
        *(f"{k}={absolute(v)}" for k, v in variables.items()),
    ]


def absolute(value: object) -> object:
    """A path as make, which runs in the repository, can find it; relative to the repository if it lies inside."""
    if not isinstance(value, Path):
        return value
    path = value.resolve()
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def run(commands: list[list[str]], prefixes: list[str] | None = None) -> None:
    """Run one command, or with `prefixes` several commands side by side, with one thread each.

    Raises:
        InputError: one of them failed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")}
    if prefixes is None:
        failed = [c for c in commands if subprocess.run(c, env=environment).returncode]
    else:
        environment["OMP_NUM_THREADS"] = "1"
        started = [
            subprocess.Popen([*c], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for c in commands
        ]
        show(started, prefixes)
        failed = [c for c, process in zip(commands, started, strict=True) if process.wait()]
    if failed:
        raise InputError(f"the demo stopped: `{shlex.join(failed[0][:5])} ...` failed; see its error message above")


def show(processes: list["subprocess.Popen[str]"], prefixes: list[str]) -> None:
    """Print the lines of several processes as they come, each with the prefix of its process."""
    width = max(map(len, prefixes))

    def relay(process: "subprocess.Popen[str]", prefix: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{prefix:<{width}} | {line}", end="", flush=True)

    with ThreadPoolExecutor(len(processes)) as pool:
        list(pool.map(relay, processes, prefixes))


def table(results: dict[str, dict[str, Any]], times: dict[str, float]) -> str:
    multi = "multilabel_accuracy"
    rows: dict[str, Callable[[dict[str, Any]], float]] = {
        "top-1 (ground truth)": lambda r: r["top1"],
        "top-5": lambda r: r["top5"],
        "multi-label accuracy": lambda r: r[multi],
        "  under FGSM, 8/255": lambda r: r["fgsm"][multi],
        "  on corrupted copies": lambda r: 100 - r["suite"]["corrupted"]["multilabel_corruption_error"],
    }
    lines = ["", f"{'validation, percent':<26}{'single':>9}{'relabel':>9}{'gap':>9}"]
    for title, measure in rows.items():
        single, relabel = (measure(results[arm]) for arm in ("single", "relabel"))
        lines.append(f"{title:<26}{single:>9.1f}{relabel:>9.1f}{relabel - single:>+9.1f}")
    lines += [
        "",
        f"{'arm':<26}target",
        *(f"{arm:<26}{target}" for arm, target in ARMS.items()),
        "",
        "seconds   " + "   ".join(f"{name} {seconds:.0f}" for name, seconds in times.items()),
        f"total     {sum(times.values()):.0f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
