"""When a training run checks its losses, saves its state, or stops."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relabel.runtime.distributed import Processes

CHECK_EVERY = 20  # steps; each check waits for the device


@dataclass(frozen=True)
class Due:
    """What to do after a step."""

    check: bool
    save: bool
    stop: bool


@dataclass
class Watch:
    """Decides after every step what is due; all processes come to the same decision.

    Attributes:
        stopped: whether a signal has asked this process to stop.
        save_minutes: minutes after which the state is saved within an epoch.
    """

    group: Processes
    stopped: Callable[[], bool]
    save_minutes: float
    saved_s: float = field(default_factory=time.perf_counter)

    def after(self, step: int, epoch_ends: bool) -> Due:
        """What is due after this step, which may be the last one of its epoch."""
        check = step % CHECK_EVERY == 0 or epoch_ends
        stop = self.stopped() if self.group.world == 1 else check and self.group.any(self.stopped())
        late = stop or (check and self.group.any(time.perf_counter() - self.saved_s > 60 * self.save_minutes))
        return Due(check or stop, late or epoch_ends, stop)

    def saved(self) -> None:
        self.saved_s = time.perf_counter()
