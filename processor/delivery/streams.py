"""The streams that an app works with: its own, those of its inputs and those of its outputs.

`service` asks for them before a route starts; what is missing is made, and what is there is checked or asked
to copy from the app's stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from processor.config import Config, show_size, show_time
from processor.context.subjects import (
    GraphSubjects,
    app_stream,
    audit_stream,
    committed_subject,
    public_subject,
)
from processor.delivery.codec import codec_for
from processor.delivery.effects import Outlet
from processor.delivery.holdings import Holding, Holdings, KnownStream, listed
from processor.errors import BrokerError
from processor.jetstream import NAME_IN_USE, NO_ROOM, Again, ApiError, Broker, Unknown, end_of
from processor.route import Route, StreamLimits
from processor.subject import app_root, overlaps, republished

log = logging.getLogger("processor")

UNBOUNDED = ", without limits: it grows until the server is full"
_NS = 1_000_000_000
_RETRY_S = 2.0
# The server answers the requests of a connection one after the other, and some take it milliseconds: more
# at a time would only wait there, until those of the last routes are given up as unanswered.
_AT_ONCE = 16
# What a file system may take for the name of a folder, too: the server keeps a stream in one.
_LEGAL_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,200}\Z")
_ILLEGAL = re.compile(r"[\s.*>/\\\x00-\x1f\x7f]")
_NAME_CHARS = 120
_LIMITS = {"max_age", "max_bytes"}


def app_stream_config(config: Config) -> dict[str, Any]:
    """The stream of an app: it holds all that its commits write.

    It has no limits of its own: what a stream with limits drops first is the oldest message, and that may be
    a context. Outputs carry a time to live instead. What is committed for a public subject is also sent to
    `live.<app>.<subject>` for onlookers.
    """
    return {
        "name": app_stream(config.app),
        "subjects": [f"{app_root(config.app)}.>"],
        "storage": config.nats.storage,
        "num_replicas": config.nats.replicas,
        "retention": "limits",
        "discard": "old",
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_direct": True,
        "republish": {"src": committed_subject(config.app, ">"), "dest": republished(config.app, ">")},
        "metadata": {"processor.app": config.app},
    }


class Streams:
    """The streams of one app on one server."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._config = config
        self._holdings = Holdings(broker)
        # Two routes may share a stream: changing it is reading it and writing it back.
        self._changing = asyncio.Lock()
        self._making: dict[str, asyncio.Lock] = {}  # by the name of a stream that is to be made
        self._asking = asyncio.Semaphore(_AT_ONCE)  # held by a route while it asks for its streams
        self.app = config.app
        self._has_room = True  # for the default limit of a stream, which the server reserves
        # A server asked for several at a time may reserve more than it has, and then makes no stream at all.
        self._reserving = asyncio.Lock()
        self._used: dict[str, Used] = {}  # by route
        self.used_changes = 0  # how often `used_by` has become another for a route
        self.begun: set[str] = set()  # routes that have found their streams since the watch compared them
        self._checked: dict[tuple[str, str], int] = {}  # connections in which copies were not ahead
        self._end = -1, 0  # of the app's stream, with the connection that it was seen in
        self._uncopied: dict[tuple[str, str], str] = {}  # what was said last, by route and stream
        self._copying_wanted: dict[str, list[_CopyRequest]] = {}  # by stream, while one of them is made
        self._refused_many: set[str] = set()  # streams that refused several at once
        self._foreign: set[str] = set()  # streams that did not copy something, once
        # The identity of each stream as all routes that run know it. Only the watch looks at what else it is
        # to them; what is changed here, and is nothing to the other routes, is known to them, too.
        self.known: dict[str, bytes] = {}
        self.unlike: set[str] = set()  # routes that found a stream to be other than it was known
        self._unread: set[str] = set()  # streams whose messages we may not read
        self.made: set[str] = set()  # names of streams that were made here, or tried to

    async def prepare(self, *, is_known: bool = False) -> None:
        """Return when the app's own stream is there. Raises BrokerError E410 where it has other settings.

        `is_known` says that it was there before. A stream that follows a deleted one does not count from 1
        but from the microseconds since 1970. So its sequences are above all that the old one had: no fence
        that another process still holds can fit by chance, and the streams that copy from it go on behind
        what they copied last. They would wait for that sequence otherwise.
        """
        wanted = app_stream_config(self._config)
        while True:
            try:
                info = await self._broker.stream(wanted["name"])
                if info is None:
                    copying = await self._copying(wanted["name"])
                    above = {"first_seq": time.time_ns() // 1000} if is_known or copying else {}
                    if await self._create(wanted | above):
                        for config in copying:
                            await self._look_for_source(config, wanted["name"])
                else:
                    check_app_stream(info["config"], wanted)
                return
            except (Unknown, Again, ApiError) as err:
                log.warning("E404 stream %s cannot be prepared yet: %s", wanted["name"], err)
                await asyncio.sleep(_RETRY_S)

    async def _create(self, wanted: dict[str, Any]) -> bool:
        """Create the app's stream; False where another processor was faster."""
        try:
            await self._broker.create_stream(wanted)
        except BrokerError:
            # It may have made it in this moment, with another first sequence.
            if await self._broker.stream(wanted["name"]) is None:
                raise
            return False
        log.info("created stream %s", wanted["name"])
        return True

    async def _copying(self, name: str) -> list[dict[str, Any]]:
        """The configurations of the streams that copy from the app's stream, which is not there: those of
        outputs, of its audit, and of work for others.
        """
        found: dict[str, dict[str, Any]] = {}
        for stream in (audit_stream(self.app), GraphSubjects(self.app).work_stream):
            if (info := await self._broker.stream(stream)) and info["config"].get("sources"):
                found[stream] = dict(info["config"])
        for route in self._config.routes.values():
            for pattern in topics(route):
                for holding in await self._holdings.of([pattern]):
                    config = dict(holding.info["config"])
                    if any(source["name"] == name for source in config.get("sources") or []):
                        found[holding.name] = config
        return list(found.values())

    async def _look_for_source(self, config: dict[str, Any], name: str) -> None:
        """Make a stream look for its source `name` now: by itself it does so only after 10 s or more.

        It goes on behind what it copied last, and nothing of the new stream was copied yet.
        """
        others = [source for source in config["sources"] if source["name"] != name]
        async with self._changing:
            # What fails here ends when the route starts, which asks for its source.
            with contextlib.suppress(ApiError, Unknown, Again):
                await self._broker.update_stream({**config, "sources": others})
                await self._broker.update_stream(config)

    async def outlets(self, route: Route) -> dict[str, Outlet]:
        """How the outputs and events of a route reach their subjects, by pattern.

        Creates or extends the streams that keep them. Raises BrokerError E408 for one that cannot be, and
        E419 for one that has copied more of the app's stream than that holds.
        """
        async with self._asking:
            found = {
                pattern: await self._outlet(route, pattern, is_durable)
                for pattern, is_durable in topics(route).items()
            }
            await self._check_copies(found)
        self._use(route, replace(self.used_by(route.name), outlets=found))
        return found

    async def input(self, route: Route) -> dict[str, Any]:
        """The stream that a route reads, as the server describes it; made where the route wants that.

        Raises BrokerError E401 where there is none, and E417 where it is not one, or not under its subject.
        """
        async with self._asking:
            info = await self._input(route)
        self._know(route, KnownStream(info))
        if facts(info) != self.used_by(route.name).input:
            warn_of_idle_limit(info, route.name)
        self._use(route, replace(self.used_by(route.name), input=facts(info)))
        return info

    async def change(self, route: Route, holdings: Holdings) -> str:
        """What is different from when the streams of a route were asked for last; empty if nothing is.

        It is looked up in `holdings`. Nothing is made. Raises BrokerError as `input` and `outlets` do.
        """
        used = self.used_by(route.name)
        if used.input:
            info = await holdings.input(route)
            if info is None:
                return f"stream {used.input['name']} does not hold {route.input.subjects[0]!r} any more"
            if difference := _difference(used.input, facts(info)):
                return f"stream {used.input['name']}: {difference}"
        for pattern, outlet in used.outlets.items():
            if outlet.stream or outlet.parts:
                found = await holdings.of([pattern])
                if not found:
                    return f"no stream holds {pattern} any more"
                now = outlet_of(route, pattern, found)
                check_acknowledged(route, pattern, now, found)
                if now != outlet:
                    return f"the streams of {pattern} are others, or have other settings: {_shown(found)}"
        return ""

    async def source(self, route: Route) -> dict[str, Any]:
        """The stream that the processors of a route read, as the server describes it.

        The app's own, where a hop or a schedule puts the route's messages; else as `input`.
        """
        if not route.input.is_own:
            return await self.input(route)
        info = await self._broker.stream(app_stream(route.app))
        if info is None:
            raise Again(f"stream {app_stream(route.app)} is gone")
        return info

    async def _input(self, route: Route) -> dict[str, Any]:
        subjects = route.input.subjects
        found = await self._holdings.input(route)
        if found is not None:
            return dict(found)
        if not route.input.create:
            await self._holdings.check_elsewhere(route)
            raise no_input(route)
        create = route.input.create
        wanted = {
            "name": stream_name(route.app, subjects[0]),
            "subjects": list(subjects),
            "storage": self._config.nats.storage,
            "num_replicas": self._config.nats.replicas,
            "allow_direct": True,
            "metadata": {"processor.app": route.app},
            **limits(create.max_age_s, create.max_bytes),
        }
        if route.ism is not None:
            # As the routers and processors of that system make it themselves.
            wanted |= {"name": route.ism.routing.input.name, "retention": "workqueue"}
            wanted = {k: v for k, v in wanted.items() if k not in _LIMITS - create.chosen}
        is_own = "max_bytes" in create.chosen
        name = await self._made(route, subjects[0], wanted, has_own_bytes=is_own)
        info = await self._broker.stream(name)
        if info is None:
            raise BrokerError("E401", f"stream {name} is gone", remedy="Create it again.")
        return info

    async def _made(self, route: Route, subject: str, wanted: dict[str, Any], *, has_own_bytes: bool) -> str:
        """The name of the stream of a subject that had none: as wanted, or as another made it meanwhile.

        Raises BrokerError E408 where it cannot be.
        """
        making = self._making.setdefault(wanted["name"], asyncio.Lock())
        is_being_made = making.locked()
        async with making:
            if is_being_made and (made := await self._broker.find_stream(subject)):
                return made
            self.made.add(wanted["name"])
            try:
                wanted = await self._create_limited(wanted, has_own_bytes=has_own_bytes)
            except BrokerError as err:
                # Another route or processor may have been faster, with other settings or a wider subject.
                name = await self._broker.find_stream(subject)
                if name is not None:
                    return name
                other = distinct_name(route.app, subject)
                is_taken = isinstance(err.__cause__, ApiError) and err.__cause__.err_code == NAME_IN_USE
                if not is_taken or wanted["name"] != stream_name(route.app, subject) or route.ism is not None:
                    raise
                # Two subjects may make one name, such as `a.b` and `a-b`.
                self.made.add(other)
                wanted = {**wanted, "name": other}
                wanted = await self._create_limited(wanted, has_own_bytes=has_own_bytes)
            log.info(
                "created stream %s for %s%s",
                wanted["name"], subject, bounds(wanted),
                extra={"route": route.name},
            )  # fmt: skip
        return str(wanted["name"])

    async def _create_limited(self, wanted: dict[str, Any], *, has_own_bytes: bool) -> dict[str, Any]:
        """Create a stream, and return its configuration. The server reserves its `max_bytes`, or refuses.

        Where it refuses the default limit, this stream and those after it are created without one.
        """
        if "max_bytes" not in wanted:
            await self._broker.create_stream(wanted)
            return wanted
        async with self._reserving:
            if has_own_bytes or self._has_room:
                try:
                    await self._broker.create_stream(wanted)
                    return wanted
                except BrokerError as err:
                    is_full = isinstance(err.__cause__, ApiError) and err.__cause__.err_code in NO_ROOM
                    if has_own_bytes or not is_full:
                        raise
                    self._has_room = False
                    log.info(
                        "the server cannot reserve %g GiB for a stream: they are created without max_bytes",
                        wanted["max_bytes"] / (1 << 30),
                    )
        wanted = {key: value for key, value in wanted.items() if key != "max_bytes"}
        await self._broker.create_stream(wanted)
        return wanted

    async def _outlet(self, route: Route, pattern: str, is_durable: bool) -> Outlet:
        """How to reach a public subject; creates or extends the stream that keeps it."""
        if not is_durable:
            return Outlet(live=True)
        if pattern in route.inner:
            return Outlet(inner=True, max_bytes=self._broker.max_payload)
        found = await self._holdings.of([pattern])
        if not found:
            is_own = route.output is not None and "max_bytes" in route.output.limits.chosen
            await self._made(route, pattern, self._wanted(route, pattern), has_own_bytes=is_own)
            found = await self._holdings.of([pattern])
        for holding in found:
            self._know(route, holding.stream)
        outlet = outlet_of(route, pattern, found)
        if not outlet.foreign:
            return outlet
        for holding in found:
            if not _copies(holding, route.app):
                await self._ask_to_copy(route, holding)
        found = await self._holdings.of([pattern])
        outlet = outlet_of(route, pattern, found)
        check_acknowledged(route, pattern, outlet, found)
        return outlet

    def _wanted(self, route: Route, pattern: str) -> dict[str, Any]:
        """The stream that is made for a public subject that none holds."""
        wanted = {
            "name": stream_name(route.app, pattern),
            "subjects": [pattern],
            "storage": self._config.nats.storage,
            "num_replicas": self._config.nats.replicas,
            "allow_direct": True,
            "metadata": {"processor.app": route.app},
            **output_limits(route),
        }
        # Chunks are published as they are made, straight to their subject.
        return wanted if is_chunks(route, pattern) else {**wanted, "sources": [_source(route.app, [pattern])]}

    async def _ask_to_copy(self, route: Route, holding: Holding) -> None:
        """Make a stream copy from ours what it holds of the route's subjects; logged where it does not.

        What several routes want of one stream while it is changed for another is asked for at once: each
        change takes a server the longer the more a stream copies.
        """
        name, request = holding.name, _CopyRequest(holding.subjects)
        wanted = self._copying_wanted.setdefault(name, [])
        wanted.append(request)
        try:
            async with self._changing:
                if request.is_done:
                    return
                if name not in self._refused_many and len(wanted) > 1:
                    if not await self._copy(name, wanted):
                        return
                    self._refused_many.add(name)
                why = await self._copy(name, [request])
                if not why:
                    return
                self._foreign.add(name)
        finally:
            wanted.remove(request)
            if not wanted:
                self._copying_wanted.pop(name, None)
        if self._uncopied.get((route.name, name)) == why:
            return
        self._uncopied[route.name, name] = why
        log.warning(
            "stream %s cannot copy from %s (%s): outputs of route %s are published to it at least once, and "
            "deduplicated within its duplicate window",
            name, app_stream(route.app), why, route.name,
            extra={"route": route.name},
        )  # fmt: skip

    async def _copy(self, name: str, wanted: Sequence[_CopyRequest]) -> str:
        """Have a stream copy all that is wanted; why it does not, if it does not."""
        wanted, added = list(wanted), list[str]()  # more may be wanted meanwhile
        before = await self._holdings.stream(name)
        if before is None:
            raise Again(f"stream {name} is gone")
        stream, is_addition = before, True
        try:
            for request in wanted:
                missing = [s for s in request.subjects if stream.source(self.app, s) is None]
                if not missing:
                    continue
                added += missing
                replaced = _replaced(stream.config, self.app, missing)
                is_addition = is_addition and not replaced
                copied = [await self.copied_to(stream.info, each) for each in replaced]
                sources = _with_copies(stream.config, self.app, missing, replaced, min(copied, default=0))
                stream = KnownStream({**stream.info, "config": {**stream.config, "sources": sources}})
            if added:
                changed = KnownStream(await self._broker.update_stream(stream.config))
                if is_addition and name not in self._foreign and self.known.get(name) == before.identity:
                    self.known[name] = changed.identity
        except (ApiError, Unknown, BrokerError) as err:
            return err.description if isinstance(err, ApiError) else str(err)
        for request in wanted:
            request.is_done = True
        if added:
            log.info("stream %s now copies %s from %s", name, listed(added), app_stream(self.app))
        return ""

    async def copied_to(self, info: Mapping[str, Any], source: Mapping[str, Any]) -> int:
        """The sequence of the app's stream up to which another has copied by this source; 0 for nothing."""
        transforms = source.get("subject_transforms") or []
        for found in info.get("sources") or []:
            is_it = found["name"] == source["name"] and found.get("subject_transforms", []) == transforms
            if is_it and found.get("seq"):
                return int(found["seq"])
        # Where the server does not say, the last copy does.
        copied = 0
        for pattern in map(_stored_as, transforms):
            last = await self._broker.last_from_leader(info["config"]["name"], pattern)
            name, _, rest = (last.headers.get("Nats-Stream-Source", "") if last else "").partition(" ")
            if name == source["name"] and rest.split(" ")[0].isdigit():
                copied = max(copied, int(rest.split(" ")[0]))
        return copied

    async def copied_if_permitted(self, info: Mapping[str, Any], source: Mapping[str, Any]) -> int | None:
        """As `copied_to`; None, and one log line, where that is only in messages that we may not read."""
        try:
            return await self.copied_to(info, source)
        except BrokerError as err:
            if err.code != "E403":
                raise
            name = info["config"]["name"]
            if name not in self._unread:
                self._unread.add(name)
                log.info(
                    "whether stream %s has copied everything is not watched: this user may not publish to "
                    "$JS.API.STREAM.MSG.GET.%s", name, name,
                )  # fmt: skip
            return None

    async def _check_copies(self, outlets: Mapping[str, Outlet]) -> None:
        """Raise BrokerError E419 where a stream is ahead of the app's; asked once for each connection."""
        generation = self._broker.generation
        for pattern, outlet in outlets.items():
            for held, way in (outlet.parts or {pattern: outlet}).items():
                is_copied = way.stream and not way.live and not way.foreign
                if not is_copied or self._checked.get((way.stream, held)) == generation:
                    continue
                stream = await self._holdings.stream(way.stream)
                source = None if stream is None else stream.source(self.app, held)
                if stream is not None and source is not None:
                    copied = await self.copied_if_permitted(stream.info, source)
                    lost = None if copied is None else await self.lost(stream.info, copied)
                    if lost is not None:
                        raise lost
                    self._checked[way.stream, held] = generation

    async def lost(self, info: Mapping[str, Any], copied: int) -> BrokerError | None:
        """What is wrong where a stream has copied more of the app's than that holds (E419)."""
        generation, end = self._end
        if generation == self._broker.generation and copied <= end:
            return None
        name = app_stream(self.app)
        app = await self._broker.stream(name)
        last = None if app is None else await end_of(self._broker, name, app["created"], copied)
        if last is None:
            return None
        self._end = self._broker.generation, last
        if last >= copied:
            return None
        return BrokerError(
            "E419",
            f"stream {info['config']['name']} has copied up to {copied} of {name}, which ends at {last}: "
            f"the server lost commits, and outputs in the next {copied - last} messages would not be copied",
            remedy='See "The server lost messages" in deploy/runbook.md.',
        )

    def _know(self, route: Route, stream: KnownStream) -> None:
        if self.known.setdefault(stream.config["name"], stream.identity) != stream.identity:
            self.unlike.add(route.name)

    def _use(self, route: Route, found: Used) -> None:
        self._used[route.name] = found
        self.begun.add(route.name)
        self.used_changes += 1

    def used_by(self, route: str) -> Used:
        """What was found of the streams of a route when it asked last."""
        return self._used.get(route, _NOTHING)


@dataclass(slots=True, eq=False)
class _CopyRequest:
    """What a route wants a stream to copy."""

    subjects: tuple[str, ...]
    is_done: bool = False


def _replaced(config: Mapping[str, Any], app: str, missing: Sequence[str]) -> list[dict[str, Any]]:
    """The sources of ours that copy a part of these subjects, and cannot stay beside one that copies all."""
    ours = [source for source in config.get("sources") or [] if source["name"] == app_stream(app)]
    return [
        source
        for source in ours
        if any(
            each == _transform(app, public_subject(app, each["src"]))
            and any(overlaps(each["src"], committed_subject(app, subject)) for subject in missing)
            for each in source.get("subject_transforms") or []
        )
    ]


def _with_copies(
    config: Mapping[str, Any],
    app: str,
    missing: Sequence[str],
    replaced: Sequence[Mapping[str, Any]],
    copied: int,
) -> list[dict[str, Any]]:
    """The sources of a stream that copies these subjects from the app's, too.

    The server starts over with a source that changes, so they get one of their own. It takes the place of
    those that are `replaced`, and goes on behind what these have copied.
    """
    sources = [dict(source) for source in config.get("sources") or [] if source not in replaced]
    behind = {"opt_start_seq": copied + 1} if copied else {}
    wanted = [committed_subject(app, subject) for subject in missing]
    for source in replaced:
        transforms = [
            each
            for each in source["subject_transforms"]
            if not any(overlaps(each["src"], subject) for subject in wanted)
        ]
        if transforms:
            sources.append({**source, "subject_transforms": transforms, **behind})
    return [*sources, {**_source(app, missing), **behind}]


@dataclass(frozen=True, slots=True)
class Used:
    """What was found of the streams of a route when it asked last."""

    input: Mapping[str, Any] = field(default_factory=dict)
    outlets: Mapping[str, Outlet] = field(default_factory=dict)

    @property
    def streams(self) -> set[str]:
        """The names of all of them."""
        ways = [way for outlet in self.outlets.values() for way in (outlet, *outlet.parts.values())]
        return {name for name in (self.input.get("name"), *(way.stream for way in ways)) if name}


_NOTHING = Used()


def facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader has to know of a stream: where one of these changes, it must start again."""
    config = info["config"]
    return {
        "name": config["name"],
        "created": info["created"],
        "subjects": config.get("subjects"),
        "retention": config.get("retention", "limits"),
        "subject_transform": config.get("subject_transform"),
    }


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [name for name, value in now.items() if before[name] != value]
    return "; ".join(f"{name} was {before[name]} and is {now[name]}" for name in changed)


def no_input(route: Route) -> BrokerError:
    """The error of a route whose input no stream holds."""
    return BrokerError(
        "E401",
        f"no stream holds {route.input.subjects[0]!r}, the input of route {route.name}",
        remedy=f"Create it, or set routes.{route.name}.input.create: true.",
    )


def outlet_of(route: Route, pattern: str, found: Sequence[Holding]) -> Outlet:
    """How messages of a route reach a public subject that these streams hold, as they are now.

    Raises BrokerError E408 where one of them is the app's own.
    """
    for holding in found:
        if holding.name == app_stream(route.app):
            raise BrokerError(
                "E408",
                f"the subject {pattern} of route {route.name} belongs to the app's own stream {holding.name}",
                remedy="Give the output or the events another subject.",
            )
    ways = {subject: _way(route, pattern, holding) for holding in found for subject in holding.subjects}
    if len(found) == 1 and found[0].covers(pattern):
        return next(iter(ways.values()))
    is_live = is_chunks(route, pattern)
    return Outlet(live=is_live, foreign=any(way.foreign for way in ways.values()), parts=ways)


def check_acknowledged(route: Route, pattern: str, outlet: Outlet, found: Sequence[Holding]) -> None:
    """Raise BrokerError E408 where outputs would be published to a stream that acknowledges nothing."""
    silent = {holding.name for holding in found if holding.info["config"].get("no_ack")}
    for held, way in (outlet.parts or {pattern: outlet}).items():
        if way.foreign and way.stream in silent:
            raise BrokerError(
                "E408",
                f"stream {way.stream} does not copy {held} from {app_stream(route.app)} and acknowledges "
                f"nothing that is published to it (no_ack): it cannot be known whether it has the outputs of "
                f"route {route.name}",
                remedy="Set `no_ack: false` on it, or let it copy; `nats stream edit` does both.",
            )


def _way(route: Route, pattern: str, holding: Holding) -> Outlet:
    config = holding.info["config"]
    limit = config.get("max_msg_size", -1)
    outlet = Outlet(stream=holding.name, max_bytes=limit if limit >= 0 else None)
    if is_chunks(route, pattern):
        return replace(outlet, live=True)
    ttl = {"Nats-TTL": f"{int(route.output.ttl_s) if route.output else 86_400}s"}
    if not _copies(holding, route.app):
        return replace(outlet, foreign=True, ttl=ttl)
    if outlet.max_bytes is None:
        return replace(outlet, ttl=ttl)
    return replace(outlet, ttl=ttl, copy_bytes=_copy_bytes(holding.stream, route.app, holding.subjects[0]))


def _copies(holding: Holding, app: str) -> bool:
    """Whether a stream copies from the app's all that it holds of the subjects that were looked for."""
    return all(holding.stream.source(app, subject) is not None for subject in holding.subjects)


def _copy_bytes(stream: KnownStream, app: str, subject: str) -> int:
    """The headers that a copy has more than the message that was made, less its subject: the most they are.

    `Nats-Stream-Source: <stream> <sequence> <filters> <destinations> <subject> <account>`, and the TTL.
    """
    source = stream.source(app, subject)
    if source is None:
        return 0
    names = sum(len(f"{each['src']}{each['dest']}".encode()) + 2 for each in source["subject_transforms"])
    fixed = "NATS/1.0\r\nNats-TTL: 31536000s\r\nNats-Stream-Source:      12345678\r\n\r\n"
    return len(fixed) + len(app_stream(app)) + 20 + names + len(committed_subject(app, ""))


def _source(app: str, patterns: Sequence[str]) -> dict[str, Any]:
    return {"name": app_stream(app), "subject_transforms": [_transform(app, each) for each in patterns]}


def _shown(found: Sequence[Holding]) -> str:
    return "; ".join(map(str, found[:5]))


def durability(info: Mapping[str, Any]) -> str:
    """What can be known of what a stream keeps over a power cut; a server does not say how it syncs."""
    config = info["config"]
    replicas = config.get("num_replicas", 1)
    if config.get("storage") == "memory":
        return (
            f"{config['name']} is kept in the memory of {_counted(replicas)}: it is lost when "
            f"{'that loses' if replicas == 1 else 'all of them lose'} power"
        )
    if replicas == 1:
        return (
            f"{config['name']} is on the disk of 1 server: a power cut may lose the last 2 minutes of what "
            "it acknowledged, unless it runs with `sync_interval: always` (a server does not say)"
        )
    return (
        f"{config['name']} is on the disks of {replicas} servers: what was acknowledged survives if "
        f"{(replicas - 1) // 2} of them {'loses' if replicas < 5 else 'lose'} power; if more do, only with "
        "`sync_interval: always` (a server does not say)"
    )


def _counted(servers: int) -> str:
    return "1 server" if servers == 1 else f"{servers} servers"


def warn_of_gap(source: Mapping[str, Any], start: int, route: str) -> None:
    """Say it where a stream, as the server describes it, begins behind what is to be read (E409)."""
    state = source["state"]
    if 1 < start < state["first_seq"] and state["first_seq"] <= state["last_seq"]:
        log.warning(
            "E409 stream %s begins at %d, after position %d: messages between them were removed before "
            "they were processed, unless they were of other subjects",
            source["config"]["name"], state["first_seq"], start - 1,
            extra={"route": route, "code": "E409"},
        )  # fmt: skip


def limits(max_age_s: float, max_bytes: int) -> dict[str, Any]:
    """The settings of a new stream that drops its oldest messages at these limits; 0 is none."""
    found = {"max_age": int(max_age_s * _NS), "max_bytes": max_bytes}
    return {"discard": "old", **{name: value for name, value in found.items() if value}}


def output_limits(route: Route) -> dict[str, Any]:
    """The limits of a new stream for what a route writes."""
    wanted = route.output.limits if route.output else StreamLimits()
    return limits(wanted.max_age_s, wanted.max_bytes)


def bounds(config: Mapping[str, Any]) -> str:
    """What bounds a stream, in words that follow its name; `UNBOUNDED` where nothing does."""
    found = []
    if config.get("max_age", 0) > 0:
        found.append(f"max_age {show_time(config['max_age'] / _NS)}")
    if config.get("max_bytes", -1) > 0:
        found.append(f"max_bytes {show_size(config['max_bytes'])}")
    if config.get("max_msgs", -1) > 0:
        found.append(f"max_msgs {config['max_msgs']}")
    if config.get("max_msgs_per_subject", -1) > 0:
        found.append(f"max_msgs_per_subject {config['max_msgs_per_subject']}")
    if not found and config.get("retention", "limits") != "limits":
        return ""
    return f" ({', '.join(found)})" if found else UNBOUNDED


def warn_of_idle_limit(source: Mapping[str, Any], route: str) -> None:
    """Warn where a stream drops our consumer, and so messages, while the route does not read."""
    idle_s = (source["config"].get("consumer_limits") or {}).get("inactive_threshold", 0) / _NS
    if idle_s and source["config"].get("retention") == "interest":
        log.warning(
            "stream %s removes a consumer that is not used for %g s (consumer_limits), and keeps only what "
            "one wants: messages that come while no processor runs for longer are lost",
            source["config"]["name"], idle_s,
            extra={"route": route},
        )  # fmt: skip


def stream_name(app: str, pattern: str) -> str:
    """The name of a stream that is created for a subject: `market-stats-any` for `stats.*` of app market.

    A subject with characters that the name of a stream cannot have makes a `distinct_name`.
    """
    words = {"*": "any", ">": "all"}
    name = "-".join([app, *(words.get(token, token) for token in pattern.split("."))])
    return name if _LEGAL_NAME.match(name) else distinct_name(app, pattern)


def distinct_name(app: str, pattern: str) -> str:
    """The name of a stream for a subject, where another subject's has its `stream_name`."""
    digest = hashlib.sha256(pattern.encode()).hexdigest()[:8]
    words = {"*": "any", ">": "all"}
    tokens = [words.get(token, _ILLEGAL.sub("_", token)) for token in pattern.split(".")]
    return f"{'-'.join([app, *tokens])[:_NAME_CHARS]}-{digest}"


async def free_name(broker: Broker, app: str, pattern: str) -> str:
    """The name that a stream for a subject would get now, which no stream holds."""
    name = stream_name(app, pattern)
    return name if await broker.stream(name) is None else distinct_name(app, pattern)


def topics(route: Route) -> dict[str, bool]:
    """The patterns of all subjects that a route writes to, and whether a stream is to keep them."""
    events = {route.events_subject: True} if route.events_subject else {}
    return {**codec_for(route).topics, **events}


def is_chunks(route: Route, pattern: str) -> bool:
    """Whether what goes to a pattern are the chunks of runs in stream mode."""
    template = route.output_template
    return route.mode == "stream" and template is not None and pattern == template.pattern


def _transform(app: str, pattern: str) -> dict[str, str]:
    numbers = iter(range(1, len(pattern)))
    tokens = [f"{{{{wildcard({next(numbers)})}}}}" if t == "*" else t for t in pattern.split(".")]
    return {"src": committed_subject(app, pattern), "dest": ".".join(tokens)}


def _stored_as(transform: Mapping[str, str]) -> str:
    """The subjects of the copies that a transform makes."""
    return ".".join("*" if "{{" in token else token for token in transform["dest"].split("."))


def check_app_stream(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise BrokerError E410 where an existing app stream (its configuration) cannot take commits."""
    needed = ("allow_atomic", "allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules", "allow_direct")
    missing = [name for name in needed if not found.get(name)]
    limited = [name for name in ("max_msgs", "max_bytes") if found.get(name, -1) > 0]
    limited += ["max_age"] if found.get("max_age", 0) > 0 else []
    limited += ["no_ack"] if found.get("no_ack") else []
    if missing or limited:
        what = [f"without {name}" for name in missing] + [f"with {name}" for name in limited]
        raise BrokerError(
            "E410",
            f"stream {wanted['name']} exists {', '.join(what)}",
            remedy="Change it with `nats stream edit`: a limit would drop contexts, oldest first; without "
            "acknowledgements no commit is certain.",
        )
