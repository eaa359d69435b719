"""How many input messages wait for each route, and for how long: what the gauges of lag say.

Who knows is asked every other second: the reader of a route that runs here, and the streams for one that is
paused or stopped. A route that others run whole is theirs to report.

What must stay true: this costs next to nothing. A reader that waits for messages knows without asking that
there are none, and says when that may have changed: a thousand such routes are not even looked at. Requests
to the server are few at a time, so that with very many routes that do not run a gauge may be a minute old.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from processor.context.subjects import PositionKind, RouteSubjects, app_stream
from processor.delivery.holdings import Holdings
from processor.errors import ProcessorError
from processor.jetstream import Again, ApiError, Broker, Unknown
from processor.model import Lag
from processor.operate.control import Control
from processor.operate.status import behind, first_unread
from processor.route import Route
from processor.telemetry import Telemetry

log = logging.getLogger("processor")

_NOTHING = Lag(0)
_ROUND_S = 2.0
# Between routes for which the server is asked, by what that costs this process (0.2 and 2 ms).
_AFTER_LOOK_S = 0.02
_AFTER_COUNT_S = 0.2


class Measured(Protocol):
    """What runs a route here."""

    @property
    def is_idle(self) -> bool:
        """Whether it is known without asking the server that nothing waits."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` once, as soon as `is_idle` may not be so any more."""

    async def measure(self) -> tuple[Lag, bool]:
        """What waits for the route, and whether the server was asked for it."""


class Run(Protocol):
    """A route in this process."""

    @property
    def route(self) -> Route: ...

    @property
    def lanes(self) -> Measured | None: ...

    @property
    def is_elsewhere(self) -> bool:
        """Whether others run all of it."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """What waited for a route that does not run when its stream was like this."""

    stream: tuple[object, ...]
    lag: Lag


class LagWatch:
    """Keeps the gauges of lag true for the routes of one process."""

    def __init__(self, broker: Broker, telemetry: Telemetry) -> None:
        self._broker = broker
        self._telemetry = telemetry
        self._counted: dict[str, _Counted] = {}  # by route
        self._said: dict[str, tuple[Run, Lag | None]] = {}
        self._idle: set[str] = set()  # routes that were said to be, and did not change since

    async def run(self, runs: Mapping[str, Run]) -> None:
        """Do so for ever; `runs` are the routes by name, and may change."""
        while True:
            await asyncio.sleep(_ROUND_S)
            for name in runs.keys() - self._idle:
                run = runs.get(name)
                if run is None:  # a reload has just taken it out
                    continue
                lanes = run.lanes
                try:
                    lag = await self._look(run)
                except (ProcessorError, Unknown, Again, ApiError) as err:
                    log.debug("what waits cannot be counted: %s", err, extra={"route": name})
                    await asyncio.sleep(_AFTER_COUNT_S)
                    continue
                if runs.get(name) is run and run.lanes is lanes:
                    self._say(name, run, lag)
                    if lanes is not None and lanes.is_idle and lag == _NOTHING:
                        self._idle.add(name)
                        lanes.on_change(partial(self._idle.discard, name))
            for gone in self._said.keys() - runs.keys():
                del self._said[gone]
                self._counted.pop(gone, None)
                self._idle.discard(gone)

    async def _look(self, run: Run) -> Lag | None:
        """What waits for a route; None where that is for others to say."""
        if run.lanes is not None:
            self._counted.pop(run.route.name, None)
            lag, has_asked = await run.lanes.measure()
            if has_asked:
                await asyncio.sleep(_AFTER_LOOK_S)
            return lag
        return None if run.is_elsewhere else await self._count(run.route)

    async def _count(self, route: Route) -> Lag:
        """What waits for a route that does not run; counted again only when its stream has changed."""
        info = await Holdings(self._broker).input(route)
        await asyncio.sleep(_AFTER_LOOK_S)
        stream = _identity(info)
        known = self._counted.get(route.name)
        if known is not None and known.stream == stream and not route.input.is_own:
            return known.lag
        _, messages = await behind(self._broker, route, info)
        oldest_s = await self._oldest_s(route, info) if messages else None
        self._counted[route.name] = _Counted(stream, Lag(messages, oldest_s))
        await asyncio.sleep(_AFTER_COUNT_S)
        return self._counted[route.name].lag

    async def _oldest_s(self, route: Route, info: Mapping[str, Any] | None) -> float | None:
        """When the oldest of the messages that wait was stored."""
        found = []
        if route.input.is_own:
            inboxes = RouteSubjects(route.app, route.name).inbox()
            found.append(await self._stored_s(app_stream(route.app), [inboxes], 1))
        if info is not None and not route.input.is_all_own:
            kind: PositionKind = "hop" if route.input.is_own else "pos"
            parts = await Control(self._broker, route.app).parts(route.name, kind=kind)
            first = first_unread(info, parts)
            found.append(await self._stored_s(info["config"]["name"], route.input.subjects, first))
        return min((stored_s for stored_s in found if stored_s is not None), default=None)

    async def _stored_s(self, stream: str, subjects: Any, sequence: int) -> float | None:
        history = self._broker.history(stream, subjects, start_sequence=sequence, headers_only=True)
        async with aclosing(history):
            async for stored in history:
                return stored.timestamp_s
        return None

    def _say(self, name: str, run: Run, lag: Lag | None) -> None:
        if self._said.get(name) == (run, lag) and (lag is None or lag.oldest_s is None):
            return
        self._said[name] = (run, lag)
        telemetry = self._telemetry.route(name)
        if lag is None:
            telemetry.lag_unknown()
        else:
            age_s = 0.0 if lag.oldest_s is None else max(0.0, time.time() - lag.oldest_s)
            telemetry.lag(lag.messages, age_s)


def _identity(info: Mapping[str, Any] | None) -> tuple[object, ...]:
    if info is None:
        return ()
    state = info["state"]
    return info["config"]["name"], info["created"], *(state[n] for n in ("first_seq", "last_seq", "messages"))
