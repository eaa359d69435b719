"""The watch over the streams of an app while its routes run: whether they are still what was found at start.

What must stay true: it costs next to nothing. A change is heard of (the server says what becomes of streams),
and streams are looked at otherwise one after the other, the slower the more there are: a thousand idle routes
share a few requests a second.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from processor.context.subjects import app_stream, committed_subject, is_app_stream
from processor.delivery.effects import Outlet
from processor.delivery.streams import Streams, source_of, topics
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown, end_of
from processor.model import Delivery
from processor.route import Route
from processor.subject import overlaps
from processor.telemetry import Telemetry

log = logging.getLogger("processor")

ADVISORIES = "$JS.EVENT.ADVISORY.STREAM.*.*"
_ACTIONS = ("create", "modify", "delete")
_ROUND_S = 15.0  # to look at all streams takes at least this
_PAUSE_S = 1.0  # between two looks
_PAUSE_UNHEARD_S = 0.2  # the same where advisories may not be heard
_GATHER_S = 0.25  # a change of many streams is looked at once
_GATHER_MAX_S = 10.0
_EVENTS_MAX = 100

_COPIES_S = 5.0
_STANDS_STILL_S = 10.0
_LOOKS_PER_S = 10


class StreamWatch:
    """Finds the routes whose streams have become others than those that they began with."""

    def __init__(self, broker: Broker, streams: Streams, routes: Callable[[], Sequence[Route]]) -> None:
        """`routes` are those that run now."""
        self._broker = broker
        self._streams = streams
        self._routes = routes
        self._events: dict[str, str] = {}  # what happened last to a stream
        self._heard = asyncio.Event()

    async def run(self, changed: Callable[[str, str], None]) -> None:
        """Call `changed` with a route and what is different, until cancelled."""
        ear = await self._broker.listen(ADVISORIES, self._hear)
        left: collections.deque[str] = collections.deque()
        took_s = 0.0  # for the looks before
        try:
            while True:
                if await self._is_heard(self._pause_s()):
                    # Routes that start change the stream they share, one after the other: looking at all of
                    # them each time must not take all of the time.
                    await asyncio.sleep(max(_GATHER_S, min(_GATHER_MAX_S, 4 * took_s)))
                    began_s = time.monotonic()
                    routes = await self._concerned()
                else:
                    began_s = time.monotonic()
                    running = {route.name: route for route in self._routes()}
                    left = left or collections.deque(running)
                    routes = [running[name] for name in [left.popleft()] if name in running] if left else []
                for route in routes:
                    if why := await self._change(route):
                        changed(route.name, why)
                took_s = time.monotonic() - began_s
        finally:
            await ear.unsubscribe()

    async def _hear(self, delivery: Delivery) -> None:
        try:
            said: Any = orjson.loads(delivery.payload)
        except orjson.JSONDecodeError:
            return
        name, action = (said.get("stream"), said.get("action")) if isinstance(said, dict) else (None, None)
        if not isinstance(name, str) or action not in _ACTIONS or len(self._events) >= _EVENTS_MAX:
            return
        if action == "create" and name in self._streams.made:
            return
        self._events[name] = action
        self._heard.set()

    async def _is_heard(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True

    def _pause_s(self) -> float:
        is_denied = any("$js.event.advisory" in said.lower() for said in self._broker.denials)
        least_s = _PAUSE_UNHEARD_S if is_denied else _PAUSE_S
        return max(least_s, _ROUND_S / max(1, len(self._routes())))

    async def _concerned(self) -> list[Route]:
        """The routes that what was heard may concern."""
        events, self._events = self._events, {}
        self._heard.clear()
        routes, found = self._routes(), set[str]()
        for name, action in events.items():
            using = [r.name for r in routes if name in self._streams.used_by(r.name).streams]
            found.update(using)
            if action == "delete" or is_app_stream(name):
                continue  # apps' own streams hold nothing for others
            try:
                info = await self._broker.stream(name)
            except (BrokerError, ApiError, Again, Unknown) as err:
                log.debug("stream %s cannot be looked at: %s", name, err)
                continue
            subjects = (info or {"config": {}})["config"].get("subjects") or []
            found.update(r.name for r in routes if _meets(subjects, [*r.input.subjects, *topics(r)]))
        return [route for route in routes if route.name in found]

    async def _change(self, route: Route) -> str:
        try:
            return await self._streams.change(route)
        except BrokerError as err:
            # It says the same itself when it begins anew.
            return str(err) if err.code in ("E401", "E408", "E417") else ""
        except (ApiError, Again, Unknown) as err:
            log.debug("the streams of route %s cannot be looked at: %s", route.name, err)
            return ""


def _meets(subjects: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(overlaps(subject, pattern) for subject in subjects for pattern in patterns)


@dataclass(slots=True)
class _Copy:
    """What one stream copies of the app's for one subject, and how far it has come."""

    copied: int = -1
    since_s: float = 0.0
    is_looked_at: bool = False
    is_waiting: bool = False
    why: str = ""  # it stands still
    lost: str = ""  # it is ahead of the app's stream, or was since this process began


class CopyWatch:
    """Finds the streams that do not take the copies of what the app has committed for them, and lost commits.

    A source that is refused one message tries it again for ever and brings none behind it, and nothing of the
    server says so. Looked at are the streams for which something was committed since the last look.
    """

    def __init__(
        self, broker: Broker, streams: Streams, telemetry: Telemetry, begin_anew: Callable[[], None]
    ) -> None:
        """`begin_anew` has every route look at its positions and streams again: commits were lost."""
        self._broker = broker
        self._begin_anew = begin_anew
        self._streams = streams
        self._telemetry = telemetry
        self._copies: dict[tuple[str, str], _Copy] = {}  # by stream and pattern
        self._made: dict[str, float] = {}  # outputs and events by route, at the last look
        self._app_created = ""
        self._app_end = 0  # the last sequence of the app's stream, when it was looked at

    async def run(self, routes: Callable[[], Sequence[Route]]) -> None:
        """Look after all copies until cancelled."""
        while True:
            await asyncio.sleep(_COPIES_S)
            await self._broker.connected()
            with contextlib.suppress(BrokerError, ApiError, Again, Unknown):
                await self._look_at_app()
            running = routes()
            ways = self._ways(running)
            made = {route.name: self._telemetry.made(route.name) for route in running}
            for gone in self._copies.keys() - ways.keys():
                del self._copies[gone]
                self._telemetry.copies(*gone, None, is_stopped=False)
            for (stream, pattern), names in ways.items():
                copy = self._copies.setdefault((stream, pattern), _Copy())
                is_idle = all(made[name] == self._made.get(name) for name in names)
                if is_idle and copy.is_looked_at and not copy.is_waiting:
                    continue
                try:
                    await self._look(stream, pattern, copy)
                except (BrokerError, ApiError, Again, Unknown) as err:
                    log.debug("the copies of %s in %s cannot be looked at: %s", pattern, stream, err)
                await asyncio.sleep(1 / _LOOKS_PER_S)
            self._made = made
            for name in made.keys() & {route.name for route in routes()}:  # a reload may have taken one out
                self._show(name, [self._copies[way].why for way, names in ways.items() if name in names])

    def _show(self, route: str, whys: Sequence[str]) -> None:
        why = next(filter(None, whys), None)
        if why:
            self._telemetry.readiness.block(f"copy {route}", why)
        else:
            self._telemetry.readiness.clear(f"copy {route}")

    def _ways(self, routes: Sequence[Route]) -> dict[tuple[str, str], list[str]]:
        """The routes that write to each stream that copies, by its name and what it holds."""
        found: dict[tuple[str, str], list[str]] = {}
        for route in routes:
            for pattern, outlet in self._streams.used_by(route.name).outlets.items():
                ways = outlet.parts or {pattern: outlet}
                for held, way in ways.items():
                    if _is_copied(way):
                        found.setdefault((way.stream, held), []).append(route.name)
        return found

    async def _look_at_app(self) -> None:
        """Say it where the app's stream ends before what was committed to it (E420)."""
        stored = self._broker.committed
        name = app_stream(self._streams.app)
        info = await self._broker.stream(name)
        if info is None:
            return  # whoever watches it makes it anew
        end = int(info["state"]["last_seq"])
        least = max(self._app_end, stored)
        if self._app_created in ("", info["created"]) and end < least:
            again = await end_of(self._broker, name, info["created"], least)
            if again is None or again >= least:
                return
            why = (
                f"E420 stream {name} ended at {least} and now at {again}: the server lost commits that it "
                "had acknowledged, as when its machine loses power. What its inputs still hold of that is "
                'done again; see "The server lost messages" in deploy/runbook.md'
            )
            log.error("%s", why, extra={"code": "E420"})
            self._telemetry.readiness.block("lost commits", why)
            self._broker.committed = end = again
            self._begin_anew()
        elif info["created"] != self._app_created:
            self._broker.committed = min(stored, end)
        self._app_created, self._app_end = info["created"], end

    async def _look(self, stream: str, pattern: str, copy: _Copy) -> None:
        app = self._streams.app
        info = await self._broker.stream(stream)
        if info is None:
            return  # whoever watches the streams says so
        source = source_of(info["config"], app, pattern)
        if source is None:
            return  # it is asked to copy again by whoever watches the streams
        copied = await self._streams.copied_if_permitted(info, source)
        if copied is None:
            return
        if copied > self._app_end and (lost := await self._streams.lost(info, copied)):
            if not copy.lost:
                log.error("%s", lost, extra={"code": "E419"})
            copy.lost = str(lost)
        committed = committed_subject(app, pattern)
        waiting = await self._broker.next_of(app_stream(app), committed, copied + 1)
        now_s = time.monotonic()
        if waiting is None or copied != copy.copied:
            copy.copied, copy.since_s = copied, now_s
        copy.is_looked_at, copy.is_waiting = True, waiting is not None
        count = await self._broker.count(app_stream(app), [committed], copied + 1) if waiting else 0
        is_stopped = waiting is not None and now_s - copy.since_s >= _STANDS_STILL_S
        self._telemetry.copies(stream, pattern, count, is_stopped=is_stopped)
        before, copy.why = copy.why, copy.lost
        if waiting is not None and is_stopped:
            copy.why = (
                f"E350 stream {stream} takes no copy of {pattern}, and {count} wait: "
                f"{_cause(info, len(waiting.payload))}. {_way_out(info)}"
            )
        if bool(before) != is_stopped and not copy.lost:
            log.log(
                logging.ERROR if is_stopped else logging.INFO,
                "%s",
                copy.why or f"stream {stream} takes copies of {pattern} again",
            )


def _is_copied(way: Outlet) -> bool:
    return bool(way.stream) and not way.live and not way.foreign


def _way_out(info: dict[str, Any]) -> str:
    if info["config"].get("sealed"):
        return "Nothing opens it again: the subject needs another stream."
    return "They go on by themselves when it takes them."


def _cause(info: dict[str, Any], payload_bytes: int) -> str:
    """Why a stream may refuse a copy, by its settings."""
    config, state = info["config"], info["state"]
    discards_new = config.get("discard") == "new"
    most = config.get("max_msgs", -1)
    if config.get("sealed"):
        return "it is sealed"
    if discards_new and 0 < most <= state["messages"]:
        return f"it is full (max_msgs {most}, discard new)"
    most = config.get("max_bytes", -1)
    if discards_new and 0 < most <= state["bytes"] + payload_bytes + 1024:
        return f"it is full (max_bytes {most}, discard new)"
    if discards_new and config.get("discard_new_per_subject"):
        return f"a subject is full (max_msgs_per_subject {config.get('max_msgs_per_subject')}, discard new)"
    most = config.get("max_msg_size", -1)
    if 0 < most < payload_bytes + 1024:
        return f"the next one has {payload_bytes} bytes and its headers, and it takes {most} (max_msg_size)"
    return "the log of the NATS server may say why"
