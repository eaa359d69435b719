"""What the kernel says about another process: its number here, its processor time, its memory.

Read from outside by the host, which asks a guest for none of it. A process that is gone is no error: what
can be said of it then is said by the functions.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()


def pid_of(handle: int) -> int:
    """The process id in our own namespace of a process by its descriptor; who forked it knows another."""
    text = Path(f"/proc/self/fdinfo/{handle}").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:"))


def cpu_s(pid: int) -> float | None:
    """The processor time that a process has used; None where it is gone."""
    if pid <= 0:  # it died before its number was learnt; zero would name ourselves
        return 0.0
    try:
        # The kernel's name for the CPU clock of another process; reading it needs no privilege.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def resident_bytes(pid: int) -> int:
    """Resident anonymous memory, shared with its parent in part; 0 where the process is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            _, resident, shared, *_ = statm.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def private_bytes(pid: int) -> int:
    """Memory that would be free without the process; where that is not ours to see, resident memory."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return resident_bytes(pid)
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Private_"))
