"""Notice a process, machine or link that died without a word: its peers would wait for it for hours, where waiting is usual.

Processes share a store (torch's TCPStore), in which each counts up every few seconds. One whose count stands still is lost,
and so is the machine of the store if it does not answer. A run that lost a process ends: what is finished is kept.

Silence is counted in rounds of our own and not by the clock, so that a run that was suspended as a whole goes on.
"""

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.distributed.distributed_c10d import Store

BEAT_S = 5
SILENT_ROUNDS = 24  # two minutes


@dataclass
class Heartbeat:
    """What this process has heard of the others.

    Attributes:
        store: a connection of its own, since one operation on a dead link blocks it.
        peers: rank -> what to call that process in a message.
        store_at: the address of the store.
        silent: rank -> rounds since the process was heard.
        unanswered: rounds since the store answered.
    """

    store: Store
    rank: int
    peers: dict[int, str]
    store_at: str
    silent: dict[int, int] = field(default_factory=dict)
    unanswered: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    launcher: int = field(default_factory=os.getppid)

    def beat(self) -> None:
        counts: dict[int, int] = {}
        while not self.ended.wait(BEAT_S):
            with contextlib.suppress(RuntimeError):  # `watch` counts how long the store does not answer
                self.store.add(f"beat/{self.rank}", 1)
                for peer in self.peers:
                    count = self.store.add(f"beat/{peer}", 0)
                    heard = count != counts.get(peer) or self.store.add(f"left/{peer}", 0)
                    self.silent[peer] = 0 if heard else self.silent.get(peer, 0) + 1
                    counts[peer] = count
                self.unanswered = 0
        with contextlib.suppress(RuntimeError):
            self.store.add(f"left/{self.rank}", 1)

    def watch(self) -> None:
        while not self.ended.wait(BEAT_S):
            self.unanswered += 1
            problem = self.problem()
            if problem is not None:
                print(f"relabel: {problem}. Finished work is kept; to continue: {command_to_continue()}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)  # the main thread may be waiting in a collective operation, which nothing else ends

    def problem(self) -> str | None:
        if os.environ.get("TORCHELASTIC_RUN_ID") is not None and os.getppid() != self.launcher:
            return "torchrun, which started this process, has ended"
        lost = [peer for peer, rounds in dict(self.silent).items() if rounds >= SILENT_ROUNDS]
        silence_s = SILENT_ROUNDS * BEAT_S
        if lost:
            names = ", ".join(self.peers[peer] for peer in lost[:3]) + (", ..." if len(lost) > 3 else "")
            return f"nothing was heard of {names} for {silence_s} s: the process, its machine or the link to it has failed"
        if self.unanswered >= SILENT_ROUNDS:
            first = self.peers.get(0, "the first process")
            return f"{first} at {self.store_at} did not answer for {silence_s} s: its machine or the link to it has failed"
        return None


def command_to_continue() -> str:
    command = shlex.join(["relabel", *sys.argv[1:]])
    return f"start all processes again, each with `{command}` (train: with --resume)"


@contextlib.contextmanager
def heartbeat(store: Store, rank: int, peers: dict[int, str], store_at: str) -> Iterator[None]:
    """Inside the `with` block, this process ends with a message when another one, or torchrun, has disappeared."""
    heart = Heartbeat(store, rank, peers, store_at)
    threads = [threading.Thread(target=work, daemon=True, name=work.__name__) for work in (heart.beat, heart.watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        heart.ended.set()
        for thread in threads:
            thread.join(BEAT_S)  # not for ever: the store may be gone
