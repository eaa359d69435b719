"""What limits take away before it is read, and how much room is left: measured, and said in time.

A limit of an input stream drops its oldest messages, read or not; E409 says so only when they are gone. The
app's own stream has no limits, so what it holds and what the account may store is measured instead.

What must stay true: nothing here stops a route or makes a process unready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from processor.context.subjects import Kind, app_stream, every
from processor.delivery.codec import codec_for
from processor.delivery.effects import EffectsBuilder
from processor.delivery.holdings import Holdings
from processor.delivery.streams import Streams
from processor.errors import BrokerError
from processor.jetstream import NS, Again, ApiError, Broker, Unknown
from processor.operate.control import Control
from processor.route import Route
from processor.telemetry import Telemetry

log = logging.getLogger("processor")

WARN_INPUT = 0.8
WARN_STORAGE = 0.85
# What a commit writes, by the second token after the app's: what grows without a limit is among them.
KINDS: tuple[Kind, ...] = ("ctx", "out", "dlq", "held", "later", "hist", "in")
_INPUTS_S = 20.0
_STORAGE_S = 60.0
_LOOKS_PER_S = 10

Oldest = tuple[int, float]  # of a message that was not read: its sequence and its time


def used_of_limits(info: Mapping[str, Any], sequence: int, timestamp_s: float, now_s: float) -> float:
    """How near a message of a stream is to being dropped by a limit: 1 is when it is.

    Messages of a stream are taken to be of one size.
    """
    config, state = info["config"], info["state"]
    ratios = [0.0]
    if config.get("max_age", 0) > 0:
        ratios.append((now_s - timestamp_s) * NS / config["max_age"])
    first, last = state["first_seq"], state["last_seq"]
    if config.get("discard", "old") == "old" and last >= first:
        behind = (last - max(sequence, first) + 1) / (last - first + 1)
        for limit, held in (("max_bytes", state["bytes"]), ("max_msgs", state["messages"])):
            if config.get(limit, -1) > 0:
                ratios.append(behind * held / config[limit])
    return max(ratios)


class RetentionWatch:
    """Measures both, and says once when a mark is passed."""

    def __init__(
        self,
        broker: Broker,
        streams: Streams,
        telemetry: Telemetry,
        routes: Callable[[], Sequence[Route]],
        oldest: Callable[[str], Oldest | None],
        runs: Callable[[str], bool],
    ) -> None:
        """`oldest` is what a route that `runs` here has not read."""
        self._broker = broker
        self._streams = streams
        self._telemetry = telemetry
        self._routes = routes
        self._oldest = oldest
        self._runs = runs
        self._holdings = Holdings(broker)
        self._control = Control(broker, streams.app)
        self._warned: set[str] = set()  # routes
        self._is_full = False

    async def watch_inputs(self) -> None:
        """Measure how near what routes have not read is to being dropped, until cancelled."""
        while True:
            await asyncio.sleep(_INPUTS_S)
            await self._broker.connected()
            for route in self._routes():
                if not route.input.is_all_own and await self._tried(self._look_at_input, route):
                    await asyncio.sleep(1 / _LOOKS_PER_S)

    async def watch_storage(self) -> None:
        """Measure what the app's stream and the account hold, until cancelled."""
        while True:
            await self._broker.connected()
            await self._tried(self._look_at_storage)
            await asyncio.sleep(_STORAGE_S)

    async def _tried(self, look: Callable[..., Awaitable[bool]], *about: Any) -> bool:
        try:
            return await look(*about)
        except (BrokerError, ApiError, Again, Unknown) as err:
            log.debug("what is kept cannot be looked at: %s", err)
            return True

    async def _look_at_input(self, route: Route) -> bool:
        """Whether the server had to be asked."""
        is_here = self._runs(route.name)
        oldest = self._oldest(route.name) if is_here else None
        if is_here and oldest is None:
            self._say_input(route, 0.0, "")
            return False
        info = await self._holdings.input(route)
        if info is None:
            return True
        if oldest is None:
            oldest = await self._unread(route, info)
        used = used_of_limits(info, *oldest, time.time()) if oldest else 0.0
        self._say_input(route, used, str(info["config"]["name"]))
        if used >= WARN_INPUT and route.name not in self._warned:
            await self._send(route, "retention", {"stream": info["config"]["name"], "used": f"{used:.2f}"})
        if used >= WARN_INPUT:
            self._warned.add(route.name)
        elif used < WARN_INPUT - 0.1:  # not each time that it passes the mark
            self._warned.discard(route.name)
        return True

    async def _unread(self, route: Route, info: Mapping[str, Any]) -> Oldest | None:
        """The oldest message that a route which does not run here has not read."""
        parts = await self._control.parts(route.name, kind="hop" if route.input.repartition else "pos")
        if not parts and route.input.start == "new":
            return None
        position = min((part.position for part in parts), default=0)
        stream, subject = info["config"]["name"], route.input.subjects[0]
        stored = await self._broker.next_of(stream, subject, position + 1)
        return None if stored is None else (stored.sequence, stored.timestamp_s)

    def _say_input(self, route: Route, used: float, stream: str) -> None:
        self._telemetry.route(route.name).retention_used(used)
        if used >= WARN_INPUT and route.name not in self._warned:
            log.warning(
                "stream %s drops messages soon that the route has not read: the oldest has come to %.0f %% "
                "of its limits. Raise max_age, max_bytes or max_msgs, or let the route catch up",
                stream, 100 * used,
                extra={"route": route.name},
            )  # fmt: skip

    async def _look_at_storage(self) -> bool:
        app = self._streams.app
        stream = app_stream(app)
        info = await self._broker.stream(stream)
        if info is not None:
            counted: dict[str, int] = {
                kind: await self._broker.count(stream, [every(app, kind)], 1) for kind in KINDS
            }
            self._telemetry.app_stream(info["state"]["bytes"], counted)
        used = storage_used(await self._broker.api("INFO"))
        self._telemetry.storage_used(used)
        is_full = used is not None and used >= WARN_STORAGE
        if is_full and not self._is_full:
            log.warning(
                "the account has used %.0f %% of the storage that it may use: at 100 %% nothing can be "
                "committed (E406)",
                100 * (used or 0),
            )
            said: set[str] = set()
            for route in self._routes():
                if route.events_subject and route.events_subject not in said:
                    said.add(route.events_subject)
                    await self._send(route, "storage", {"used": f"{used:.2f}"})
        self._is_full = is_full
        return True

    async def _send(self, route: Route, what: str, more: Mapping[str, str]) -> None:
        outlets = self._streams.used_by(route.name).outlets
        if route.events_subject not in outlets:
            return  # it has not started yet
        effects_of = EffectsBuilder(route, codec_for(route), outlets, self._broker.max_payload)
        if (event := effects_of.milestone(what, more)) is not None:
            await self._broker.publish_stored(event)


def storage_used(account: Mapping[str, Any]) -> float | None:
    """The part of its storage that an account has used, where it is most; None where nothing limits it."""
    ratios = []
    for tier in (account, *(account.get("tiers") or {}).values()):
        limits = tier.get("limits") or {}
        for limit, used in (("max_storage", "storage"), ("max_memory", "memory")):
            if limits.get(limit, -1) > 0:
                ratios.append(tier.get(used, 0) / limits[limit])
    return max(ratios, default=None)
