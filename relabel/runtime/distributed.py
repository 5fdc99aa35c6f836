"""Communication between the processes that torchrun started. In a single process every operation does nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from relabel.runtime.errors import InputError, first_line, out_of_memory
from relabel.runtime.machine import choose_device, int_variable

T = TypeVar("T")

TIMEOUT = timedelta(days=1)  # for one process to wait for another: shards are divided up front, and one GPU may be slower


@dataclass(frozen=True)
class Processes:
    """This process's rank, the number of processes, and the device this one works on."""

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
        """Copy the first process's buffers to all others: batch norm statistics differ because the images do."""
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
        """Whether the flag is set in any process. All processes must call this."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes; each gets the sum."""
        if self.world > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def readable_errors() -> Iterator[None]:
    """When another process died or memory ran out, say what to do: torch's own errors name sockets and signals.

    These errors can appear anywhere: torch reports a dead decoding process from a signal handler, whatever is running then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            raise InputError(
                f"a decoding process died: {of_worker(error).rstrip('. ')}. If memory ran out (/dev/shm counts too;"
                " `docker run --shm-size=8g` enlarges it), use fewer --workers. Finished work is kept: re-run to continue"
                " (train: with --resume)"
            ) from error
        if out_of_memory(error):
            raise InputError(
                f"out of memory: {first_line(error).rstrip('. ')}. Use a smaller batch (annotate, eval: --batch-size N;"
                " train: a new run with --set batch_size=N) or smaller images. Finished work is kept"
            ) from error
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError(
                "another process of this run has ended; see that process's error. Finished work is kept: re-run to continue"
                " (train: with --resume)"
            ) from error
        raise


def of_worker(error: BaseException) -> str:
    """What happened in a DataLoader's worker: torch hands on its traceback, whose last line says it."""
    return str(error).strip().splitlines()[-1] if str(error).startswith("Caught ") else first_line(error)


@contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Join torchrun's process group if there is one: nccl on CUDA, gloo on CPU.

    Raises:
        InputError: no such device; or, inside the `with` block, another process died or memory ran out.
    """
    world = int_variable("WORLD_SIZE", 1, at_least=1)
    if world == 1:
        with readable_errors():
            yield Processes(0, 1, choose_device(device))
        return
    if device is not None and ":" in device:
        raise InputError(
            f"--device {device} would put all {world} processes on one device; leave the number out, torchrun assigns it"
        )
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{int_variable('LOCAL_RANK', 0)}"
    chosen = choose_device(device)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            timeout=TIMEOUT,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except ValueError as error:  # RANK, MASTER_ADDR or MASTER_PORT is missing, or no number
        raise InputError(
            f"WORLD_SIZE is {world}, but the processes cannot be joined: {first_line(error)}. Start them with torchrun, or"
            " unset WORLD_SIZE"
        ) from error
    with readable_errors():
        yield Processes(dist.get_rank(), world, chosen)
    dist.destroy_process_group()  # not after an error: it could wait for processes that wait for this one
