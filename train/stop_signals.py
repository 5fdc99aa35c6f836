"""Ctrl-C and SIGTERM, held back until a training step is done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state is saved, and `--resume` goes on from there."""


@contextmanager
def stop_signals() -> Iterator[Any]:
    """Within, Ctrl-C and SIGTERM only raise a flag, so that a step is never left half done. A second Ctrl-C acts at once; a
    second SIGTERM may be torchrun's, which passes on what a cluster has sent to every process already."""
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
