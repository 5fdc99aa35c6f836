"""The few things several processes need of one another, from torchrun's environment; one process needs none of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from relabel.runtime.errors import InputError, first_line, out_of_memory
from relabel.runtime.machine import choose_device

T = TypeVar("T")

TIMEOUT = timedelta(days=1)  # of one process for another: shards are shared out beforehand, and one GPU may be slower


@dataclass(frozen=True)
class Processes:
    """This process's place among all of them, and the device it works on."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def sync_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: batch norm's statistics differ where the images did."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def from_first(self, value: T) -> T:
        """The first process's value, in every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all of them have to ask."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor over all processes; each gets the sum."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def readable_errors() -> Iterator[None]:
    """Say what to do where another process has died, or the memory is full: torch's errors name sockets and signals.

    They come at any place: torch raises a decoding process's death from a signal handler, amid whatever runs then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            raise InputError(
                f"a decoding process died: {first_line(error).rstrip('. ')}. Where memory ran out (/dev/shm counts too), use"
                " fewer --workers; what is finished is kept: rerun (train: with --resume) to go on"
            ) from error
        if out_of_memory(error):
            raise InputError(
                f"the memory is full: {first_line(error).rstrip('. ')}. Make the batch smaller (--batch-size N; train: a new"
                " run with --set batch_size=N) or the images; what is finished is kept"
            ) from error
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError(
                "another process of this run has ended; its own message tells why. What is finished is kept: rerun (train:"
                " with --resume) to go on"
            ) from error
        raise


@contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Join torchrun's process group if there is one: nccl on CUDA, gloo on CPU.

    Raises:
        InputError: no such device, or within, another process has died.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        with readable_errors():
            yield Processes(0, 1, choose_device(device))
        return
    if device is not None and ":" in device:
        raise InputError(f"--device {device} would put all {world} processes on it; leave the number out, torchrun gives it")
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    chosen = choose_device(device)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=TIMEOUT,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    with readable_errors():
        yield Processes(dist.get_rank(), world, chosen)
    dist.destroy_process_group()  # not after an error: it could wait for processes that wait for this one
