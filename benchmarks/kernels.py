"""What a GPU does during a piece of work, by torch's profiler, and what therefore limits its speed.

The kernels' own time does not depend on how fast the host queues them. Where it is clearly shorter than the wall-clock time,
the GPU has waited: for the host, or for data.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.interleaved import wait_for

BUSY = 0.85  # from this share of the time on, the GPU is the limit
LISTED = 5
# Convolutions and matrix products by the names that cuDNN, cuBLAS, CUTLASS and Triton give their kernels
ARITHMETIC = re.compile(r"conv|gemm|cutlass|cudnn|xmma|wgrad|dgrad|fprop|nvjet|mma|attention|flash|_mm", re.IGNORECASE)


@dataclass(frozen=True)
class Kernels:
    """Seconds of the kernels of a piece of work, by name, the longest first."""

    seconds_of: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.seconds_of.values())

    @property
    def arithmetic(self) -> float:
        """The share of this time that convolutions and matrix products take; what the others do is mostly read and write."""
        products = sum(seconds for name, seconds in self.seconds_of.items() if ARITHMETIC.search(name))
        return products / self.seconds if self.seconds else 0.0

    def longest(self) -> list[tuple[str, float]]:
        return list(self.seconds_of.items())[:LISTED]


def kernels_of(device: torch.device, work: Callable[[], object]) -> Kernels:
    """The kernels of one call; none on a CPU."""
    if device.type != "cuda":
        return Kernels({})
    work()
    wait_for(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        wait_for(device)
    seconds_of: dict[str, float] = {}
    for event in profiled.events() or []:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            seconds_of[event.name] = seconds_of.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e6
    return Kernels(dict(sorted(seconds_of.items(), key=lambda item: -item[1])))


def what_binds(device: torch.device, wall_s: float, kernels: Kernels, starved_by: str = "host") -> str:
    """What limits work that takes `wall_s`.

    Args:
        starved_by: what the GPU waits for while no kernel runs.
    """
    if device.type != "cuda":
        return "the CPU"
    if not kernels.seconds:
        return "unknown: the profiler saw no kernels"
    busy = min(1.0, kernels.seconds / wall_s)
    if busy < BUSY:
        return f"{starved_by}: kernels run for {100 * busy:.0f} % of the time"
    side = "compute" if kernels.arithmetic >= 0.5 else "bandwidth"
    return (
        f"{side}: kernels run for {100 * busy:.0f} % of the time, {100 * kernels.arithmetic:.0f} % of it in convolutions and"
        " matrix products"
    )
