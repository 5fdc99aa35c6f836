"""Kills, flipped bits, full disks and files cut off under the real commands: how often the outcome is not the promised one.

    kills    SIGKILL at a random moment between a run's first file and its end, to a random one of its processes. The same
             command is then run again (train: with --resume), and must leave the files of an undisturbed run.
    flips    one random bit in one of a label set's files. verify must find it, and train must refuse the label set.
    disks    a disk too small by a random amount. The command must stop with a message, and leave the files of an undisturbed
             run when it is run again with space. Needs Linux's mount namespaces.
    cuts     a shard that becomes shorter while train reads it. train must stop and name the file.

Everything is tiny, so that a command takes seconds, most of them for importing torch: 32 generated images, label maps of
8x14 cells, a ResNet of 8 to 16 channels, on the CPU. Prints a markdown table; exits with 1 if there was a violation.
"""

import argparse
import contextlib
import functools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.hardware import hardware
from benchmarks.tiny_stages import (
    IMAGES,
    ONE,
    PATIENCE_S,
    SETTINGS,
    SHARD_SIZE,
    TWO,
    Contents,
    Stage,
    Violation,
    annotate_stage,
    check_same,
    finish,
    start,
    train_stage,
    undisturbed,
    undisturbed_folder,
    undisturbed_labels,
    wait_for_output,
    write_inputs,
)
from pipeline.verify import verify
from relabel.labels.shards import shard_name
from relabel.runtime.errors import InputError
from relabel.runtime.files import LOCK
from relabel.runtime.machine import cores
from train.options import TrainOptions
from train.recipe import load_recipe
from train.training_set import open_training_set

ENDLESS = 100_000  # epochs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    parser.add_argument("--kills", type=int, default=5, help="of each of annotate and train, with one and two processes")
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--disks", type=int, default=5, help="full ones, of each of annotate and train")
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(hardware(torch.device("cpu")), end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        stages = [stage for count in (ONE, TWO) for stage in (annotate_stage(root, count), train_stage(root, count))]
        write_inputs(root)
        print("| fault | times | expected | violations |\n|---|---|---|---|")
        failed = 0
        same = "run again: the files of an undisturbed run"
        for stage in stages:
            whole, span_s = undisturbed(stage, root)
            trial = functools.partial(kill, root, stage, whole, span_s)
            failed += row(f"{stage.name}, killed", given.kills, same, given.seed, trial)
        trial = functools.partial(flip, root)
        failed += row("flipped bit", given.flips, "found by verify, refused by train", given.seed, trial, threads=1)
        for stage in stages[:2] if can_mount() else []:
            trial = functools.partial(fill_disk, root, stage, undisturbed(stage, root)[0])
            failed += row(f"{stage.name}, full disk", given.disks, f"a message; {same}", given.seed, trial)
        trial = functools.partial(cut, root)
        failed += row("shard cut off under train", given.cuts, "a message that names the file", given.seed, trial)
    if not can_mount():
        print("\nNo full disks: this machine allows no mount namespaces.")
    sys.exit(failed > 0)


def row(
    name: str, times: int, expected: str, seed: int, trial: Callable[[random.Random], None], threads: int | None = None
) -> int:
    """Run the trials, print a row of the table, and return the number of violations; each is printed to stderr."""

    def violated(number: int) -> bool:
        try:
            trial(random.Random(f"{seed} {name} {number}"))
        except Violation as violation:
            print(f"{name}, number {number}: {violation}", file=sys.stderr)
            return True
        return False

    with ThreadPoolExecutor(threads or cores()) as pool:
        violations = sum(pool.map(violated, range(times)))
    print(f"| {name} | {times} | {expected} | {violations} |", flush=True)
    return violations


def kill(root: Path, stage: Stage, whole: Contents, span_s: float, rng: random.Random) -> None:
    for folder in folders(root):
        process = start(stage.command(), folder)
        wait_for_output(process, folder / stage.output)
        time.sleep(rng.uniform(0, 1.5 * span_s))  # several trials run at a time, which slows each of them
        members = family(process.pid)
        if process.poll() is None and members:
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                os.kill(rng.choice(members), signal.SIGKILL)
        end_of_all(process, members)
        if process.returncode == 0:
            continue  # it had finished; again
        finish(start(stage.command(again=True), folder), "the second run")
        check_same(stage, folder / stage.output, whole)
        return


def family(process: int) -> list[int]:
    """A process and those that it started, except threads."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [process, *(relative for child in children for relative in family(int(child)))]


def folders(root: Path) -> Iterator[Path]:
    """New folders, each of which is deleted when the next one is asked for."""
    while True:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            yield Path(folder)


def end_of_all(process: "subprocess.Popen[bytes]", members: list[int]) -> None:
    """Raises Violation if one of a killed run's processes lives on."""
    deadline = time.monotonic() + PATIENCE_S
    process.wait(PATIENCE_S)
    while alive := [member for member in members if Path(f"/proc/{member}/exe").exists()]:
        if time.monotonic() > deadline:
            for member in alive:
                os.kill(member, signal.SIGKILL)
            raise Violation(f"{len(alive)} of {len(members)} processes had not ended {PATIENCE_S} s after the kill")
        time.sleep(0.05)


def flip(root: Path, rng: random.Random) -> None:
    labels = undisturbed_labels(root)
    path = rng.choice(sorted(path for path in labels.iterdir() if path.name != LOCK))
    whole = path.read_bytes()
    position, bit = rng.choice([at for at in range(len(whole)) if not whole[at : at + 1].isspace()]), rng.randrange(8)
    flipped = bytearray(whole)
    flipped[position] ^= 1 << bit
    recipe, options = load_recipe("scenes-relabel", SETTINGS), TrainOptions(labels=labels, device="cpu")

    def silent(check: Callable[[], object]) -> bool:
        try:
            return not check()
        except InputError:
            return False

    try:
        replace(path, bytes(flipped))
        place = f"bit {bit} of byte {position} of {path.name}"
        if silent(lambda: verify(labels).findings):
            raise Violation(f"verify did not find {place}")
        if silent(lambda: open_training_set(root / "images", recipe, options, world=1) is None):
            raise Violation(f"train did not refuse {place}")
    finally:
        replace(path, whole)


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # the old bytes may still be mapped
    path.write_bytes(content)


def can_mount() -> bool:
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return shutil.which("unshare") is not None and subprocess.run(mount, capture_output=True).returncode == 0


def fill_disk(root: Path, stage: Stage, whole: Contents, rng: random.Random) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    output = undisturbed_folder(root, stage) / stage.output
    pages = sum(-(-path.stat().st_size // page) for path in output.iterdir())
    size = rng.randrange(1, pages) * page  # one page less than the files need, or fewer
    first, again = (shlex.join(stage.command(again)) for again in (False, True))
    script = f"""mkdir disk && mount -t tmpfs -o size={size} tmpfs disk && cd disk || exit 99
    {first} 2> ../message
    echo $? > ../code
    mount -o remount,size=1g tmpfs . && {again} && cp -a {stage.output} ../left"""
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        folder = Path(scratch)
        process = start(["unshare", "-rm", "sh", "-c", script], folder)
        finish(process, f"the run with space after one with {size} bytes")
        code, message = (folder / "code").read_text().strip(), (folder / "message").read_text(errors="replace")
        if code != "1" or "relabel: " not in message or "Traceback" in message:
            raise Violation(f"with {size} bytes: exit code {code}, {message[-500:]!r}")
        check_same(stage, folder / "left", whole)


def cut(root: Path, rng: random.Random) -> None:
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        folder = Path(scratch)
        labels = shutil.copytree(undisturbed_labels(root), folder / "labels")
        shard = labels / shard_name(rng.randrange(IMAGES // SHARD_SIZE))
        process = start(train_stage(root, ONE, ENDLESS, labels).command(), folder)
        try:
            while process.poll() is None and not (folder / "run" / "last.pt").exists():
                time.sleep(0.05)
            os.truncate(shard, rng.randrange(shard.stat().st_size - os.sysconf("SC_PAGE_SIZE")))
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise Violation(f"train had not ended {PATIENCE_S} s after the cut") from error
        finally:
            process.kill()
            process.wait()
        said = (folder / "log").read_text(errors="replace")
        if code != 1 or f"{shard} became shorter" not in said or "Traceback" in said:
            raise Violation(f"exit code {code}, {said[-500:]!r}")


if __name__ == "__main__":
    main()
