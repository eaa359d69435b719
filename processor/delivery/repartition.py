"""What brings a route its messages through the app's own stream: a hop from its input, or a schedule.

A trigger of a graph is filled in the same way, and what it brings is for the engine: a run of the graph.
What other routes commit for a route is there already; of that only what is processed is removed here. Such a
route reads its inboxes, each of its processors those of the partitions that it owns. One processor at
a time fills them, and removes from them what the route is done with. Beside them are how far the hop has read
the input with its fence (`hop`), the schedule that the server fires (`sched`), and which one was stored
(`plan`). `service` tells `Inboxes` which routes there are; it keeps those filled that are this processor's
part.

What must stay true:
- The hop's position is the last message of each of its commits, and what it took from the input is the rest.
  So of two that hop at once only one commits, and every message is dealt once. It is acknowledged after that.
- A message that can be read is dealt by its key; one that cannot is dealt too, and its route judges it.
- What a position does not cover, or has open, is never removed.
- A schedule is stored once: storing it again would restart its period, and fire again what is due once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from processor.context.parked import ParkedMessages, Unfit, bare
from processor.context.position import InputStream, Move
from processor.context.store import ContextStore
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream
from processor.delivery.backlog import Backlog
from processor.delivery.codec import Codec, TriggerCodec, Unreadable, codec_for, key_of
from processor.delivery.effects import Batch, Effects, EffectsBuilder, Outlet
from processor.delivery.members import Members
from processor.delivery.observe import Observer
from processor.delivery.streams import Streams, warn_of_gap
from processor.errors import BrokerError, Fenced, ProcessorError
from processor.jetstream import (
    EXPECTED,
    GONE,
    KEPT,
    Again,
    ApiError,
    Broker,
    Outgoing,
    Reader,
    Stored,
    Unknown,
    WrongLastSequence,
)
from processor.model import NO_HEADERS, Delivery, Failure, Ran, partition_of
from processor.route import ENGINE, Route, RouteSchedule
from processor.schedule import is_once
from processor.telemetry import RouteTelemetry, Telemetry

log = logging.getLogger("processor")

# What the route has not processed yet may be so much in the app's stream; the rest waits in the input.
BACKLOG_MESSAGES = 20_000
BACKLOG_BYTES = 64 << 20
# A route that no processor has any more keeps its schedule for so long: one may just be restarting.
SCHEDULE_GONE_S = 60.0
_RETRY_MIN_S = 0.2
_RETRY_S = 2.0
_CHUNK_MESSAGES = 900
_CHUNK_BYTES = 8 << 20
_HEADER_BYTES = 200  # of a message as it is stored, about
_PRUNE_S = 3.0  # between two looks at schedules
_TIDY_S = 1.0  # how often what is processed is removed, while there is any
_TIDY_IDLE_S = 5.0
_FULL_S = 0.25  # how often a full backlog is looked at: removals cost the server, one for each partition
SCHEDULES_MIN = (2, 14)  # cron and `@every`; `@at` came with 2.12


class Inboxes:
    """The inboxes of a processor's routes: those are filled that are its part."""

    def __init__(
        self, broker: Broker, streams: Streams, members: Members, owner: str, telemetry: Telemetry
    ) -> None:
        self._broker = broker
        self._streams = streams
        self._members = members
        self._owner = owner
        self._telemetry = telemetry
        self._kept: dict[str, _Filling] = {}
        self._routes: dict[str, Route] = {}  # all that the configuration has
        self._forgotten: set[str] = set()  # those that it had

    def start(self, route: Route, *, is_paused: bool) -> None:
        """Keep the route's inbox filled from now on, where it has one."""
        self._routes[route.name] = route
        self._forgotten.discard(route.name)
        if not route.input.is_own:
            return
        kept = _Filling(route, is_paused)
        kept.task = asyncio.create_task(self._keep(kept), name=f"inbox-{route.name}")
        self._kept[route.name] = kept

    def stop(self, names: Sequence[str]) -> set[asyncio.Task[None]]:
        """Let these routes go; the tasks that end when what was taken is dealt."""
        tasks = set()
        for name in names:
            kept = self._kept.pop(name, None)
            if kept is not None and kept.task is not None:
                kept.is_stopping = True
                kept.look()
                tasks.add(kept.task)
        return tasks

    def forget(self, names: Sequence[str]) -> None:
        """The configuration has these routes no more: their schedules end, if no other processor has them."""
        for name in names:
            self._routes.pop(name, None)
            self._forgotten.add(name)

    def change(self, route: str, *, is_paused: bool) -> None:
        """The route was paused, resumed or reset: start again, once it is not paused."""
        kept = self._kept.get(route)
        if kept is not None:
            kept.is_paused = is_paused
            kept.look()

    def reassign(self) -> None:
        """The members have changed: end or begin the inboxes of routes whose owner changed."""
        for kept in self._kept.values():
            if (kept.inbox is not None) != self._is_ours(kept.route.name):
                kept.look()

    def oldest(self, route: str) -> Delivery | None:
        """The first message that waits to be dealt by this processor, if one does."""
        kept = self._kept.get(route)
        return kept.inbox.oldest if kept is not None and kept.inbox is not None else None

    def is_silent(self, route: str) -> bool:
        """Whether the input that this processor deals has not been heard of for longer than it should."""
        kept = self._kept.get(route)
        return kept is not None and kept.inbox is not None and kept.inbox.is_silent

    def _is_ours(self, route: str) -> bool:
        kept = self._routes.get(route)
        engine = ENGINE if kept is not None and kept.trigger is not None else ""
        return bool(self._members.share(route, 1, whole=True, with_=engine))

    async def _keep(self, kept: _Filling) -> None:
        """Keep an inbox filled while that is our part; a wall as that of the routes."""
        route = kept.route
        refused = partial(self._refused, route.name)
        pause_s = _RETRY_MIN_S
        while not kept.is_stopping:
            kept.changed.clear()
            if kept.is_paused or not self._is_ours(route.name):
                refused(None)
                await kept.changed.wait()
                continue
            why = None
            try:
                await self._broker.connected()
                telemetry = self._telemetry.route(route.name)
                kept.inbox = Inbox(
                    route, self._broker, self._streams, self._owner, telemetry, refused, kept.changed
                )
                await kept.inbox.run(self._members.is_there)
                refused(None)
                pause_s = _RETRY_MIN_S
                continue
            except Fenced as err:
                log.debug("%s", err, extra={"route": route.name})
                pause_s = _RETRY_MIN_S
            except (Unknown, Again) as err:
                why, pause_s = f"E404 the NATS server does not answer: {err}", min(2 * pause_s, _RETRY_S)
            except (ProcessorError, ApiError) as err:
                why, pause_s = str(err), min(2 * pause_s, _RETRY_S)
            except Exception as err:
                # A fault of ours must stop neither the other routes nor this one for good.
                log.exception("an unexpected error at the input of route %s; please report it", route.name)
                why, pause_s = f"an unexpected error: {type(err).__name__}", _RETRY_S
            finally:
                kept.inbox = None
            refused(why)
            await _is_set(kept.changed, pause_s)
        refused(None)

    def _refused(self, route: str, why: str | None) -> None:
        name, readiness = f"inbox {route}", self._telemetry.readiness
        self._telemetry.route(route).hop_stopped(why is not None)
        if why is None:
            readiness.clear(name)
        elif readiness.blocks.get(name) != why:
            readiness.block(name, why)
            log.error("%s", why, extra={"route": route})

    async def watch_schedules(self, app: str) -> None:
        """End the schedules of routes that no processor has had for a while, as long as we run."""
        schedules = Schedules(self._broker, app)
        gone_s: dict[str, float] = {}

        def is_wanted(name: str) -> bool:
            route = self._routes.get(name)
            if route is None:
                is_wanted = self._members.has_others(name)
            else:
                is_wanted = route.input.schedule is not None or not self._is_ours(name)
            if is_wanted:
                gone_s.pop(name, None)
                return True
            if route is not None or name in self._forgotten:
                return False
            return time.monotonic() - gone_s.setdefault(name, time.monotonic()) < SCHEDULE_GONE_S

        while True:
            await asyncio.sleep(_PRUNE_S)
            await self._broker.connected()
            try:
                await schedules.prune(is_wanted)
            except (ProcessorError, Unknown, Again, ApiError) as err:
                log.debug("schedules cannot be looked at: %s", err)


@dataclass(slots=True)
class _Filling:
    """A route whose inbox is kept, and what fills it."""

    route: Route
    is_paused: bool
    task: asyncio.Task[None] | None = None
    inbox: Inbox | None = None
    is_stopping: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> None:
        """End or begin the inbox, as ownership and pauses are now."""
        self.changed.set()


class Inbox:
    """Fills the inbox of one route until it is stopped; one processor of the app does at a time."""

    def __init__(
        self,
        route: Route,
        broker: Broker,
        streams: Streams,
        owner: str,
        telemetry: RouteTelemetry,
        refused: Callable[[str | None], None],
        stop: asyncio.Event,
    ) -> None:
        """When `stop` is set it takes no more, and `run` returns when what was taken is dealt."""
        self._route = route
        self._broker = broker
        self._streams = streams
        self._owner = owner
        self._telemetry = telemetry
        self._refused = refused
        self._backlog = Backlog(broker, route)
        self._stop = stop
        self._hop: Repartitioner | None = None

    @property
    def oldest(self) -> Delivery | None:
        """The first message that waits to be dealt, if one does."""
        return self._hop.oldest if self._hop is not None else None

    @property
    def is_silent(self) -> bool:
        """Whether the input stream has not been heard of for longer than its heartbeats allow."""
        return self._hop is not None and self._hop.is_silent

    async def run(self, is_there: Callable[[str], bool]) -> None:
        """Bring the route its messages until it is stopped. An owner who `is_there` gets a moment to let go.

        Raises Fenced when another processor does it, and BrokerError for what a person must mend.
        """
        if self._route.input.is_inner:
            self._refused(None)
            while not await _is_set(self._stop, _TIDY_S if await self._backlog.tidy() else _TIDY_IDLE_S):
                pass
            return
        if self._route.input.schedule is not None:
            schedules = Schedules(self._broker, self._route.app)
            await schedules.keep(self._route)
            self._refused(None)
            while not await _is_set(self._stop, _TIDY_IDLE_S):
                await schedules.keep(self._route)  # it may have been purged
                await self._backlog.tidy()
            return
        source = await self._streams.input(self._route)
        await self._backlog.check()
        self._hop = Repartitioner(
            self._route,
            self._broker,
            source,
            await self._streams.outlets(self._route),
            self._backlog,
            self._owner,
            self._telemetry,
            self._refused,
        )
        await self._hop.run(self._stop, is_there)


class Repartitioner:
    """Deals the messages of an input to the partitions of a route, each once."""

    def __init__(
        self,
        route: Route,
        broker: Broker,
        source: Mapping[str, Any],
        outlets: Mapping[str, Outlet],
        backlog: Backlog,
        owner: str,
        telemetry: RouteTelemetry,
        refused: Callable[[str | None], None],
    ) -> None:
        self._route = route
        self._broker = broker
        self._source = source
        self._backlog = backlog
        self._telemetry = telemetry
        self._observer = Observer(route.name, telemetry)
        self._codec: Codec = codec_for(route)
        self._letters = ParkedMessages(route.app, route.name, broker.max_payload)
        self._effects_of = EffectsBuilder(route, self._codec, outlets, broker.max_payload)
        self._refused = refused
        self._store = ContextStore(broker, route.app, route.name, 1, owner, refused=refused, kind="hop")
        self._reader: Reader | None = None
        self._left = 0  # messages in the inbox, those included that were dealt since that was counted
        self._message_bytes = 1.0  # of one message, as dealt lately
        self._is_full = False

    @property
    def oldest(self) -> Delivery | None:
        return next(iter(self._reader.peek(1)), None) if self._reader is not None else None

    @property
    def is_silent(self) -> bool:
        # A reader that is full asks for nothing, and so hears nothing.
        return self._reader is not None and self._reader.is_silent and not self._is_full

    async def run(self, stop: asyncio.Event, is_there: Callable[[str], bool]) -> None:
        """Deal until `stop` is set. Raises Fenced, and what else makes it impossible to go on."""
        config, state = self._source["config"], self._source["state"]
        source = InputStream(config["name"], self._source["created"], state["last_seq"])
        start_after = state["last_seq"] if self._route.input.start == "new" else 0
        start = await self._store.claim(source, start_after, is_there)
        warn_of_gap(self._source, start, self._route.name)
        self._reader = Reader(
            self._broker,
            source.stream,
            self._route.input.subjects,
            created=source.created,
            retention=config.get("retention", "limits"),
            name=f"{app_stream(self._route.app)}-{self._route.name}",
            start_sequence=start,
            prefetch=2 * _CHUNK_MESSAGES,
        )
        try:
            await self._reader.open()
            self._refused(None)
            log.info("dealing %s of %s", ", ".join(self._route.input.subjects), source.stream,
                     extra={"route": self._route.name})  # fmt: skip
            await self._deal_all(self._reader, stop)
            await self._store.release()
        finally:
            await self._reader.close()
            self._telemetry.hop_lag(0)

    async def _deal_all(self, reader: Reader, stop: asyncio.Event) -> None:
        self._left = await self._backlog.tidy()
        stopping = asyncio.create_task(stop.wait(), name="stop")
        taking: asyncio.Task[list[Delivery]] | None = None
        try:
            while not stop.is_set():
                room = self._room()
                self._is_full = room <= 0
                if self._is_full:
                    await asyncio.wait({stopping}, timeout=_FULL_S)
                    self._left = await self._backlog.tidy()
                    with contextlib.suppress(ApiError, Again, BrokerError, Unknown):
                        await reader.measure()  # it asks for nothing meanwhile
                    self._telemetry.hop_lag(reader.lag)
                    continue
                if taking is None:
                    most = min(room, _CHUNK_MESSAGES)
                    taking = asyncio.create_task(reader.take(most, _CHUNK_BYTES))
                await asyncio.wait(
                    {stopping, taking},
                    timeout=_TIDY_S if self._left else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if stop.is_set():
                    return  # what was taken in this moment is read by the next start
                if taking.done():
                    deliveries, taking = taking.result(), None
                    await self._deal(reader, deliveries)
                else:
                    self._left = await self._backlog.tidy()
                self._telemetry.hop_lag(reader.lag)
        finally:
            tasks = [stopping, *([taking] if taking is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _room(self) -> int:
        """How many more messages the inbox may take."""
        return min(BACKLOG_MESSAGES, max(1, int(BACKLOG_BYTES / self._message_bytes))) - self._left

    async def _deal(self, reader: Reader, deliveries: Sequence[Delivery]) -> None:
        """Store deliveries for their partitions, with the position behind them; then acknowledge them.

        After a crash before the commit they are read again; after it they are skipped, and acknowledged.
        """
        effects = Effects()
        for delivery in deliveries:
            if self._store.is_done(0, delivery.sequence):
                continue
            try:
                effects.stored.append(self._dealt(delivery))
                effects.deliveries.append(delivery)
            except Unfit as err:
                why = f"the message cannot be given to its partition: {err}"
                effects.add(self._rejected(delivery, Failure("E307", why)))
            except Unreadable as err:
                effects.add(self._rejected(delivery, err.failure))
            effects.moves[0] = Move(delivery.sequence)
            if len(effects.stored) > _CHUNK_MESSAGES:
                await self._commit(effects)
                effects = Effects()
        await self._commit(effects)
        await reader.ack(deliveries)

    def _dealt(self, delivery: Delivery) -> Outgoing:
        """What a message becomes in the app's stream. Raises Unfit, and Unreadable where it starts no run."""
        if isinstance(self._codec, TriggerCodec):
            begun = self._codec.start(bare(delivery))
            return Outgoing(begun.subject, begun.payload)
        key = key_of(bare(delivery), self._codec)
        return self._letters.dealt(delivery, partition_of(key, self._route.partitions))

    def _rejected(self, delivery: Delivery, failure: Failure) -> Effects:
        # Of its own number of partition: sequences of the input must not meet those of the app's stream.
        beyond = {delivery.sequence: self._route.partitions}
        batch = Batch([delivery], rejected=[(delivery, failure)], partitions=beyond)
        effects = self._effects_of.run(batch, Ran(), {})
        assert isinstance(effects, Effects)
        return effects

    async def _commit(self, effects: Effects) -> None:
        if not effects.deliveries:
            return
        for message in effects.foreign:
            await self._broker.publish_stored(message)
        await self._store.commit(effects.stored, {}, effects.moves)
        with contextlib.suppress(Unknown):  # the connection is down
            await self._broker.publish(*effects.live)
        for record in effects.records:
            self._observer.read(record)
        self._left += len(effects.deliveries)
        self._message_bytes = _HEADER_BYTES + sum(len(m.payload) for m in effects.stored) / len(
            effects.deliveries
        )


class Schedules:
    """The schedules of an app's routes, which the server keeps in the app's stream and fires."""

    def __init__(self, broker: Broker, app: str) -> None:
        self._broker = broker
        self._app = app
        self._stream = app_stream(app)

    async def keep(self, route: Route) -> None:
        """Make the server fire the route's schedule; one that is stored, or was due once, stays as it is.

        Raises BrokerError E402 for a server that is too old for it, and E410 where it refuses it.
        """
        check_server(route, self._broker)
        schedule = schedule_of(route)
        message = _schedule(route)
        plan = hashlib.sha256(repr((message.payload, sorted(message.headers.items()))).encode()).hexdigest()
        while True:
            stored = await self._stored(route.name)
            kept, fence = stored.get("plan"), 0
            if kept is not None:
                fence = kept.sequence
                is_same = bool(kept.payload) and orjson.loads(kept.payload)["plan"] == plan
                if is_same and ("sched" in stored or is_once(schedule.when)):
                    return
            body = orjson.dumps({"v": 1, "plan": plan, "schedule": schedule.when})
            record = Outgoing(RouteSubjects(self._app, route.name).plan, body, {**KEPT, EXPECTED: str(fence)})
            try:
                await self._broker.commit([message, record])
            except (WrongLastSequence, Unknown, Again):
                await asyncio.sleep(0.1)
                continue
            except BrokerError as err:
                raise BrokerError(
                    "E410",
                    f"the server does not take the schedule '{schedule.when}' of route {route.name}: "
                    f"{err.what}",
                    remedy=f"Change routes.{route.name}.input, or let stream {self._stream} have schedules.",
                ) from err
            log.info("stored the schedule %s", schedule.when, extra={"route": route.name})
            return

    async def prune(self, is_wanted: Callable[[str], bool]) -> None:
        """End the schedules of routes that no processor has any more."""
        for plan in await self._broker.last_of(self._stream, [RouteSubjects(self._app, "*").plan]):
            name = SubjectParts.of(plan.subject).route
            if not plan.payload or is_wanted(name):
                continue
            schedule = (await self._stored(name)).get("sched")
            if schedule is None:
                continue  # it was due once: the plan says so for as long as there is the app
            try:
                # Both fences: one that fires in this moment has been due, and its plan stays.
                await self._broker.commit(
                    [
                        Outgoing(schedule.subject, b"", {**GONE, EXPECTED: str(schedule.sequence)}),
                        Outgoing(plan.subject, b"", {**GONE, EXPECTED: str(plan.sequence)}),
                    ]
                )
                log.info("ended the schedule of route %s, which is gone", name)
            except (WrongLastSequence, Unknown, Again) as err:
                log.debug("the schedule of route %s is looked at again later: %s", name, err)

    async def _stored(self, route: str) -> dict[str, Stored]:
        """What there is of a route's schedule: `sched` and `plan`."""
        own = RouteSubjects(self._app, route)
        stored = await self._broker.last_of(self._stream, [own.schedule, own.plan])
        found = {SubjectParts.of(each.subject).kind: each for each in stored}
        return {kind: stored for kind, stored in found.items() if kind == "plan" or stored.payload}


def schedule_of(route: Route) -> RouteSchedule:
    """The schedule of a route that has one."""
    assert route.input.schedule is not None, "only a route with a schedule is asked for it"
    return route.input.schedule


def check_server(route: Route, broker: Broker) -> None:
    """Raise BrokerError E402 for a server that is too old for the route's schedule."""
    schedule = schedule_of(route).when
    version = tuple(int(part) for part in re.findall(r"\d+", broker.server_version)[:2])
    if not is_once(schedule) and version < SCHEDULES_MIN:
        raise BrokerError(
            "E402",
            f"the NATS server is version {broker.server_version}, and route {route.name} has the schedule "
            f"'{schedule}'",
            remedy="Schedules other than `@at` need 2.14 or later.",
        )


def _schedule(route: Route) -> Outgoing:
    """The message that has the server send the route's document when it is due."""
    schedule, codec = schedule_of(route), codec_for(route)
    if isinstance(codec, TriggerCodec):
        target, payload = codec.scheduled
    else:
        payload = orjson.dumps({"time": "{time}"} if schedule.document is None else schedule.document)
        sample = Delivery(route.input.subjects[0], payload, NO_HEADERS, "", 0, 0.0)
        partition = partition_of(key_of(sample, codec), route.partitions)
        target = RouteSubjects(route.app, route.name).inbox(partition)
    headers = {**KEPT, "Nats-Schedule": schedule.when, "Nats-Schedule-Target": target}
    if schedule.time_zone:
        headers["Nats-Schedule-Time-Zone"] = schedule.time_zone
    if not schedule.catches_up:
        headers["Nats-Schedule-Rollup"] = "sub"
    return Outgoing(route.input.subjects[0], payload, headers)


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
