"""How a guest's process ended, and what can be said about why.

The zygote reports an exit code or a signal; the kernel counts whom it killed for lack of memory. Nothing here
guesses beyond them: a signal that cannot be told apart is named, with who sends such.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from processor.model import Failure, Limits
from processor.sandbox.jail import EXIT_TRIPWIRE

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
# Address space leaves no trace: orjson asks for 64 bytes of it per item of a list, and crashes when it is
# refused, with most of it never touched.
_REFUSED_MEMORY = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a guest's process ended, as the zygote saw it."""

    exit: int  # negative: the number of the signal
    used_bytes: int  # at its peak, beyond what the zygote has


class OutOfMemoryKills:
    """Tells whether the kernel has killed a process for lack of memory lately, by its own counters.

    Those are of our control group, where a guest is as well, and of the whole machine.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """`files` have a line with the word oom_kill and a number; one that cannot be read is left out."""
        self._files = [path for path in files if _kills(path) is not None]
        self._looked_s = time.monotonic()
        self._seen = self._count()

    @classmethod
    def here(cls) -> OutOfMemoryKills:
        """By the counters of this process's control groups and of its machine."""
        return cls([*_own_groups(), Path("/proc/vmstat")])

    def look(self) -> None:
        """Note where the counters are; `have_grown` compares with this. At most once in a second."""
        now_s = time.monotonic()
        if now_s >= self._looked_s + _LOOK_EVERY_S:
            self._looked_s, self._seen = now_s, self._count()

    def have_grown(self) -> bool | None:
        """Whether there was such a kill since the last look; None where the kernel does not say."""
        return self._count() != self._seen if self._files else None

    def _count(self) -> list[int | None]:
        return [_kills(path) for path in self._files]


def explain(ending: Ending | None, limits: Limits, kills: OutOfMemoryKills) -> Failure:
    """Why a guest is dead that was not killed by us."""

    def lethal(code: str, text: str) -> Failure:
        return Failure(code, text, lethal=True)

    if ending is None:
        return lethal("E314", "the guest process ended with the zygote")
    if ending.exit >= 0:
        if ending.exit == EXIT_TRIPWIRE:
            return lethal("E316", "the Runnable reached for something that its language does not have")
        return lethal("E314", f"the guest process ended with exit code {ending.exit}")
    number = -ending.exit
    name = _name(number)
    if number == signal.SIGSYS:
        return lethal("E316", "the Runnable made a system call that the jail forbids")
    if number == signal.SIGKILL:
        return lethal(*_killed(kills.have_grown()))
    if number not in _CRASHES:
        return lethal("E314", f"the guest process was ended by {name}, sent from outside")
    limit = f"limit {limits.memory_mb} MB"
    if limits.memory_mb > 0 and ending.used_bytes > 0.3 * (limits.memory_mb << 20):
        return lethal("E313", f"the Runnable used more memory than its limit and crashed ({name}, {limit})")
    if limits.memory_mb > 0 and number in _REFUSED_MEMORY:
        text = f"the guest process crashed, as native code does that is refused memory ({name}, {limit})"
        return lethal("E313", text)
    return lethal("E314", f"the guest process crashed ({name})")


def _killed(is_memory_short: bool | None) -> tuple[str, str]:
    """What a SIGKILL means, that is not ours, by whether the kernel counted a kill for lack of memory."""
    if is_memory_short:
        return (
            "E313",
            "the kernel killed the guest process because memory ran out (its oom_kill counter rose)",
        )
    if is_memory_short is None:
        return "E314", (
            "the guest process was killed by SIGKILL, which the kernel sends when memory runs out, and people"
            " and programs with `kill -9`"
        )
    return "E314", (
        "the guest process was killed by SIGKILL from outside, as with `kill -9`: the kernel counted no kill"
        " for lack of memory"
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _own_groups() -> Iterator[Path]:
    """Where our control groups count such kills: version 2, and version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers:
            yield Path(f"/sys/fs/cgroup{place}/memory.events")
        elif "memory" in controllers.split(","):
            yield Path(f"/sys/fs/cgroup/memory{place}/memory.oom_control")


def _kills(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
