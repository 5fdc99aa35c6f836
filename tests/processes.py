"""Processes that tests start, kill and wait for.

They are forked from a server that has imported torch and timm, which takes a program five seconds of its own.

A run changes its folder in two ways only: it writes into an open file, and it gives a finished file its name. `Kill` counts
both, so that a test can kill a run at every write and every rename in turn, instead of hoping for a lucky moment.
"""

import fnmatch
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import Finished, free_port

Moment = Literal["half-way through a write", "before a rename", "after a rename"]
MOMENTS: tuple[Moment, ...] = ("half-way through a write", "before a rename", "after a rename")

FORK = multiprocessing.get_context("forkserver")  # its server imports once what all processes of these tests need
FORK.set_forkserver_preload(["tests.train.runs", "pipeline.cli", "annotate.run", "matplotlib.pyplot"])


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the `number`-th write or rename of files in `folder` whose name fits the pattern `file`, counted from 1."""

    folder: Path
    moment: Moment
    number: int
    file: str = "*"

    def arm(self) -> None:
        """Kill this process when that moment comes. There is no way back: only for a process started for this."""
        patch, count = pytest.MonkeyPatch(), itertools.count(1)
        replace, open_path = os.replace, Path.open

        def counted_replace(source: Any, target: Any, **options: Any) -> None:
            due = self.moment != MOMENTS[0] and self._concerns(Path(target)) and next(count) == self.number
            if due and self.moment == "before a rename":
                kill_this_process()
            replace(source, target, **options)
            if due:
                kill_this_process()

        def counted_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = open_path(path, mode, *arguments, **options)
            write = file.write

            def counted_write(content: Any) -> int:
                if next(count) == self.number:
                    write(content[: len(content) // 2])
                    file.flush()
                    kill_this_process()
                return write(content)

            if self.moment == MOMENTS[0] and mode[0] in "wa" and self._concerns(path):
                patch.setattr(file, "write", counted_write)
            return file

        patch.setattr(os, "replace", counted_replace)
        patch.setattr(Path, "open", counted_open)

    def _concerns(self, path: Path) -> bool:
        names = (self.file, f".{self.file}.*.tmp")  # the second is the file's name until it is finished
        return path.parent == self.folder and any(fnmatch.fnmatch(path.name, name) for name in names)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start(target: Callable[..., object], *arguments: Any, kill: Kill | None = None, **options: Any) -> BaseProcess:
    """Start a process that calls `target`, and is killed at a moment of its own if `kill` names one."""
    process = FORK.Process(target=call, args=(kill, target, *arguments), kwargs=options)
    process.start()
    return process


def call(kill: Kill | None, target: Callable[..., object], *arguments: Any, **options: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of its decoding processes, as in a program that nobody forked
    if kill is not None:
        kill.arm()
    target(*arguments, **options)


def exit_codes(started: Iterable[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Wait until all of these processes have ended; after `seconds` the rest are killed and the test fails."""
    processes, deadline = list(started), time.monotonic() + seconds
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    still_running = [process for process in processes if process.exitcode is None]
    for process in still_running:
        process.kill()
        process.join(10)
    if still_running:
        pytest.fail(f"{len(still_running)} of {len(processes)} processes had not ended after {seconds} s")
    return [process.exitcode for process in processes]


# --- programs, and what they print ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A process that runs a function, and the files with what it prints."""

    process: BaseProcess
    stdout: "tempfile._TemporaryFileWrapper[str]"  # deleted with this object
    stderr: "tempfile._TemporaryFileWrapper[str]"

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, unless it has ended."""
        if not self.has_ended:
            os.kill(self.pid, number)

    def finished(self) -> Finished:
        """Wait until it has ended."""
        (code,) = exit_codes([self.process])
        assert code is not None
        return Finished(self.process.name, code, self.stdout.read(), self.stderr.read())


def start_program(target: Callable[..., object], *arguments: Any, **environment: str) -> Program:
    """Call `target` in a process of its own, with these variables added to its environment."""
    stdout, stderr = (tempfile.NamedTemporaryFile("r") for _ in range(2))  # noqa: SIM115, they live as long as the Program
    return Program(start(call_with_output, (stdout.name, stderr.name), environment, target, *arguments), stdout, stderr)


def call_with_output(
    paths: tuple[str, str], environment: dict[str, str], target: Callable[..., object], *arguments: Any
) -> None:
    for descriptor, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.update(environment)
    target(*arguments)


def start_relabel(*arguments: object, **environment: str) -> Program:
    """Start the command line."""
    return start_program(command_line, *map(str, arguments), **environment)


def command_line(*arguments: str) -> None:
    from pipeline.cli import main

    sys.argv[1:] = arguments
    main()


def place(rank: int, port: int) -> dict[str, str]:
    """The variables by which torchrun tells a process that it is the `rank`-th of two."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}


def relabel_in_two(*arguments: object) -> list[Finished]:
    """What two processes say that run the command line together."""
    port = free_port()
    both = [start_relabel(*arguments, **place(rank, port)) for rank in range(2)]
    return [program.finished() for program in both]
