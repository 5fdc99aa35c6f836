"""Communication between the processes that torchrun started. In a single process every operation does nothing."""

import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from relabel.runtime.errors import InputError, first_line, out_of_memory
from relabel.runtime.heartbeat import heartbeat
from relabel.runtime.machine import choose_device, int_variable

T = TypeVar("T")

TIMEOUT = timedelta(days=1)  # for one process to wait for another that lives: shards are divided up front
CONNECT_TIMEOUT_S = 60
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to start: each first lists its images


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
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store, rank = join(world)
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    with readable_errors():
        peers = {peer: name for peer, name in enumerate(introduce(store, rank, world, backend)) if peer != rank}
        own = TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=JOIN_TIMEOUT)
    with heartbeat(prefixed(own), rank, peers, f"{address}:{port}"), readable_errors():
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
            device_id=chosen if chosen.type == "cuda" else None,
        )
        yield Processes(rank, world, chosen)
        dist.destroy_process_group()  # not after an error: it could wait for processes that wait for this one


def join(world: int) -> tuple[Store, int]:
    """The store that all processes share, and this process's rank among them.

    Raises:
        InputError: the process that has the store cannot be reached.
    """
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun has it, and had it before we were started
            with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), CONNECT_TIMEOUT_S):
                pass
        store, rank, _ = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
    except (dist.DistError, KeyError, ValueError, OSError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(
            f"cannot join the {world} processes of this run at {place} ({first_line(error).rstrip('. ')}); check that the"
            " first process runs and that this machine reaches it there"
        ) from error
    return store, rank


def prefixed(store: Store) -> Store:
    """For our own keys; torchrun counts its restarts."""
    return PrefixStore(f"relabel/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def introduce(store: Store, rank: int, world: int, backend: str) -> list[str]:
    """Wait until all processes have started. Returns what to call each in a message.

    Raises:
        InputError: some do not start; or, in every process, some would give others an address that only they can reach.
    """
    shared, keys = prefixed(store), [f"start/{peer}" for peer in range(world)]
    machine = f"{socket.gethostname()} {network()}"
    unreachable = advertised_loopback() if backend == "gloo" else None
    shared.set(keys[rank], json.dumps([socket.gethostname(), machine, unreachable]))
    try:
        shared.wait(keys, JOIN_TIMEOUT)
    except dist.DistError as error:
        missing = [str(peer) for peer, key in enumerate(keys) if not shared.check([key])]
        raise InputError(
            f"process {', '.join(missing[:5])} of {world} did not start within {JOIN_TIMEOUT}; see its own error, and start"
            " all processes again"
        ) from error
    started = [json.loads(shared.get(key)) for key in keys]
    problems = sorted({f"on {host}, {problem}" for host, _, problem in started if problem is not None})
    if problems and len({machine for _, machine, _ in started}) > 1:
        seen = shared.add("seen", 1)
        deadline = time.monotonic() + 10
        while rank == 0 and seen < world and time.monotonic() < deadline:  # it may have the store
            time.sleep(0.1)
            seen = shared.add("seen", 0)
        raise InputError(
            f"processes on other machines could not connect: {'; '.join(problems)}. Set GLOO_SOCKET_IFNAME there to the"
            " network interface that the others reach, or give the name its real address in /etc/hosts"
        )
    return [f"process {peer} on {host}" for peer, (host, _, _) in enumerate(started)]


def network() -> int:
    """What tells the networks of two containers on one machine apart."""
    namespace = Path("/proc/self/ns/net")
    return namespace.stat().st_ino if namespace.exists() else 0


def advertised_loopback() -> str | None:
    """Why gloo would tell other machines to connect to their own loopback interface; None if it gives a real address.

    It gives the address of this machine's name, as long as that can be bound; Debian's /etc/hosts says 127.0.1.1.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return None
    name = socket.gethostname()
    interfaces = ", ".join(interface for _, interface in socket.if_nameindex() if interface != "lo")
    choices = f" (this machine has {interfaces})" if interfaces else ""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as trial:
            try:
                trial.bind(address)
            except OSError:
                continue
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            return f"the name {name} stands for {address[0]}{choices}"
        return None
    return f"the name {name} stands for no address of this machine{choices}"
