"""A message where a mapped file loses its pages while it is read: the system sends SIGBUS, which ends a process in silence.

Label sets are read by memory-mapping. A read call per row would report an ordinary error, but is slower, even with a
descriptor open for every shard, of which a process may not have as many.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

ACTION = ctypes.CFUNCTYPE(None, ctypes.c_int)
installed: list[Any] = []  # C has only the address of the function, so Python must keep it


def explain_bus_errors() -> None:
    """From here on, a SIGBUS of this process ends it with a message and exit code 1. Decoding workers have torch's own."""
    if not installed:
        installed.append(ACTION(report))
        ctypes.CDLL(None).signal(signal.SIGBUS, installed[0])


def report(signum: int) -> None:
    """Python's own handlers run after the failed instruction, which never ends; this one runs instead of it.

    The instruction is a copy or a checksum of mapped bytes, so no lock of the interpreter or of the allocator is half taken.
    """
    try:
        lost = ", ".join(cut_off_files())
        cause = f"{lost} became shorter while it was open" if lost else "its disk or server failed, or /dev/shm is full"
        remedy = "restore the file (`relabel verify` checks a label set), then run again (train: with --resume)"
        message = f"relabel: a file could not be read: {cause}. Finished work is kept; {remedy}"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{message}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(1)


def cut_off_files() -> list[str]:
    """The files that this process maps beyond their present end; none where the system does not list its mappings."""
    mappings, page, found = Path("/proc/self/maps"), os.sysconf("SC_PAGE_SIZE"), []
    for line in mappings.read_text(errors="surrogateescape").splitlines() if mappings.exists() else []:
        fields = line.split(maxsplit=5)  # range, permissions, offset, device, inode, path
        # The loader leaves gaps that nobody may read between the parts of a library
        if len(fields) == 6 and fields[1].startswith("r") and Path(fields[5]).is_file():
            start, end = (int(address, 16) for address in fields[0].split("-"))
            if Path(fields[5]).stat().st_size + page <= int(fields[2], 16) + end - start:
                found.append(fields[5])
    return found
