"""Time alternatives in turn (A, B, B, A, ...), so that other load on the machine, and what one call leaves behind for the
next, affects all of them equally."""

import statistics
import time
from collections.abc import Callable

import torch

SETTLE_S = 0.1  # before each call: the previous arm's threads spin for a while and occupy cores


def median_seconds(device: torch.device, rounds: int, *arms: Callable[[], object]) -> list[float]:
    """The median wall-clock time of one call of each arm."""
    return [statistics.median(arm_s) for arm_s in all_seconds(device, rounds, *arms)]


def all_seconds(device: torch.device, rounds: int, *arms: Callable[[], object]) -> list[list[float]]:
    """The wall-clock time of each call of each arm; on CUDA, until its last kernel has finished."""
    seconds: list[list[float]] = [[] for _ in arms]
    for number in range(rounds):
        in_turn = list(zip(arms, seconds, strict=True))
        for arm, arm_s in in_turn if number % 2 == 0 else reversed(in_turn):
            wait_for(device)
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            arm()
            wait_for(device)
            arm_s.append(time.perf_counter() - start)
    return seconds


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
