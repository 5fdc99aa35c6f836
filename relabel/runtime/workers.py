"""Decoding processes: how many, how they end, and how their errors reach the user."""

import os
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

from relabel.runtime.errors import InputError
from relabel.runtime.machine import cores


def decoding_workers(asked: int | None) -> int:
    """The number of decoding processes asked for, or this process's share of the machine's cores.

    Raises:
        InputError: a negative number.
    """
    if asked is not None and asked < 0:
        raise InputError(f"--workers {asked}: expected at least 0")
    return cores() if asked is None else asked


Batch = TypeVar("Batch")


def batches_of(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Iterate over a DataLoader.

    Raises:
        InputError: what a worker raised, of the worker's own type, with its message only instead of a worker's traceback.
    """
    try:
        yield from loader
    except InputError as error:
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(name)[2].strip()) from None


def init_worker(worker: int) -> None:
    """worker_init_fn of every DataLoader: workers end when the main process tells them to, or is gone.

    A terminal's Ctrl-C and torchrun's SIGTERM go to the whole process group, which they leave; SIGTERM to one of them alone
    is how the main process ends those that hang.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
