"""A program for tests of several processes: it joins them; the first waits for the others, which never come."""

import sys
import time

from relabel.runtime import heartbeat
from relabel.runtime.distributed import processes
from relabel.runtime.errors import InputError

STARTED = "all have started"

if __name__ == "__main__":
    sys.argv[1:] = ["train", "x"]
    heartbeat.BEAT_S = 1  # so that a lost process is noticed in a fifth of the time
    try:
        with processes("cpu") as group:
            group.barrier()
            print(STARTED, flush=True)
            if group.is_first:
                group.barrier()
            time.sleep(600)
    except InputError as error:
        print(f"relabel: {error}", file=sys.stderr)
        sys.exit(1)
