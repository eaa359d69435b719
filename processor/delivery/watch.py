"""The watch over the streams of an app while its routes run: whether they are still what was found at start.

What must stay true: it costs next to nothing. A change is heard of (the server says what becomes of streams),
and streams are looked at otherwise one after the other, the slower the more there are: a thousand idle routes
share a few requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from processor.context.subjects import app_stream, committed_subject, is_app_stream
from processor.delivery.effects import Outlet
from processor.delivery.holdings import Holdings, KnownStream, Round
from processor.delivery.streams import Streams, topics
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown, end_of
from processor.model import Delivery
from processor.route import Route
from processor.subject import SubjectIndex
from processor.telemetry import Telemetry

log = logging.getLogger("processor")

ADVISORIES = "$JS.EVENT.ADVISORY.STREAM.*.*"
_ACTIONS = ("create", "modify", "delete")
_ROUND_S = 15.0  # to look at all streams takes at least this
_PAUSE_S = 1.0  # between two looks
_PAUSE_UNHEARD_S = 0.2  # the same where advisories may not be heard
_GATHER_S = 0.25  # a change of many streams is looked at once
_GATHER_MAX_S = 10.0
_EVENTS_MAX = 1000
_AT_A_TIME = 50  # routes, before others in this process have their turn

_COPIES_S = 5.0
_STANDS_STILL_S = 10.0
_LOOKS_PER_S, _LOOKS_AT_ONCE = 10, 10


class StreamWatch:
    """Finds the routes whose streams have become others than those that they began with.

    A round is over all routes that a change may concern, and reads each stream once. What became of streams
    while a route began to use them was nobody's to see: once it runs, it is compared with them, too.
    """

    def __init__(self, broker: Broker, streams: Streams, routes: Callable[[], Mapping[str, Route]]) -> None:
        """`routes` are those that run now, by name."""
        self._broker = broker
        self._streams = streams
        self._routes = routes
        self._events: set[str] = set()  # streams that something happened to
        self._heard = asyncio.Event()
        self._has_changed = False  # a stream, since this process began
        self._running = 0  # routes, when they were looked at last
        self._place = 0  # of the last route that was looked at in its turn
        self._turns = Round(broker)
        self._turns_until_s = 0.0

    async def run(self, changed: Callable[[str, str], None]) -> None:
        """Call `changed` with a route and what is different, until cancelled."""
        ear = await self._broker.listen(ADVISORIES, self._hear)
        took_s = 0.0  # for the last round
        turned_s, pause_s = time.monotonic(), self._pause_s()
        try:
            while True:
                if await self._is_heard(min(pause_s, _PAUSE_S)) or self._events or self._begun():
                    # Routes that start change the stream they share, one after the other: looking at all of
                    # them each time must not take all of the time.
                    await asyncio.sleep(max(_GATHER_S, min(_GATHER_MAX_S, 4 * took_s)))
                    began_s = time.monotonic()
                    await self._look(changed)
                    took_s, pause_s = time.monotonic() - began_s, self._pause_s()
                elif time.monotonic() - turned_s >= pause_s:
                    turned_s = time.monotonic()
                    await self._look_in_turn(changed)
                    pause_s = self._pause_s()
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
        self._events.add(name)
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
        return max(least_s, _ROUND_S / max(1, self._running))

    def _begun(self) -> dict[str, Route]:
        """The routes that have begun since the last round."""
        if not self._streams.begun:  # nearly always, and for a thousand routes at once
            return {}
        routes = self._routes()
        return {name: routes[name] for name in self._streams.begun & routes.keys()}

    async def _look_in_turn(self, changed: Callable[[str, str], None]) -> None:
        """Compare the next route; what is read of its streams serves those whose turn is soon, too."""
        routes = list(self._routes().values())
        self._running = len(routes)
        if not routes:
            return
        if time.monotonic() >= self._turns_until_s:
            self._turns = Round(self._broker)
            self._turns_until_s = time.monotonic() + min(_ROUND_S, self._pause_s() * len(routes) / 4)
        self._place = (self._place + 1) % len(routes)
        route = routes[self._place]
        if await self._change(route, self._turns):
            # The route may have found what is newer than what was read for others; and others may use them.
            self._events |= self._streams.used_by(route.name).streams
            if why := await self._change(route, Round(self._broker)):
                changed(route.name, why)

    async def _look(self, changed: Callable[[str, str], None]) -> None:
        """Compare routes with their streams: those that what was heard may concern, and those that began."""
        events, self._events = self._events, set()
        self._heard.clear()
        routes, begun, now = self._routes(), self._begun(), Round(self._broker)
        self._running = len(routes)
        used = {name: self._streams.used_by(name) for name in routes}
        # They began with a stream that is known as it was before, and it may be that again by now.
        unlike = self._streams.unlike & begun.keys()
        self._streams.unlike -= unlike
        events |= {stream for name in unlike for stream in used[name].streams}
        users: dict[str, list[str]] = {}
        for route, its in used.items():
            for name in its.streams:
                users.setdefault(name, []).append(route)
        # An app's own stream holds nothing for others.
        named = {name for name in events if name in users or not is_app_stream(name)}
        streams, unread = await self._read(named, now)
        different = {
            name: stream
            for name, stream in streams.items()
            if stream is None or stream.identity != self._streams.known.get(name)
        }
        self._has_changed = self._has_changed or bool(different)
        doubtful = begun.values() if self._has_changed else [begun[name] for name in unlike]
        await self._compare(doubtful, now, changed)
        self._streams.begun -= {name for name in begun if self._streams.used_by(name) is used[name]}
        concerned = {route for name in different for route in users.get(name, [])}
        concerned |= _meeting(different.values(), routes)
        concerned -= begun.keys()
        needed = {name for route in concerned for name in used[route].streams} - streams.keys()
        others, silent = await self._read(needed, now)
        streams |= others
        now.only(streams)
        readable = [route for route in concerned if used[route].streams <= streams.keys()]
        await self._compare([routes[route] for route in readable], now, changed)
        for name, stream in different.items():
            if any(used[route].streams & silent for route in users.get(name, [])):
                unread.add(name)
            elif stream is None:
                self._streams.known.pop(name, None)
            elif name in users or name in self._streams.known:
                # Also where none of its routes runs just now: what it was to them may come back.
                self._streams.known[name] = stream.identity
        self._events |= unread

    async def _read(self, names: Iterable[str], now: Round) -> tuple[dict[str, KnownStream | None], set[str]]:
        """What streams are, as far as we may know, and those that nobody answers for now."""
        found: dict[str, KnownStream | None] = {}
        silent: set[str] = set()
        for name in names:
            try:
                found[name] = await now.stream(name)
            except (BrokerError, ApiError, Again, Unknown) as err:
                log.debug("stream %s cannot be looked at: %s", name, err)
                if not isinstance(err, BrokerError):
                    silent.add(name)
        return found, silent

    async def _compare(
        self, routes: Iterable[Route], now: Round, changed: Callable[[str, str], None]
    ) -> None:
        for place, route in enumerate(routes):
            if place % _AT_A_TIME == 0:
                await asyncio.sleep(0)
            if why := await self._change(route, now):
                changed(route.name, why)

    async def _change(self, route: Route, holdings: Holdings) -> str:
        try:
            return await self._streams.change(route, holdings)
        except BrokerError as err:
            # It says the same itself when it begins anew.
            return str(err) if err.code in ("E401", "E408", "E417") else ""
        except (ApiError, Again, Unknown) as err:
            log.debug("the streams of route %s cannot be looked at: %s", route.name, err)
            return ""


def _meeting(streams: Iterable[KnownStream | None], routes: Mapping[str, Route]) -> set[str]:
    """The routes that read or write subjects which one of these streams takes."""
    subjects = [s for stream in streams if stream for s in stream.config.get("subjects") or []]
    if not subjects:
        return set()
    index = SubjectIndex(
        (pattern, name)
        for name, route in routes.items()
        for pattern in (*route.input.subjects, *topics(route))
    )
    return {name for subject in subjects for name in index.meeting(subject)}


@dataclass(slots=True)
class _Copy:
    """What one stream copies of the app's for one subject, and how far it has come."""

    copied: int = -1
    since_s: float = 0.0
    is_looked_at: bool = False
    is_waiting: bool = False
    why: str = ""  # it stands still
    lost: str = ""  # it is ahead of the app's stream, or was since this process began

    @property
    def is_settled(self) -> bool:
        return self.is_looked_at and not self.is_waiting and not self.why


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
        # What the app's stream was, and who used it, when there was nothing left to wait for: until that is
        # another there is nothing to look at.
        self._settled_at: tuple[object, ...] | None = None

    async def run(self, routes: Callable[[], Mapping[str, Route]]) -> None:
        """Look after all copies until cancelled."""
        while True:
            await asyncio.sleep(_COPIES_S)
            await self._broker.connected()
            with contextlib.suppress(BrokerError, ApiError, Again, Unknown):
                await self._look_at_app()
            running = routes()
            seen = self._app_created, self._app_end, self._streams.used_changes, frozenset(running)
            if seen == self._settled_at:
                continue
            ways = self._ways(running)
            made = {name: self._telemetry.made(name) for name in running}
            for gone in self._copies.keys() - ways.keys():
                del self._copies[gone]
                self._telemetry.copies(*gone, None, is_stopped=False)
            for way in ways:
                self._copies.setdefault(way, _Copy())
            await self._look_at_copies([w for w, names in ways.items() if self._is_due(w, names, made)])
            whys: dict[str, str] = {}  # by route
            for way, names in ways.items():
                if why := self._copies[way].why:
                    whys |= {name: why for name in names if name not in whys}
            self._made = made
            is_settled = all(copy.is_settled for copy in self._copies.values())
            self._settled_at = seen if is_settled and not whys else None
            for name in made.keys() & routes().keys():  # a reload may have taken one out
                if name in whys:
                    self._telemetry.readiness.block(f"copy {name}", whys[name])
                else:
                    self._telemetry.readiness.clear(f"copy {name}")

    def _is_due(self, way: tuple[str, str], routes: Iterable[str], made: Mapping[str, float]) -> bool:
        copy = self._copies[way]
        is_idle = all(made[name] == self._made.get(name) for name in routes)
        return not is_idle or not copy.is_looked_at or copy.is_waiting

    async def _look_at_copies(self, ways: Sequence[tuple[str, str]]) -> None:
        """Look at these, some at a time: that wakes the process less often than one after the other."""
        now, until_s = Round(self._broker), time.monotonic() + _COPIES_S
        for first in range(0, len(ways), _LOOKS_AT_ONCE):
            if time.monotonic() >= until_s:
                now, until_s = Round(self._broker), time.monotonic() + _COPIES_S
            by_stream: dict[str, list[str]] = {}  # so that each is read once
            for stream, pattern in ways[first : first + _LOOKS_AT_ONCE]:
                by_stream.setdefault(stream, []).append(pattern)
            async with asyncio.TaskGroup() as looks:
                for stream, patterns in by_stream.items():
                    looks.create_task(self._look_at(stream, patterns, now))
            await asyncio.sleep(_LOOKS_AT_ONCE / _LOOKS_PER_S)

    async def _look_at(self, stream: str, patterns: Sequence[str], now: Round) -> None:
        for pattern in patterns:
            try:
                await self._look(stream, pattern, self._copies[stream, pattern], now)
            except (BrokerError, ApiError, Again, Unknown) as err:
                log.debug("the copies of %s in %s cannot be looked at: %s", pattern, stream, err)

    def _ways(self, routes: Iterable[str]) -> dict[tuple[str, str], list[str]]:
        """The routes that write to each stream that copies, by its name and what it holds."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in routes:
            for pattern, outlet in self._streams.used_by(name).outlets.items():
                ways = outlet.parts or {pattern: outlet}
                for held, way in ways.items():
                    if _is_copied(way):
                        found.setdefault((way.stream, held), []).append(name)
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

    async def _look(self, stream: str, pattern: str, copy: _Copy, now: Round) -> None:
        app = self._streams.app
        known = await now.stream(stream)
        if known is None:
            return  # whoever watches the streams says so
        info, source = known.info, known.source(app, pattern)
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
        if waiting is None or copied != copy.copied or not copy.is_waiting:
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


def _way_out(info: Mapping[str, Any]) -> str:
    if info["config"].get("sealed"):
        return "Nothing opens it again: the subject needs another stream."
    return "They go on by themselves when it takes them."


def _cause(info: Mapping[str, Any], payload_bytes: int) -> str:
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
