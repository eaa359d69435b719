"""Whether a worker may run something now: not in a pause of the breaker, not while it waits for a budget, and
not once its route stops.

A worker asks here before each run and says here how its guests fare; what stops a route says so here, too.
The breaker and the budgets are the route's, and all its workers in this process share them; the stop is one
worker's own.

What must stay true: whatever waits here hears of a stop at once, and has changed nothing by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

from processor.capability.budgets import Budgets
from processor.delivery.breaker import Breaker
from processor.telemetry import RouteTelemetry

log = logging.getLogger("processor")

# Tells listeners of a milestone of the route: its name, and what more is to be said.
Say = Callable[[str, Mapping[str, str]], Awaitable[None]]


class GivenBack(Exception):
    """A message that waits, for its next try or the breaker, is left to the next start: the route stops."""


class Gate:
    """What one worker passes before it runs something."""

    def __init__(
        self, route: str, breaker: Breaker, budgets: Budgets, telemetry: RouteTelemetry, say: Say
    ) -> None:
        self._route = route
        self._budgets = budgets
        self._breaker = breaker
        self._telemetry = telemetry
        self._say = say
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Let nothing wait any longer; what does gets GivenBack."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the route is to stop."""
        return self._stop.is_set()

    async def stopping(self) -> None:
        """Return when the route is to stop."""
        await self._stop.wait()

    async def pause(self, seconds: float) -> None:
        """Let that time pass. Raises GivenBack as soon as the route is to stop."""
        if seconds <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
            raise GivenBack

    async def let_through(self) -> None:
        """Return when this worker may run something: at once, or once the breaker's pause is over and the
        budget is free again that it waits for.

        Until `tried` no other worker is let through while the breaker is open. Raises GivenBack.
        """
        while (wait_s := max(self._breaker.wait_s(_now_s(), self), self._budgets.wait_s())) > 0:
            await self.pause(wait_s)
        self._breaker.tries(self)

    @property
    def is_waiting(self) -> bool:
        """Whether nothing may run now because a budget is used up that is waited for."""
        return self._budgets.wait_s() > 0

    @property
    def is_narrow(self) -> bool:
        """Whether only one message is to be run at a time: the breaker is open, and this is its try."""
        return self._breaker.is_open

    def tried(self) -> None:
        """What was let through has been run, or did not have to be."""
        self._breaker.tried(self)

    async def died(self, code: str, text: str, message: int | None) -> None:
        """A guest died over a message that was alone, or could not be started."""
        was_open = self._breaker.is_open
        if not self._breaker.died(_now_s(), message):
            return
        again = datetime.now(UTC) + timedelta(seconds=self._breaker.wait_s(_now_s()))
        why = (
            f"E503 the guests of route {self._route} keep dying, the last of {code} ({text}); "
            f"nothing runs until {again:%H:%M:%S} UTC, when one message is tried again"
        )
        self._telemetry.breaker_opened(why)
        if not was_open:
            log.error("%s", why, extra={"route": self._route, "code": "E503"})
            await self._say("breaker_opened", {"code": code, "text": text})

    async def lived(self) -> None:
        """A run ended, and its guest lives."""
        if self._breaker.lived():
            self._telemetry.breaker_closed()
            log.info("a guest lives again: the breaker is closed", extra={"route": self._route})
            await self._say("breaker_closed", {})


def _now_s() -> float:
    return asyncio.get_running_loop().time()
