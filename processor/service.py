"""A running processor: one connection, one zygote, and supervised workers for every route.

`cli` makes one from a configuration and runs it until it is told to stop. It prepares what routes need on
the server (the app's stream, streams for their outputs), keeps each route running, and replaces routes when
the configuration changes.

What must stay true:
- A route that cannot run says why, in a log line and in readiness, and is tried again; it does not take the
  others with it. A route that was fenced stays stopped: another processor runs it.
- A reload that does not compile changes nothing.
- Stopping takes nothing more, settles what is in hand, and says whether that was done in time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from processor.audit import AuditEntry
from processor.capability.declared import misfits
from processor.capability.monitor import Governor, Mandate
from processor.capability.registry import HostCalls
from processor.config import Config, fingerprint, language_fault, tool_fault
from processor.context import parked
from processor.context.ledger import AppLedger
from processor.context.parked import timestamp
from processor.context.position import InputStream
from processor.context.sightings import first_seen
from processor.context.store import ContextStore
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream, every
from processor.delivery.audit_copy import prepare_audit
from processor.delivery.backlog import inboxes
from processor.delivery.codec import codec_for
from processor.delivery.effects import Outlet
from processor.delivery.key_change import KeyChange
from processor.delivery.lanes import Lanes
from processor.delivery.members import Members, StopReason, Version
from processor.delivery.repartition import Inboxes
from processor.delivery.runner import BatchRunner
from processor.delivery.streams import Streams, durability, warn_of_gap
from processor.delivery.watch import CopyWatch, StreamWatch
from processor.delivery.work_queue import prepare_work_queue
from processor.delivery.worker import Shared
from processor.errors import ERRORS, Edited, Faults, Fenced, LanguageError, ProcessorError
from processor.graphs.keeper import GraphKeeper
from processor.graphs.pools import graph_routes, pool_guest
from processor.jetstream import Again, ApiError, Broker, Reader, Stored, Unknown, connect_options
from processor.model import Delivery, Limits, Program
from processor.operate.api import OperateApi
from processor.operate.control import UNSAID, Control, Pause, read_pause
from processor.operate.journal import Journal
from processor.operate.lag import LagWatch
from processor.operate.notary import Notary
from processor.operate.retention import RetentionWatch
from processor.reach import FunctionTool
from processor.recipes.pools import ShellPools
from processor.route import Route
from processor.sandbox.host import Zygote
from processor.sandbox.jail import LEVELS
from processor.sandbox.launch import raise_descriptor_limit
from processor.sandbox.wire import Manifest
from processor.telemetry import Readiness, Telemetry

log = logging.getLogger("processor")

_NS = 1_000_000_000
_RETRY_S = 2.0
_FIRST_RETRY_S = 0.1
_FENCED_PAUSE_S = 0.3
_FENCED_SOON_S = 5.0
_FENCED_MAX = 10
_STARTING = "the route is starting"
_WATCH_S = 1.0
_LOOK_AGAIN_S = 0.5
_RENEWED_S = 30.0  # how soon a line of a policy that was renewed is
_COMPILED_AT_ONCE = 4
_NAMED_MAX = 20
# What is denied is tried again sooner than this, so that a permission that was given is noticed.
_DENIED_S = 30.0
_DENIED_SAID_MAX = 20
# Without leave to update, outputs are published to the stream instead; without that of advisories, changes of
# streams are noticed later; without the last two no request over NATS reaches us. That is logged where it is
# found out, and routes run on.
_DISPENSABLE = (
    "publish to $js.api.stream.list",
    "publish to $js.api.stream.update.",
    "publish to _inbox.",
    "subscribe to $js.event.advisory.stream.",
    "subscribe to $srv.",
)


class DeniedActions:
    """What the server does not let this user do, as the log and `/readyz` say it."""

    def __init__(self, app: str, readiness: Readiness) -> None:
        self._app = app
        self._readiness = readiness
        self._denied_s: dict[str, float] = {}  # each action, and when the server said so last

    def note(self, action: str) -> None:
        """Log and show it: much that may be denied is never answered, and would only stand still."""
        requests = f"subscribe to ctl.{self._app}.api."
        if action.lower().startswith((*_DISPENSABLE, requests.lower())):
            return
        # Of other streams than the app's it only tells how far they have copied.
        get, _, stream = action.lower().rpartition(".")
        if get == "publish to $js.api.stream.msg.get" and stream != app_stream(self._app).lower():
            return
        # One line for all partitions, keys and messages.
        tokens = action.split(".")
        count = 5 if "$JS.API." in action else 4
        action = ".".join([*tokens[:count], ">"] if len(tokens) > count else tokens)
        if action not in self._denied_s and len(self._denied_s) < _DENIED_SAID_MAX:
            log.error("E403 the NATS server does not let this user %s", action, extra={"code": "E403"})
        self._denied_s[action] = time.monotonic()
        self._show()

    def _show(self) -> None:
        if not self._denied_s:
            self._readiness.clear("permissions")
            return
        shown = " nor ".join(list(self._denied_s)[:3])
        more = f" nor {len(self._denied_s) - 3} more" if len(self._denied_s) > 3 else ""
        self._readiness.block("permissions", f"E403 the NATS server does not let this user {shown}{more}")

    def forget_old(self) -> None:
        """A subscription that was denied stays dead until the next connection; all else is tried again."""
        since_s = time.monotonic() - _DENIED_S
        kept = {
            action: at_s
            for action, at_s in self._denied_s.items()
            if at_s > since_s or action.startswith("subscribe")
        }
        if len(kept) < len(self._denied_s):
            self._denied_s = kept
            self._show()

    def clear(self) -> None:
        """A new connection starts without any."""
        self._denied_s.clear()
        self._show()


class Service:
    """Everything of one configuration, from `start` to `stop`."""

    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        self._config = config = _with_graphs(config)
        self._telemetry = telemetry
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())  # the name is a subject's token, too
        self._owner = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self._api: OperateApi | None = None
        self._members: Members | None = None
        self._journal: Journal | None = None
        self._pauses: dict[str, Pause] = {}  # the last order about each route
        self._calls = HostCalls()
        self._zygote: Zygote | None = None
        self._broker: Broker | None = None
        self._streams: Streams | None = None
        self._inboxes: Inboxes | None = None
        self._version = Version()
        self._runs: dict[str, _Run] = {}
        self._graphs: GraphKeeper | None = None
        self._shell = ShellPools()
        self._manifests: dict[Program, Manifest] = {}  # of the programs of nodes that were loaded
        self._silent: set[str] = set()  # routes whose input has not been heard of for too long
        self._blocked: dict[str, str | None] = {}  # why a route cannot go on, to be said once
        self._denied = DeniedActions(config.app, telemetry.readiness)
        self._watching: list[asyncio.Task[None]] = []

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
        # A route that cannot have plain Python says so itself, and keeps no other from it.
        await self._compile(self._config, self._config.routes.values())
        self._broker = await Broker.connect(
            connect_options(self._config.nats),
            name=f"processor {self._config.app}",
            on_connected=self._connected,
            on_denied=self._denied.note,
            wait=wait,
        )
        is_default = "" if "url" in self._config.nats.model_fields_set else "; nats.url is not set"
        log.info("connected to %s%s", self._broker.server, is_default)
        self._streams = Streams(self._broker, self._config)
        await self._streams.prepare()
        if self._config.has_engine:
            await prepare_work_queue(self._broker, self._config)
        self._members = Members(
            self._broker, self._config.app, self._owner, self._reassign, self._blocks, lambda: self._version
        )
        self._inboxes = Inboxes(self._broker, self._streams, self._members, self._owner, self._telemetry)
        self._tell_version()
        await self._members.start(list(self._config.routes))
        self._journal = Journal(self._broker, self._config)
        self._note_policies({})
        if self._config.engine is not None:
            is_first = partial(self._members.is_first, "=graphs")
            self._graphs = GraphKeeper(
                self._broker, self._zygote, self._config, self._telemetry, self._inboxes, is_first
            )
            await self._graphs.start(self._manifests)
        self._pauses = await Control(self._broker, self._config.app).pauses()
        for route in self._config.routes.values():
            self._start_route(route)
        streams = StreamWatch(self._broker, self._streams, self._running)
        retention = RetentionWatch(
            self._broker,
            self._streams,
            self._telemetry,
            lambda: [run.route for run in self._runs.values()],
            self._oldest_unread,
            self._runs_here,
        )
        copies = CopyWatch(self._broker, self._streams, self._telemetry, self._restart_all)
        lag = LagWatch(self._broker, self._telemetry)
        watches: dict[str, Callable[[], Awaitable[None]]] = {
            "watch-routes": self._watch,
            "watch-app": self._watch_app,
            "watch-audit": self._journal.run,
            "watch-seals": Notary(
                self._broker, lambda: self._config, self._telemetry, partial(self._members.is_first, "=seal")
            ).run,
            "watch-policies": self._watch_policies,
            "watch-lag": partial(lag.run, self._runs),
            "watch-streams": partial(streams.run, self._follow_streams),
            "watch-retention": retention.watch_inputs,
            "watch-storage": retention.watch_storage,
            "watch-copies": partial(
                copies.run, lambda: {name: run.route for name, run in self._runs.items()}
            ),
            "watch-schedules": partial(self._inboxes.watch_schedules, self._config.app),
            **(self._graphs.watches if self._graphs is not None else {}),
        }
        self._watching = [
            asyncio.create_task(supervised(name, watch), name=name) for name, watch in watches.items()
        ]
        if self._config.control == "on":
            self._api = OperateApi(self._broker, self._config, self._owner)
            await self._api.start()
        self._telemetry.readiness.clear("start")

    async def stop(self) -> bool:
        """Stop every route and close everything; whether all that was taken up was settled in time."""
        self._telemetry.readiness.block("stop", "the service is stopping")
        if self._api is not None:
            await self._api.stop()
        is_clean = await self._stop_routes(list(self._runs))
        if self._journal is not None:
            await self._journal.settle()
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._graphs is not None:
            await self._graphs.stop()
        if self._members is not None:
            await self._members.stop()
        if self._broker is not None:
            await self._broker.close()
        if self._zygote is not None:
            await self._zygote.close()
        await self._shell.close()
        await self._calls.close()
        return is_clean

    async def reload(self, config: Config, *, may_remove: bool = False) -> list[str]:
        """Run `config` instead; the names of the routes that were started again. What stops is logged first.

        Raises Faults for a Runnable that does not compile, and ProcessorError E106 for changes that need a
        restart, and E359 for a configuration without routes that run now, unless it `may_remove` them; then
        everything runs on as it was.
        """
        config = _with_graphs(config)
        fixed = ("app", "nats", "sandbox", "http", "control", "audit", "engine_keys", "has_engine")
        moved = [name for name in fixed if getattr(config, name) != getattr(self._config, name)]
        if moved:
            raise ProcessorError(
                "E106",
                f"{', '.join(moved)} changed, which a reload cannot apply",
                remedy="Restart the processor, or change it back; everything else was left as it was too.",
            )
        gone = [name for name in self._runs if name not in config.routes]
        if gone and not may_remove:
            raise ProcessorError(
                "E359",
                f"{_named(gone)} would be removed, of {len(self._runs)} routes",
                remedy="If that is meant, restart the processor, or run it with --allow-removal; a file that"
                " was cut off looks the same.",
            )
        changed = [
            name
            for name, route in config.routes.items()
            if route != self._config.routes.get(name)  # its program counts, too
            or self._runs[name].is_refused  # what was missing may be installed by now
        ]
        try:
            refused = await self._compile(config, [config.routes[name] for name in changed])
            if refused:
                raise Faults([language_fault(config, route, err) for route, err in refused])
        except (Faults, ProcessorError):
            await self._retain(self._config)
            raise
        again = [name for name in changed if name in self._runs]
        if gone:
            log.warning("reloading: stops %s for good", _named(gone))
        if again:
            log.info("reloading: restarts %s", _named(again))
        await self._stop_routes([*again, *gone])
        for name in gone:
            self._telemetry.route(name).remove()
        before, self._config = self._config, config
        self._note_reload(before, changed, gone)
        self._tell_version()
        if self._api is not None:
            self._api.config = config
        await self._say_routes()
        if self._graphs is not None:
            await self._graphs.change(config, self._manifests)
        assert self._inboxes is not None
        self._inboxes.forget(gone)
        for name in changed:
            self._start_route(config.routes[name])
        await self._retain(config)
        return changed

    def _tell_version(self) -> None:
        """Let operators know which configuration and programs run from now on."""
        programs = {name: route.program.id for name, route in self._config.routes.items()}
        self._version = Version(fingerprint(self._config), programs)
        self._telemetry.configured(self._config.app, self._version.config)
        for name, program in programs.items():
            self._telemetry.route(name).runs(program)

    def _note(self, entry: AuditEntry) -> None:
        assert self._journal is not None
        entry.actor = f"processor:{self._owner}"
        self._journal.note(entry)

    def _note_route(self, run: _Run, operation: str) -> None:
        """Have the audit say that a route began or ended here, with what."""
        data = {"program": run.route.program.id, "of": run.route.partitions}
        self._note(
            AuditEntry(
                "route",
                route=run.route.name,
                operation=operation,
                target=f"partitions {_spans(run.share)}",
                policy=run.route.policy.id,
                details={"data": data},
            )
        )

    def _note_reload(self, before: Config, changed: Sequence[str], gone: Sequence[str]) -> None:
        assert self._journal is not None
        if not self._journal.is_on:
            self._journal.config = self._config
        data = {"before": fingerprint(before), "changed": changed, "gone": gone}
        target = f"configuration {fingerprint(self._config)}"
        self._note(AuditEntry("route", operation="reload", target=target, details={"data": data}))
        self._note_policies(before.routes)
        self._journal.config = self._config  # that an audit ended is its last entry

    def _note_policies(self, before: Mapping[str, Route]) -> None:
        """Have the audit say which policies are in force from now on, where they were others before."""
        changes: dict[tuple[str, str], list[Route]] = {}
        for name, route in self._config.routes.items():
            old = before[name].policy.id if name in before else ""
            if old != route.policy.id:
                changes.setdefault((old, route.policy.id), []).append(route)
        for (old, new), routes in changes.items():
            files = ", ".join(policy.file for policy in routes[0].policy.policies)
            data = {"before": old, "routes": [route.name for route in routes]}
            self._note(
                AuditEntry("policy", operation="load", target=files, policy=new, details={"data": data})
            )

    def _connected(self, is_connected: bool) -> None:
        self._telemetry.connected(is_connected)
        if is_connected:
            self._telemetry.readiness.clear("nats")
            self._denied.clear()
        else:
            self._telemetry.readiness.block("nats", "the NATS server cannot be reached")

    async def _compile(self, config: Config, routes: Iterable[Route]) -> list[tuple[Route, LanguageError]]:
        """Load every program of these routes once; returns those without their plain Python, and why.

        Raises Faults with all that is wrong with the others, and with the secrets of nodes of `config`, and
        GuestError E502.
        """
        routes = list(routes)
        first: dict[tuple[Program, Limits], Route] = {}
        for route in routes:
            for loaded in _programs(route):
                first.setdefault(loaded, route)
        compiling = asyncio.Semaphore(_COMPILED_AT_ONCE)
        loads = [self._load(route, *loaded, compiling) for loaded, route in first.items()]
        errors = dict(zip(first, await asyncio.gather(*loads, return_exceptions=True), strict=True))
        faults = [fault for err in errors.values() if isinstance(err, Faults) for fault in err.faults]
        for group in config.groups.values():
            faults += misfits(group, self._manifests.get(group.program, {}))
        assert self._zygote is not None
        self._calls.toolbox.borrow(self._zygote)
        tools = [tool for route in routes for tool in route.reach.tools]
        unusable = await self._calls.toolbox.unusable(tools)
        # Where wasmtime is missing, the route says so itself: another processor may have it.
        faults += [tool_fault(self._config, *each) for each in unusable.items() if each[1].code != "E507"]
        if faults:
            raise Faults(list(dict.fromkeys(faults)))
        for err in errors.values():
            if err is not None and not isinstance(err, LanguageError):
                raise err
        refusals = [(route, errors[loaded]) for route in routes for loaded in _programs(route)]
        return [(route, err) for route, err in refusals if isinstance(err, LanguageError)]

    async def _load(
        self, route: Route, program: Program, limits: Limits, compiling: asyncio.Semaphore
    ) -> None:
        assert self._zygote is not None
        async with compiling:
            told = await self._zygote.prepare(program)
            if program.language == "python":
                log.info("sandbox %s", told, extra={"route": route.name})
            guest = await self._zygote.spawn(program, limits, capabilities=self._calls.signatures)
            self._manifests[program] = guest.manifest
            await guest.close()

    async def _retain(self, config: Config) -> None:
        """End the processes for packages that no route of this configuration needs."""
        assert self._zygote is not None
        programs = {program for route in config.routes.values() for program, _ in _programs(route)}
        self._manifests = {program: told for program, told in self._manifests.items() if program in programs}
        for route in config.routes.values():
            programs |= {tool.program for tool in route.reach.tools if isinstance(tool, FunctionTool)}
        await self._zygote.retain(programs)

    # routes

    def _start_route(self, route: Route) -> None:
        telemetry = self._telemetry.route(route.name)
        assert self._broker is not None
        mandate = replace(
            Mandate.of(route),
            ledger=AppLedger(self._broker, route.app),
            holder=f"{self._owner}/{route.name}/{secrets.token_hex(3)}",
            hears=telemetry,
            is_waited_for=True,
        )
        hears = (telemetry.called, telemetry.decided, telemetry.tool_took, telemetry.inferred)
        run = _Run(route, self._calls.for_route(route.reach, mandate, *hears))
        self._telemetry.readiness.block(f"route {route.name}", _STARTING)
        run.task = asyncio.create_task(self._keep(run), name=f"route-{route.name}")
        self._runs[route.name] = run
        assert self._inboxes is not None
        self._inboxes.start(route, is_paused=self._pauses.get(route.name, UNSAID).is_paused)

    async def _stop_routes(self, names: list[str]) -> bool:
        runs = [self._runs.pop(name) for name in names]
        for run in runs:
            run.is_stopping = True
            run.is_outdated.set()
            if run.lanes is not None:
                run.lanes.stop()
            elif run.task is not None:
                run.task.cancel()
        filling = self._inboxes.stop(names) if self._inboxes is not None else set()
        tasks = {run.task for run in runs if run.task is not None} | filling
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
        await asyncio.gather(*(run.governor.close() for run in runs))
        for name in names:
            for what in ("route", "input", "inbox", "copy"):
                self._telemetry.readiness.clear(f"{what} {name}")
        return not late

    def _reassign(self) -> None:
        """The members have changed: stop the workers whose partitions now belong to another processor."""
        assert self._members is not None
        assert self._inboxes is not None
        self._inboxes.reassign()
        for name, run in self._runs.items():
            share = self._members.share(name, run.route.partitions, whole=run.is_exclusive)
            if share != run.share:
                run.restart()

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
                run.governor.connections.files.open()
                await self._calls.toolbox.prepare(run.route.reach.tools)
                source, outlets = await self._prepare(run.route)
                # Only one may read a stream that deletes what was read.
                run.is_exclusive = source["config"].get("retention", "limits") != "limits"
                run.share = self._members.share(name, run.route.partitions, whole=run.is_exclusive)
                if not run.share:
                    self._route_blocked(name, None)
                    log.info("others run all of the route", extra={"route": name})
                    run.is_elsewhere = True
                    await run.is_outdated.wait()
                    continue
                run.lanes = await self._lanes(run, source, outlets)
                await self._take_part(run, is_in=True)
                if run.is_stopping or run.is_outdated.is_set():
                    run.lanes.stop()
                self._route_blocked(name, None)
                part = f"{len(run.share)} of {run.route.partitions} partitions"
                part += f", {len(run.lanes)} at a time" if len(run.lanes) > 1 else ""
                log.info("route started with %s", part, extra={"route": name})
                self._note_route(run, "start")
                try:
                    await run.lanes.run()
                finally:
                    self._note_route(run, "stop")
                log.info("route stopped", extra={"route": name})
                pause_s = _FIRST_RETRY_S
                continue
            except Edited as err:
                log.debug("%s", err, extra={"route": name})
                run.holds = err.partitions
                continue
            except Fenced as err:
                # Views of who is there differ for a moment; if they stay apart, an operator should know.
                run.fenced = run.fenced + 1 if time.monotonic() - began_s < _FENCED_SOON_S else 1
                why = str(err) if run.fenced > _FENCED_MAX else None
                log.debug("%s", err, extra={"route": name})
                pause_s = _FENCED_PAUSE_S
            except LanguageError as err:
                run.is_refused = True
                await self._take_part(run, is_in=False)
                self._route_blocked(name, str(language_fault(self._config, run.route, err)))
                return
            except (ProcessorError, Faults, Unknown, Again, ApiError) as err:
                why, pause_s = str(err), min(2 * pause_s, _RETRY_S)
                if isinstance(err, ProcessorError) and ERRORS[err.code].is_local:
                    await self._take_part(run, is_in=False)
            except Exception as err:
                # A fault of ours must stop neither the other routes nor this one for good.
                log.exception("an unexpected error in route %s; please report it", name)
                why, pause_s = f"an unexpected error: {type(err).__name__}", _RETRY_S
            finally:
                run.lanes, run.is_elsewhere = None, False
            self._route_blocked(name, why)
            await asyncio.sleep(pause_s)

    async def _take_part(self, run: _Run, *, is_in: bool) -> None:
        """Let the others know whether a route can run here at all, so that none waits for us."""
        if run.is_in != is_in:
            run.is_in = is_in
            await self._say_routes()

    async def _say_routes(self) -> None:
        assert self._members is not None
        runs = self._runs
        await self._members.change([n for n in self._config.routes if n not in runs or runs[n].is_in])

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
            self._denied.forget_old()
            before = self._silent
            self._silent = self._silent_inputs()
            for name in self._silent:
                self._telemetry.readiness.block(f"input {name}", "the input stream is silent")
            for name in before - self._silent:
                self._telemetry.readiness.clear(f"input {name}")

    def _silent_inputs(self) -> set[str]:
        if self._broker is None or not self._broker.silent:  # nearly always, and for all routes at once
            return set()
        return {name for name, run in self._runs.items() if self._is_silent(name, run)}

    def _is_silent(self, name: str, run: _Run) -> bool:
        is_silent = run.lanes is not None and run.lanes.is_silent
        return is_silent or (self._inboxes is not None and self._inboxes.is_silent(name))

    def _running(self) -> dict[str, Route]:
        return {name: run.route for name, run in self._runs.items() if run.lanes is not None}

    def _runs_here(self, route: str) -> bool:
        run = self._runs.get(route)
        return run is not None and run.lanes is not None

    def _oldest_unread(self, route: str) -> tuple[int, float] | None:
        """The sequence and the time of the first message that waits in the route's input, if one does."""
        run = self._runs.get(route)
        if run is None:  # a reload has just taken it out
            return None
        oldest = self._inboxes.oldest(route) if self._inboxes and run.route.input.repartition else None
        if run.lanes is not None and not run.route.input.is_own:
            oldest = run.lanes.oldest
        return None if oldest is None else (oldest.sequence, oldest.timestamp_s)

    def _follow_streams(self, route: str, why: str) -> None:
        """The streams of a route are not what they were: it follows them, or says why it cannot."""
        run = self._runs.get(route)
        if run is not None and run.lanes is not None:
            log.warning("%s; the route restarts", why.rstrip("."), extra={"route": route})
            run.restart()
            assert self._inboxes is not None
            self._inboxes.change(route, is_paused=False)

    def _restart_all(self) -> None:
        assert self._inboxes is not None
        for name, run in self._runs.items():
            run.restart()
            self._inboxes.change(name, is_paused=self._pauses.get(name, UNSAID).is_paused)

    def _blocks(self) -> dict[str, StopReason]:
        """What stops this processor and its routes, for those who ask."""
        readiness = self._telemetry.readiness
        return {
            reason: StopReason(why, timestamp(datetime.fromtimestamp(readiness.since_s[reason], UTC)))
            for reason, why in readiness.blocks.items()
        }

    async def _watch_policies(self) -> None:
        """Take note of lines of policies whose time a person lets begin again."""
        assert self._broker is not None
        while True:
            await asyncio.sleep(_RENEWED_S)
            for run in [run for run in self._runs.values() if run.route.policy.expiring and run.lanes]:
                now_us = time.time_ns() // 1000
                seen = await first_seen(self._broker, run.route.app, run.route.policy.expiring, now_us)
                run.governor.see(seen)

    async def _watch_app(self) -> None:
        """Follow the pauses of routes, and hand messages that become due to their workers, while we run."""
        assert self._broker is not None
        name, created = app_stream(self._config.app), ""
        while True:
            readers: list[Reader] = []
            following: list[asyncio.Task[None]] = []
            try:
                info = await self._broker.stream(name)
                if info is None:  # one answer is not enough: a cluster that starts may not know yet
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    info = await self._broker.stream(name)
                if info is None or created not in ("", info["created"]):
                    info = await self._recreate_app_stream()
                if not created:
                    log.info("%s", durability(info))
                created = info["created"]
                # A reader for each: with several filters in one consumer, what is taken away message by
                # message, as what was due is, costs the server 30 times as much (nats-server 2.15).
                for kind, subject in (
                    ("due", every(self._config.app, "due")),
                    ("ctl", RouteSubjects(self._config.app, "*").pause),
                ):
                    reader = Reader(
                        self._broker,
                        name,
                        [subject],
                        created=info["created"],
                        retention="limits",
                        name=f"{name}-{kind}",
                        start_sequence=info["state"]["last_seq"] + 1,
                        prefetch=500,
                    )
                    readers.append(reader)
                    await reader.open()
                # Pauses that were ordered, and retries that became due, while nothing watched.
                for route, pause in (await Control(self._broker, self._config.app).pauses()).items():
                    self._pause(route, pause)
                for run in self._runs.values():
                    if run.lanes is not None:
                        run.lanes.check_due()
                following = [asyncio.create_task(self._follow(r), name="follow-app") for r in readers]
                ended, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
                ended.pop().result()
            except (ProcessorError, Unknown, Again, ApiError) as err:
                log.debug("the app's stream cannot be watched: %s", err)
            except Exception:  # of ours; pauses and redrives must be followed again
                log.exception("an unexpected error while watching the app's stream; please report it")
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)
                for reader in readers:
                    await reader.close()
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, reader: Reader) -> None:
        while True:
            for delivery in await reader.take(500, 8 << 20):
                self._hand_over(delivery)

    async def _recreate_app_stream(self) -> dict[str, Any]:
        """Go on with an empty stream in place of the app's, which was deleted; the new one.

        Every owner is fenced by it: there is no position that its next commit could follow. Raises what makes
        it impossible for now.
        """
        assert self._broker is not None
        assert self._streams is not None
        name = app_stream(self._config.app)
        gone = f"E406 stream {name} was deleted, and positions, contexts, dead letters and retries with it"
        if "app" not in self._telemetry.readiness.blocks:
            log.error("%s", gone, extra={"code": "E406"})
        self._telemetry.readiness.block("app", f"{gone}; it cannot be recreated yet")
        await self._streams.prepare(is_known=True)
        info = await self._broker.stream(name)
        if info is None:
            raise Again(f"stream {name} is gone again")
        paused = {route: pause for route, pause in self._pauses.items() if pause.is_paused}
        await Control(self._broker, self._config.app).repeat(paused)
        assert self._inboxes is not None
        for route, run in self._runs.items():
            run.restart()
            self._inboxes.change(route, is_paused=route in paused)
        log.warning("stream %s was recreated: every route reads again what its input still holds", name)
        self._telemetry.readiness.clear("app")
        return info

    def _pause(self, route: str, pause: Pause) -> None:
        run, before = self._runs.get(route), self._pauses.get(route, UNSAID)
        self._pauses[route] = pause
        self._telemetry.route(route).paused(pause.is_paused)
        if run is not None and (pause.is_paused, pause.reset) != (before.is_paused, before.reset):
            run.restart()
            assert self._inboxes is not None
            self._inboxes.change(route, is_paused=pause.is_paused)
        elif run is not None and run.lanes is not None and run.lanes.is_overtaken(pause.edited):
            run.lanes.stop()

    def _hand_over(self, delivery: Delivery) -> None:
        kind, route, partition, _ = SubjectParts.of(delivery.subject)
        if kind == "ctl":
            self._pause(route, read_pause(delivery.payload))
            return
        stored = Stored(delivery.subject, delivery.sequence, delivery.payload, delivery.headers)
        kept, run = parked.read(stored), self._runs.get(route)
        if kept is not None and partition is not None and run is not None and run.lanes is not None:
            run.lanes.accept_due(kept, partition)

    async def _prepare(self, route: Route) -> tuple[dict[str, Any], dict[str, Outlet]]:
        """The stream that the route reads, and how its outputs reach their subjects."""
        assert self._broker is not None
        assert self._streams is not None
        assert self._zygote is not None
        for program, _ in _programs(route):
            await self._zygote.prepare(program)
        if route.pool is not None and route.pool.is_shell:
            await self._shell.prepare()
        await self._broker.connected()
        await prepare_audit(self._broker, self._config)
        return await self._streams.source(route), await self._streams.outlets(route)

    async def _lanes(self, run: _Run, source: dict[str, Any], outlets: dict[str, Outlet]) -> Lanes:
        route, governor = run.route, run.governor
        assert self._broker is not None
        assert self._zygote is not None
        assert self._members is not None
        broker = self._broker
        blocked = partial(self._route_blocked, route.name)
        store = ContextStore(
            broker,
            route.app,
            route.name,
            route.partitions,
            self._owner,
            run.share,
            refused=blocked,
            history_s=route.history_keep_s,
            key="" if route.input.is_own else str(route.key),
            audit=route.audit,
        )
        state = source["state"]
        is_own = route.input.is_own  # then the hop begins where `start` says
        start_after = state["last_seq"] if route.input.start == "new" and not is_own else 0
        name = source["config"]["name"]
        governor.see(await first_seen(broker, route.app, route.policy.expiring, time.time_ns() // 1000))
        start = await store.claim(
            InputStream(name, source["created"], state["last_seq"]),
            start_after,
            self._members.is_there,
            holds=run.holds,
            settle_key=partial(KeyChange(broker, route, source).settle, self._members.is_there),
        )
        run.holds = ()
        self._telemetry.route(route.name).audited(store.claimed_entries)
        if not is_own:
            warn_of_gap(source, start, route.name)
        # One pattern for a whole route: a consumer with many filters costs the server more.
        is_whole = route.input.is_inner and len(run.share) == route.partitions
        parts = ["*"] if is_whole else run.share
        reader = Reader(
            broker,
            name,
            [inbox(part) for inbox in inboxes(route) for part in parts] if is_own else route.input.subjects,
            created=source["created"],
            retention=source["config"].get("retention", "limits"),
            name=f"{app_stream(route.app)}-{route.name}",
            start_sequence=start,
            prefetch=max(200, min(2 * route.batch.max_messages * route.concurrency, 2000)),
            read=(parked.sent if route.input.is_inner else parked.arrived) if is_own else None,
        )
        await reader.open()
        telemetry = self._telemetry.route(route.name)
        shared = Shared.of(route, run.survived, governor)
        codec = codec_for if self._graphs is None else self._graphs.codec
        spawn: Callable[..., Awaitable[BatchRunner]]
        if self._graphs is not None and route.engine is not None:
            spawn = partial(self._graphs.spawn, route)
        elif route.pool is not None and route.pool.steps is not None and route.pool.is_shell:
            gone = {} if self._graphs is None else self._graphs.gone
            spawn = partial(self._shell.spawn, route.pool.steps, gone)
        else:
            spawn = partial(
                self._zygote.spawn,
                route.program,
                route.limits,
                capabilities=governor.signatures,
                secrets=governor.secrets,
                emits=route.emits,
                heap=governor.heap,
            )
            if route.pool is not None:
                spawn = partial(pool_guest, spawn, route.pool.steps)
        return Lanes(route, broker, reader, store, spawn, outlets, telemetry, blocked, shared, codec)


def _with_graphs(config: Config) -> Config:
    """A configuration with the routes that its graphs need."""
    return config.with_routes({**config.routes, **graph_routes(config)})


def _programs(route: Route) -> list[tuple[Program, Limits]]:
    """What guests of a route are loaded with: one program; those of its nodes for the engine; none for shell
    steps.
    """
    if route.pool is not None and route.pool.is_shell:
        return []
    if route.engine is None:
        return [(route.program, route.limits)]
    return [(group.program, group.limits) for group in route.groups.values() if not group.is_pool]


async def supervised(name: str, watch: Callable[[], Awaitable[None]]) -> None:
    """Keep a watch going until cancelled: one that fails begins again. The log has the same error once."""
    said = ""
    while True:
        try:
            await watch()
        except Exception as err:
            # The supervisor's wall: what one odd record does to a watch must not end it for all others.
            if repr(err) != said:
                log.exception("an unexpected error in %s; please report it", name)
            said = repr(err)
        await asyncio.sleep(_RETRY_S)


def _spans(numbers: Sequence[int]) -> str:
    """Ascending numbers in few characters: `0-3,7`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, span)) for span in found)


def _named(routes: Sequence[str]) -> str:
    """Routes by name, as many as fit into a sentence."""
    more = f" and {len(routes) - _NAMED_MAX} more" if len(routes) > _NAMED_MAX else ""
    return f"{'route' if len(routes) == 1 else 'routes'} {', '.join(routes[:_NAMED_MAX])}{more}"


@dataclass(slots=True)
class _Run:
    """A route and what runs it."""

    route: Route
    governor: Governor
    task: asyncio.Task[None] | None = None
    lanes: Lanes | None = None
    is_stopping: bool = False
    share: list[int] = field(default_factory=list)  # partitions that it has here, or is to have
    is_outdated: asyncio.Event = field(default_factory=asyncio.Event)
    is_exclusive: bool = False  # one processor has all partitions, or none
    fenced: int = 0  # times in a row, shortly after the start
    survived: dict[int, int] = field(default_factory=dict)  # see Shared
    holds: Collection[int] = ()  # partitions where edits wait for our next commit: one has cost us work
    is_in: bool = True  # the others count with us for it
    is_elsewhere: bool = False  # others run all of it
    is_refused: bool = False  # plain Python is not available for it

    def restart(self) -> None:
        """Stop what runs, and start the route again with the present streams, members and pauses."""
        self.is_outdated.set()
        if self.lanes is not None:
            self.lanes.stop()
