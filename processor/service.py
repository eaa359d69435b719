"""A running processor: one connection, one zygote, and a supervised worker for every route.

`cli` makes one from a configuration and runs it until it is told to stop. It prepares what routes need on
the server (the app's stream, streams for their outputs), keeps each route running, and replaces routes when
the configuration changes.

What must stay true:
- A route that cannot run says why, in a log line and in readiness, and is tried again; it does not take the
  others with it. A route that was fenced stays stopped: somebody else runs it.
- A reload that does not compile changes nothing.
- Stopping takes nothing more, settles what is in hand, and says whether that was done in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from processor import letters
from processor.codec import Codec, codec_for
from processor.config import Config, Route, language_fault
from processor.context import ContextStore, Input, app_stream
from processor.control import UNSAID, Control, Pause, pause_subject, read_pause
from processor.effects import Outlet
from processor.errors import BrokerError, Faults, Fenced, LanguageError, ProcessorError
from processor.http import HostCalls, RouteCalls
from processor.jetstream import Again, ApiError, Broker, Reader, Stored, Unknown, connect_options
from processor.members import Members
from processor.model import Delivery
from processor.sandbox.host import Zygote, raise_descriptor_limit
from processor.sandbox.jail import LEVELS
from processor.subject import matches
from processor.telemetry import Telemetry
from processor.worker import Worker

log = logging.getLogger("processor")

_NS = 1_000_000_000
_RETRY_S = 2.0
_FIRST_RETRY_S = 0.1
_FENCED_PAUSE_S = 0.3
_FENCED_SOON_S = 5.0
_FENCED_MAX = 10
_STARTING = "the route is starting"
_WATCH_S = 1.0


def app_stream_config(config: Config) -> dict[str, Any]:
    """The stream of an app: it holds all that its commits write.

    It has no limits of its own: what a stream with limits drops first is the oldest message, and that may be
    a context. Outputs carry a time to live instead. What is committed for a public subject is also sent to
    `live.<app>.<subject>` for whoever looks on.
    """
    return {
        "name": app_stream(config.app),
        "subjects": [f"p.{config.app}.>"],
        "storage": config.nats.storage,
        "num_replicas": config.nats.replicas,
        "retention": "limits",
        "discard": "old",
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_direct": True,
        "republish": {"src": f"p.{config.app}.out.>", "dest": f"live.{config.app}.>"},
        "metadata": {"processor.app": config.app},
    }


class Service:
    """Everything of one configuration, from `start` to `stop`."""

    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        self._config = config
        self._telemetry = telemetry
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._members: Members | None = None
        self._pauses: dict[str, Pause] = {}  # what was said last about each route
        self._calls = HostCalls()
        self._zygote: Zygote | None = None
        self._broker: Broker | None = None
        self._runs: dict[str, _Run] = {}
        self._blocked: dict[str, str | None] = {}  # why a route cannot go on, to be said once
        self._watching: list[asyncio.Task[None]] = []
        # Two routes may share a stream: changing it is reading it and writing it back.
        self._preparing = asyncio.Lock()

    async def start(self, *, wait: bool = True) -> None:
        """Build the jail, connect, and start every route.

        Waits for a server that does not answer yet, unless `wait` is false. Raises ProcessorError E501 for a
        jail below the configured level, Faults for Runnables that do not compile, and BrokerError for a
        server that cannot be used.
        """
        self._telemetry.readiness.block("start", "the service is starting")
        raise_descriptor_limit()
        self._zygote = await Zygote.start()
        report = self._zygote.report
        log.info("sandbox %s", report)
        self._telemetry.jail(report.level, report.layers)
        if LEVELS.index(report.level) < LEVELS.index(self._config.sandbox.min_level):
            off = "; ".join(f"{k}: {v}" for k, v in report.layers.items() if not v.startswith("on"))
            raise ProcessorError(
                "E501",
                f"the jail reaches level {report.level}, below sandbox.min_level "
                f"{self._config.sandbox.min_level} ({off})",
                remedy="Give the process what the layers need, or lower sandbox.min_level.",
            )
        for route in self._config.routes.values():
            with contextlib.suppress(LanguageError):  # the route says so itself, and keeps no other from it
                await self._compile(route)
        self._broker = await Broker.connect(
            connect_options(self._config.nats),
            name=f"processor {self._config.app}",
            on_connected=self._connected,
            wait=wait,
        )
        log.info("connected to NATS %s at %s", self._broker.server_version, self._broker.address)
        await self._prepare_app_stream()
        self._members = Members(self._broker, self._config.app, self._owner, self._share_anew)
        await self._members.start(list(self._config.routes))
        self._pauses = await Control(self._broker, self._config.app).pauses()
        for route in self._config.routes.values():
            self._start_route(route)
        self._watching = [
            asyncio.create_task(self._watch(), name="watch-routes"),
            asyncio.create_task(self._watch_due(), name="watch-due"),
        ]
        self._telemetry.readiness.clear("start")

    async def stop(self) -> bool:
        """Stop every route and close everything; whether all that was taken up was settled in time."""
        self._telemetry.readiness.block("stop", "the service is stopping")
        is_clean = await self._stop_routes(list(self._runs))
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._members is not None:
            await self._members.stop()
        if self._broker is not None:
            await self._broker.close()
        if self._zygote is not None:
            await self._zygote.close()
        await self._calls.close()
        return is_clean

    async def reload(self, config: Config) -> list[str]:
        """Run `config` instead; the names of the routes that were started anew.

        Raises Faults for a Runnable that does not compile, and ProcessorError E106 for changes that need a
        restart; then everything runs on as it was.
        """
        fixed = ("app", "nats", "sandbox", "http")
        moved = [name for name in fixed if getattr(config, name) != getattr(self._config, name)]
        if moved:
            raise ProcessorError(
                "E106",
                f"{', '.join(moved)} changed, which a reload cannot apply",
                remedy="Restart the processor, or change it back; everything else was left as it was too.",
            )
        changed = [
            name
            for name, route in config.routes.items()
            if route != self._config.routes.get(name)  # its program counts, too
            or self._runs[name].is_refused  # what was missing may be installed by now
        ]
        try:
            for name in changed:
                await self._compile(config.routes[name])
        except (Faults, ProcessorError) as err:
            await self._retain(self._config)
            if isinstance(err, LanguageError):
                raise Faults([language_fault(config, config.routes[name], err)]) from err
            raise
        gone = [name for name in self._runs if name not in config.routes]
        await self._stop_routes([name for name in [*changed, *gone] if name in self._runs])
        for name in gone:
            self._telemetry.route(name).remove()
        self._config = config
        assert self._members is not None
        await self._members.change(list(config.routes))
        for name in changed:
            self._start_route(config.routes[name])
        await self._retain(config)
        return changed

    def _connected(self, is_connected: bool) -> None:
        self._telemetry.connected(is_connected)
        if is_connected:
            self._telemetry.readiness.clear("nats")
        else:
            self._telemetry.readiness.block("nats", "the NATS server cannot be reached")

    async def _compile(self, route: Route) -> None:
        assert self._zygote is not None
        told = await self._zygote.prepare(route.program)
        if route.language == "python":
            log.info("sandbox %s", told, extra={"route": route.name})
        guest = await self._zygote.spawn(route.program, route.limits)
        await guest.close()

    async def _retain(self, config: Config) -> None:
        """End the processes for packages that no route of this configuration needs."""
        assert self._zygote is not None
        await self._zygote.retain(route.program for route in config.routes.values())

    async def _prepare_app_stream(self) -> None:
        assert self._broker is not None
        wanted = app_stream_config(self._config)
        while True:
            try:
                info = await self._broker.stream(wanted["name"])
                if info is None:
                    await self._broker.create_stream(wanted)
                    log.info("created stream %s", wanted["name"])
                else:
                    check_app_stream(info["config"], wanted)
                return
            except (Unknown, Again, ApiError) as err:
                log.warning("E404 stream %s cannot be prepared yet: %s", wanted["name"], err)
                await asyncio.sleep(_RETRY_S)

    # routes

    def _start_route(self, route: Route) -> None:
        calls = self._calls.for_route(route.reach, self._telemetry.route(route.name).called)
        run = _Run(route, calls)
        self._telemetry.readiness.block(f"route {route.name}", _STARTING)
        run.task = asyncio.create_task(self._keep(run), name=f"route-{route.name}")
        self._runs[route.name] = run

    async def _stop_routes(self, names: list[str]) -> bool:
        runs = [self._runs.pop(name) for name in names]
        for run in runs:
            run.is_stopping = True
            run.is_outdated.set()
            if run.worker is not None:
                run.worker.stop()
            elif run.task is not None:
                run.task.cancel()
        tasks = {run.task for run in runs if run.task is not None}
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=self._config.drain_s)
        for task in late:
            task.cancel()
        if late:
            log.warning(
                "%d of %d routes were not drained within %g s; what they had not committed is done again",
                len(late), len(tasks), self._config.drain_s,
            )  # fmt: skip
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(run.calls.close() for run in runs))
        for name in names:
            self._telemetry.readiness.clear(f"route {name}")
        return not late

    def _share_anew(self) -> None:
        """Somebody came or went: let the workers go whose partitions are not theirs any more."""
        assert self._members is not None
        for name, run in self._runs.items():
            share = self._members.share(name, run.route.partitions, whole=run.is_exclusive)
            if share != run.share:
                run.is_outdated.set()
                if run.worker is not None:
                    run.worker.stop()

    async def _keep(self, run: _Run) -> None:
        """Keep one route running until it is stopped; this is the supervisor's wall."""
        name = run.route.name
        assert self._members is not None
        pause_s = _FIRST_RETRY_S
        while not run.is_stopping:
            run.is_outdated.clear()
            began_s = time.monotonic()
            try:
                pause = self._pauses.get(name, UNSAID)
                if pause.is_paused:
                    self._route_blocked(name, None)
                    log.info(
                        "paused by %s%s", pause.by, f": {pause.reason}" if pause.reason else "",
                        extra={"route": name},
                    )  # fmt: skip
                    await run.is_outdated.wait()
                    continue
                source, outlets = await self._prepare(run.route)
                # Only one may read a stream that deletes what was read.
                run.is_exclusive = source["config"].get("retention", "limits") != "limits"
                run.share = self._members.share(name, run.route.partitions, whole=run.is_exclusive)
                if not run.share:
                    self._route_blocked(name, None)
                    log.info("others run all of the route", extra={"route": name})
                    await run.is_outdated.wait()
                    continue
                run.worker = await self._worker(run, source, outlets)
                if run.is_stopping or run.is_outdated.is_set():
                    run.worker.stop()
                self._route_blocked(name, None)
                part = f"{len(run.share)} of {run.route.partitions} partitions"
                log.info("route started with %s", part, extra={"route": name})
                await run.worker.run()
                log.info("route stopped", extra={"route": name})
                pause_s = _FIRST_RETRY_S
                continue
            except Fenced as err:
                # Views of who is there differ for a moment; if they do not agree soon, somebody should know.
                run.fenced = run.fenced + 1 if time.monotonic() - began_s < _FENCED_SOON_S else 1
                why = str(err) if run.fenced > _FENCED_MAX else None
                log.debug("%s", err, extra={"route": name})
                pause_s = _FENCED_PAUSE_S
            except LanguageError as err:
                run.is_refused = True
                self._route_blocked(name, str(language_fault(self._config, run.route, err)))
                return
            except (ProcessorError, Faults, Unknown, Again, ApiError) as err:
                why, pause_s = str(err), min(2 * pause_s, _RETRY_S)
            except Exception as err:
                # A fault of ours must stop neither the other routes nor this one for good.
                log.exception("an unexpected error in route %s; please report it", name)
                why, pause_s = f"an unexpected error: {type(err).__name__}", _RETRY_S
            finally:
                run.worker = None
            self._route_blocked(name, why)
            await asyncio.sleep(pause_s)

    def _route_blocked(self, name: str, why: str | None) -> None:
        if why != self._blocked.get(name):
            self._blocked[name] = why
            if why is not None:
                log.error("%s", why, extra={"route": name})
        self._telemetry.route(name).stopped(why is not None)
        if why is None:
            self._telemetry.readiness.clear(f"route {name}")
        else:
            self._telemetry.readiness.block(f"route {name}", why)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            for name, run in self._runs.items():
                if run.worker is not None and run.worker.is_silent:
                    self._telemetry.readiness.block(f"input {name}", "the input stream is silent")
                else:
                    self._telemetry.readiness.clear(f"input {name}")

    async def _watch_due(self) -> None:
        """Hand over to the workers what becomes due in the app stream, for as long as we run."""
        assert self._broker is not None
        name, reader = app_stream(self._config.app), None
        while True:
            try:
                info = await self._broker.stream(name)
                if info is None:
                    raise Again(f"stream {name} is gone")
                reader = Reader(
                    self._broker,
                    name,
                    [f"p.{self._config.app}.due.>", pause_subject(self._config.app, "*")],
                    created=info["created"],
                    retention="limits",
                    name=f"{name}-due",
                    start_sequence=info["state"]["last_seq"] + 1,
                    prefetch=500,
                )
                await reader.open()
                # What was said, or became due, while nobody watched.
                for route, pause in (await Control(self._broker, self._config.app).pauses()).items():
                    self._pause(route, pause)
                for run in self._runs.values():
                    if run.worker is not None:
                        await run.worker.look_for_due()
                while True:
                    for delivery in await reader.take(500, 8 << 20, 0):
                        self._hand_over(delivery)
            except (ProcessorError, Unknown, Again, ApiError) as err:
                log.debug("due messages cannot be watched: %s", err)
            except Exception:  # of ours; whoever pauses or redrives has to be heard again
                log.exception("an unexpected error while watching for due messages; please report it")
            finally:
                if reader is not None:
                    await reader.close()
            await asyncio.sleep(_RETRY_S)

    def _pause(self, route: str, pause: Pause) -> None:
        run, before = self._runs.get(route), self._pauses.get(route, UNSAID)
        self._pauses[route] = pause
        self._telemetry.route(route).paused(pause.is_paused)
        if run is not None and (pause.is_paused, pause.reset) != (before.is_paused, before.reset):
            run.is_outdated.set()
            if run.worker is not None:
                run.worker.stop()

    def _hand_over(self, delivery: Delivery) -> None:
        if delivery.subject.split(".", 3)[2] == "ctl":
            self._pause(delivery.subject.rsplit(".", 1)[1], read_pause(delivery.payload))
            return
        stored = Stored(delivery.subject, delivery.sequence, delivery.payload, delivery.headers)
        kept = letters.read(stored)
        _, _, _, route, partition, _ = delivery.subject.split(".", 5)
        run = self._runs.get(route)
        worker = run.worker if run is not None else None
        if kept is not None and worker is not None and worker.owns(int(partition)):
            worker.give(kept)

    async def _prepare(self, route: Route) -> tuple[dict[str, Any], dict[str, Outlet]]:
        """The stream that the route reads, and how its outputs reach their subjects."""
        assert self._broker is not None
        assert self._zygote is not None
        await self._zygote.prepare(route.program)
        await self._broker.connected()
        async with self._preparing:
            outlets = {
                pattern: await self._outlet(route, pattern, is_durable)
                for pattern, is_durable in _topics(route, codec_for(route)).items()
            }
            return await self._input(route), outlets

    async def _worker(self, run: _Run, source: dict[str, Any], outlets: dict[str, Outlet]) -> Worker:
        route, calls = run.route, run.calls
        assert self._broker is not None
        assert self._zygote is not None
        assert self._members is not None
        broker = self._broker
        blocked = partial(self._route_blocked, route.name)
        store = ContextStore(
            broker, route.app, route.name, route.partitions, self._owner, run.share, refused=blocked
        )
        state = source["state"]
        start_after = state["last_seq"] if route.input.start == "new" else 0
        name = source["config"]["name"]
        start = await store.claim(Input(name, source["created"]), start_after, self._members.is_there)
        if 1 < start < state["first_seq"] and state["first_seq"] <= state["last_seq"]:
            log.warning(
                "E409 stream %s begins at %d, after position %d: messages between them were removed before "
                "they were processed, unless they were of other subjects",
                name, state["first_seq"], start - 1,
                extra={"route": route.name, "code": "E409"},
            )  # fmt: skip
        reader = Reader(
            broker,
            name,
            route.input_subjects,
            created=source["created"],
            retention=source["config"].get("retention", "limits"),
            name=f"{app_stream(route.app)}-{route.name}",
            start_sequence=start,
            prefetch=2 * min(route.batch.max_messages, 1000),
        )
        await reader.open()
        return Worker(
            route,
            codec_for(route),
            broker,
            reader,
            store,
            partial(
                self._zygote.spawn,
                route.program,
                route.limits,
                perform=calls.perform,
                secrets=calls.secrets,
            ),
            outlets,
            self._telemetry.route(route.name),
            blocked,
        )

    async def _input(self, route: Route) -> dict[str, Any]:
        assert self._broker is not None
        subjects = route.input_subjects
        name = await self._broker.find_stream(subjects[0])
        if name is None:
            if not route.input.create:
                raise BrokerError(
                    "E401",
                    f"no stream holds {subjects[0]!r}, the input of route {route.name}",
                    remedy=f"Create it, or set routes.{route.name}.input.create: true.",
                )
            name = stream_name(route.app, subjects[0])
            config: dict[str, Any] = {}
            if route.ism is not None:
                # As the routers and processors of that system make it themselves.
                name, config = route.ism.routing.input.name, {"retention": "workqueue"}
            await self._broker.create_stream(
                {
                    "name": name,
                    "subjects": list(subjects),
                    "storage": self._config.nats.storage,
                    "num_replicas": self._config.nats.replicas,
                    "allow_direct": True,
                    "metadata": {"processor.app": route.app},
                    **config,
                }
            )
            log.info("created stream %s for %s", name, subjects[0], extra={"route": route.name})
        info = await self._broker.stream(name)
        if info is None:
            raise BrokerError("E401", f"stream {name} is gone", remedy="Create it again.")
        return info

    async def _outlet(self, route: Route, pattern: str, is_durable: bool) -> Outlet:
        """How to reach a public subject; creates or extends the stream that keeps it."""
        assert self._broker is not None
        is_chunks = route.mode == "stream" and route.output is not None and pattern == _pattern(route)
        if not is_durable:
            return Outlet(live=True)
        ttl_s = int(route.output.ttl) if route.output else 86_400
        outlet = Outlet(live=True) if is_chunks else Outlet(ttl={"Nats-TTL": f"{ttl_s}s"})
        name = await self._broker.find_stream(pattern)
        if name == app_stream(route.app):
            raise BrokerError(
                "E408",
                f"the subject {pattern} of route {route.name} belongs to the app's own stream {name}",
                remedy="Give the output or the events another subject.",
            )
        source = {"name": app_stream(route.app), "subject_transforms": [_transform(route.app, pattern)]}
        if name is None:
            max_age_s = route.output.max_age if route.output else 7 * 86_400
            created = {
                "name": stream_name(route.app, pattern),
                "subjects": [pattern],
                "storage": self._config.nats.storage,
                "num_replicas": self._config.nats.replicas,
                "max_age": int(max_age_s * _NS),
                "allow_direct": True,
                "metadata": {"processor.app": route.app},
            }
            # Chunks are published as they are made, straight to their subject.
            await self._broker.create_stream(created if is_chunks else {**created, "sources": [source]})
            log.info("created stream %s for %s", created["name"], pattern, extra={"route": route.name})
            return outlet
        if is_chunks or await self._copies(name, source):
            return outlet
        log.warning(
            "stream %s cannot copy from %s: outputs of route %s are published to it at least once, and "
            "deduplicated within its duplicate window",
            name, source["name"], route.name,
            extra={"route": route.name},
        )  # fmt: skip
        return Outlet(foreign=True)

    async def _copies(self, name: str, source: dict[str, Any]) -> bool:
        """Whether stream `name` copies from ours, after asking it to where it does not."""
        assert self._broker is not None
        info = await self._broker.stream(name)
        if info is None:
            raise Again(f"stream {name} is gone")
        config = info["config"]
        sources = list(config.get("sources") or [])
        [wanted] = source["subject_transforms"]
        ours = next((s for s in sources if s["name"] == source["name"]), None)
        transforms = list(ours.get("subject_transforms") or []) if ours else []
        if any(matches(t["src"], wanted["src"]) for t in transforms):
            return True
        others = [s for s in sources if s is not ours]
        merged = {**(ours or {}), "name": source["name"], "subject_transforms": [*transforms, wanted]}
        try:
            await self._broker.update_stream({**config, "sources": [*others, merged]})
        except (ApiError, Unknown) as err:
            log.debug("stream %s: %s", name, err)
            return False
        log.info("stream %s now copies %s from %s", name, wanted["dest"], source["name"])
        return True


@dataclass(slots=True)
class _Run:
    """A route and what runs it."""

    route: Route
    calls: RouteCalls
    task: asyncio.Task[None] | None = None
    worker: Worker | None = None
    is_stopping: bool = False
    share: list[int] = field(default_factory=list)  # partitions that the worker has, or is to have
    is_outdated: asyncio.Event = field(default_factory=asyncio.Event)
    is_exclusive: bool = False  # one processor has all partitions, or none
    fenced: int = 0  # times in a row, shortly after the start
    is_refused: bool = False  # plain Python cannot be had for it


def stream_name(app: str, pattern: str) -> str:
    """The name of a stream that is created for a subject: `market-stats-any` for `stats.*` of app market."""
    words = {"*": "any", ">": "all"}
    return "-".join([app, *(words.get(token, token) for token in pattern.split("."))])


def _topics(route: Route, codec: Codec) -> dict[str, bool]:
    events = {route.events_subject: True} if route.events_subject else {}
    return {**codec.topics, **events}


def _pattern(route: Route) -> str:
    template = route.output_template
    return template.pattern if template else ""


def _transform(app: str, pattern: str) -> dict[str, str]:
    numbers = iter(range(1, len(pattern)))
    tokens = [f"{{{{wildcard({next(numbers)})}}}}" if t == "*" else t for t in pattern.split(".")]
    return {"src": f"p.{app}.out.{pattern}", "dest": ".".join(tokens)}


def check_app_stream(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise BrokerError E410 where an existing app stream (its configuration) cannot take commits."""
    needed = ("allow_atomic", "allow_rollup_hdrs", "allow_msg_ttl", "allow_direct")
    missing = [name for name in needed if not found.get(name)]
    limited = [name for name in ("max_msgs", "max_bytes") if found.get(name, -1) > 0]
    limited += ["max_age"] if found.get("max_age", 0) > 0 else []
    if missing or limited:
        what = [f"without {name}" for name in missing] + [f"with {name}" for name in limited]
        raise BrokerError(
            "E410",
            f"stream {wanted['name']} exists {', '.join(what)}",
            remedy="Change it with `nats stream edit`: a limit would drop contexts, oldest first.",
        )
