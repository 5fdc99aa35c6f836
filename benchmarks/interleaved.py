"""Time alternatives in turn (A, B, B, A, ...), so that whatever else the machine does falls on all of them alike; and so
does what each leaves to the next."""

import statistics
import time
from collections.abc import Callable

import torch

SETTLE_S = 0.1  # before a call: threads of the arm before still spin for a while, on cores that this one wants


def median_seconds(device: torch.device, rounds: int, *arms: Callable[[], object]) -> list[float]:
    """The median wall-clock time of one call of each arm."""
    return [statistics.median(of_arm) for of_arm in all_seconds(device, rounds, *arms)]


def all_seconds(device: torch.device, rounds: int, *arms: Callable[[], object]) -> list[list[float]]:
    """The wall-clock time of each call of each arm; on CUDA until its last kernel has ended."""
    seconds: list[list[float]] = [[] for _ in arms]
    for number in range(rounds):
        in_turn = list(zip(arms, seconds, strict=True))
        for arm, of_arm in in_turn if number % 2 == 0 else reversed(in_turn):
            wait_for(device)
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            arm()
            wait_for(device)
            of_arm.append(time.perf_counter() - start)
    return seconds


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
