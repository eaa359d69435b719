"""The clocks of one guest, as the host reads them: wall time and processor time, of its runs and between."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from processor.model import Failure, Limits
from processor.sandbox import processes
from processor.sandbox.link import Link

# How often a running guest's processor time is read: the most that it can go over its limit.
CPU_POLL_S = 0.05
# The guest's own timers come first, so that it can say which line was running; then the host kills.
GRACE_S = 0.1
# A guest of which nothing is asked waits for its socket. It may use this once, to let go of what the last run
# left, and this part of all further time.
IDLE_CPU_S = 0.5
IDLE_SHARE = 0.01


class RunClock:
    """Measures the run in hand, and kills the guest where it takes more than its limits."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        self._deadline_s = math.inf
        self._cpu_before_s = self._cpu_seen_s = 0.0  # before this run, and when it was last looked at
        self._idle_since_s, self._cpu_idle_s = math.inf, 0.0  # when it was left alone, with its CPU time then
        self._is_held_up = False

    def begin(self) -> None:
        """Something is asked of the guest from now on."""
        self._deadline_s = self._loop.time() + self._limits.wall_s
        self._cpu_before_s = self._cpu_s()
        self._check()

    def end(self) -> None:
        """Nothing is asked of it any more."""
        self._idle_since_s, self._cpu_idle_s = self._loop.time(), self._cpu_s()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """A time that is not the guest's: others keep it waiting."""
        before = self._loop.time()
        self._is_held_up = True
        try:
            yield
        finally:
            self._is_held_up = False
            self._deadline_s += self._loop.time() - before

    @property
    def cpu_used_s(self) -> float:
        """The processor time of the run in hand, so far."""
        return self._cpu_s() - self._cpu_before_s

    @property
    def cpu_spent_s(self) -> float:
        """The processor time of the run that ended last."""
        return self._cpu_idle_s - self._cpu_before_s

    def idle_excess(self) -> Failure | None:
        """What is wrong with a guest that uses the processor while nothing is asked of it (E367)."""
        used_s = self._cpu_s() - self._cpu_idle_s
        idle_s = self._loop.time() - self._idle_since_s
        if used_s <= IDLE_CPU_S + IDLE_SHARE * idle_s:
            return None
        text = f"it used {used_s:.1f} s of CPU time in {idle_s:.1f} s in which nothing was asked of it"
        return Failure("E367", text, lethal=True)

    def too_slow(self) -> Failure:
        spent_s = self._loop.time() - self._deadline_s + self._limits.wall_s
        text = f"stopped after {spent_s:.2f} s of wall time (limit {self._limits.wall_s:g} s)"
        return Failure("E312", text, lethal=True)

    def too_busy(self) -> Failure:
        text = f"stopped after {self.cpu_used_s:.2f} s of CPU time (limit {self._limits.cpu_s:g} s)"
        return Failure("E311", text, lethal=True)

    def _check(self) -> None:
        """Kill a guest that is over its time or its share of the processor; look again shortly."""
        now = self._loop.time()
        if now >= self._deadline_s + GRACE_S and not self._is_held_up:
            self._link.kill(self.too_slow())
        elif self.cpu_used_s >= self._limits.cpu_s + GRACE_S:
            self._link.kill(self.too_busy())
        else:
            wait_s = min(CPU_POLL_S, max(self._deadline_s + GRACE_S - now, 0.001))
            self._watch = self._loop.call_later(wait_s, self._check)

    def _cpu_s(self) -> float:
        # Its number may be that of another by now, where it has ended.
        cpu_s = processes.cpu_s(self._link.pid) if self._link.alive else None
        if cpu_s is not None:
            self._cpu_seen_s = cpu_s
        return self._cpu_seen_s
