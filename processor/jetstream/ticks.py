"""One timer for all who look now and then whether what they wait for is late.

A timer for each of a thousand idle readers would cost more than all else that they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Ticks:
    """Calls everyone who was added, all at once, as long as there is someone.

    A tick that is late itself by more than the time between two is left out: what has come while the process
    stood still has not been read yet, and everybody would seem late.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._looks: set[Callable[[], None]] = set()
        self._next: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[], None]) -> None:
        """Call `look` at every tick from now on; it must not raise."""
        self._looks.add(look)
        if self._next is None:
            self._wait()

    def discard(self, look: Callable[[], None]) -> None:
        """Call it no more."""
        self._looks.discard(look)
        if not self._looks and self._next is not None:
            self._next.cancel()
            self._next = None

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        # At moments that other timers of the process share, which then wakes once.
        at_s = (loop.time() // self._every_s + 1) * self._every_s
        self._next = loop.call_at(at_s, self._tick, at_s)

    def _tick(self, at_s: float) -> None:
        self._wait()
        if asyncio.get_running_loop().time() - at_s < self._every_s:
            for look in list(self._looks):
                look()
