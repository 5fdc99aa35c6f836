"""Ctrl-C and SIGTERM, handled only between training steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state is saved, and `--resume` continues from it."""


@contextmanager
def stop_signals() -> Iterator[Any]:
    """While it is active, Ctrl-C and SIGTERM only set a flag, so that no step is left half done.

    A second Ctrl-C acts at once. A second SIGTERM does not: it may be torchrun passing on the one that a cluster has already
    sent to every process.

    Yields:
        a function that returns whether a signal has been received.
    """
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
