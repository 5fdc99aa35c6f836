"""Decoding processes: how many, how they end, and how their errors reach the user."""

import gc
import os
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import Tensor
from torch.utils.data import get_worker_info

from relabel.runtime.errors import InputError
from relabel.runtime.machine import cores
from relabel.runtime.typed import shown

MAX_WORKERS = 1024


def decoding_workers(requested: int | None) -> int:
    """The requested number of decoding processes; if None, this process's share of the machine's cores.

    Raises:
        InputError: a negative number, or more than any machine has use for.
    """
    if requested is not None and requested < 0:
        raise InputError(f"--workers {shown(requested)}: expected at least 0")
    if requested is not None and requested > MAX_WORKERS:
        raise InputError(f"--workers {shown(requested)}: expected at most {MAX_WORKERS}")
    return cores() if requested is None else requested


Batch = TypeVar("Batch")


def batches_of(loader: Iterable[Batch], advice: str = "use fewer --workers; 0 starts none") -> Iterator[Batch]:
    """Iterate over a DataLoader.

    Args:
        advice: where its workers cannot be started.
    Raises:
        InputError: raised in a worker; it keeps its type and its message, without the worker's traceback. Or the workers
            cannot be started.
    """
    try:
        arriving = iter(loader)
    except OSError as error:  # semaphores need room in /dev/shm, too, and processes may be limited
        raise InputError(
            f"cannot start decoding processes: {error}. /dev/shm may be full, or the number of processes or open files"
            f" limited: {advice}"
        ) from error
    try:
        yield from arriving
    except InputError as error:
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(name)[2].strip()) from None


def in_shared_memory(tensor: Tensor) -> Tensor:
    """The same tensor, for a batch: in a worker, moved to the shared memory by which it reaches the main process.

    torch would move it later, in a thread whose errors lose the batch: where /dev/shm is full, the main process would wait
    for ever. Here the error is the worker's, and reaches the user. torch's own default_collate does the same.
    """
    return tensor.share_memory_() if get_worker_info() is not None else tensor  # type: ignore[no-untyped-call]


def init_worker(worker: int) -> None:
    """worker_init_fn of every DataLoader: a worker ends only when the main process tells it to, or has ended itself.

    A terminal's Ctrl-C and torchrun's SIGTERM go to the whole process group, so workers leave that group. SIGTERM still ends
    a worker, because the main process sends it to workers that hang.

    Its garbage collector leaves alone what the main process has made: looking at an object there writes to it, and so copies
    the memory that the two share, over 100 MB of it once torch is imported.
    """
    gc.freeze()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
