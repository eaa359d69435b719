"""`check`: every fault of a configuration before it runs, and what it will do when it does.

Without `--server` nothing but files and a jail is used. With it the server is asked, and nothing is created
or changed there: what a start would find, make and need is reported, and each thing that would stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processor.audit import CONTROL
from processor.capability.registry import HostCalls
from processor.capability.toolbox import Toolbox
from processor.cli.connection import connected
from processor.cli.graph_files import checked, group_faults
from processor.cli.terminal import (
    EXIT_BROKER,
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_OK,
    Screen,
    complain,
    exit_code_of,
    name_pages,
    warn,
    with_remedy,
)
from processor.config import (
    BRIEF,
    Config,
    brief,
    effective_yaml,
    fingerprint,
    guarantee,
    json_schema,
    language_fault,
    load,
    misspelled_inputs,
    notable,
    reachable,
    readable_programs,
    shell_fault,
    tool_fault,
)
from processor.context import reading
from processor.context.position import InputStream, Position, no_context
from processor.context.subjects import (
    WHOLE,
    PositionKind,
    RouteSubjects,
    app_stream,
    audit_subject,
    chain_record,
    committed_subject,
)
from processor.delivery.audit_copy import audit_stream_config, check_audit_stream, keeps_audit
from processor.delivery.effects import Outlet
from processor.delivery.holdings import Holding, Holdings
from processor.delivery.key_change import KeyChange
from processor.delivery.repartition import check_server
from processor.delivery.streams import (
    UNBOUNDED,
    Streams,
    app_stream_config,
    bounds,
    check_acknowledged,
    check_app_stream,
    durability,
    free_name,
    is_chunks,
    limits,
    no_input,
    outlet_of,
    output_limits,
    topics,
)
from processor.errors import BrokerError, Fault, Faults, LanguageError, ProcessorError, page_of
from processor.graphs.definition import GraphDefinition
from processor.jetstream import Again, ApiError, Broker, Unknown, check_end, expected_refusal
from processor.model import Limits, Program
from processor.operate.control import Control
from processor.operate.verbs import VERBS
from processor.route import NodeGroup, Route, StreamLimits
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.jail import LEVELS, JailReport
from processor.sandbox.shell import ShellCells
from processor.sandbox.values import TOMBSTONE, decode
from processor.subject import api_subject, matches
from processor.telemetry import configure_logging

_NOTABLE_MAX = 6
_CONTEXTS_MAX = 10_000  # of all routes; of each at least _CONTEXTS_LEAST
_CONTEXTS_LEAST = 100
_CONTEXTS_S = 20.0  # of one route
_SHOWN_MAX = 5


def print_schema() -> int:
    """Print the JSON Schema of configurations."""
    Screen(None).document(json_schema())
    return EXIT_OK


def check(path: Path, *, with_server: bool, has_secrets: bool, is_full: bool, format: str) -> int:
    """Check the configuration at `path`, say what was found, and return the exit code."""
    screen = Screen(format)
    configure_logging("human", "warning")
    try:
        config = _loaded(path, has_secrets=has_secrets)
        jail, warnings = asyncio.run(_compiled(config))
    except Faults as err:
        if screen.is_json:
            screen.document({"faults": [_fault(fault) for fault in err.faults]})
        else:
            complain(err)
            name_pages(*map(str, err.faults))
        return EXIT_CONFIG
    server, error = None, None
    if with_server:
        try:
            server = asyncio.run(_look(config))
        except ProcessorError as err:
            error = err
    weak = LEVELS.index(jail.level) < LEVELS.index(config.sandbox.min_level)
    problems = [with_remedy(error)] if error else server.all_problems() if server else []
    if weak:
        problems.append(
            f"E501 the jail reaches {jail.level}, below sandbox.min_level {config.sandbox.min_level}."
        )
    if screen.is_json:
        found = {"warnings": [_fault(warning) for warning in warnings]}
        screen.document(_document(config, jail, server, problems) | found)
    else:
        (_print if is_full else _print_brief)(screen, config, jail, server)
        warn(warnings)
        for problem in problems:
            complain(problem)
        name_pages(*problems)
    if error is not None:
        return exit_code_of(error)
    return EXIT_BROKER if server and server.all_problems() else EXIT_FAILED if weak else EXIT_OK


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "file": fault.file,
        "line": fault.line,
        "column": fault.column,
        "code": fault.code,
        "text": fault.text,
        "page": page_of(fault.code),
    }


def _loaded(path: Path, *, has_secrets: bool) -> Config:
    """The configuration. Raises Faults with its own and, where there are any, those of its Runnables too."""
    try:
        return load(path, needs_login=has_secrets, needs_secrets=has_secrets)
    except Faults as err:
        try:
            programs = readable_programs(path)
        except Faults:  # there is nothing to read them from
            raise err from None
        _, results = asyncio.run(_spawned([(program, Limits()) for program in programs]))
        found = [fault for result in results if isinstance(result, Faults) for fault in result.faults]
        raise Faults(list(dict.fromkeys([*err.faults, *found]))) from None


async def _spawned(
    programs: Iterable[tuple[Program, Limits]],
) -> tuple[JailReport, list[Guest | BaseException]]:
    """The jail's report, and for each program its guest, which has ended, or why it could not start."""
    zygote = await Zygote.start()
    try:
        offered = HostCalls().signatures
        spawns = [zygote.spawn(program, limits, capabilities=offered) for program, limits in programs]
        return zygote.report, await asyncio.gather(*spawns, return_exceptions=True)
    finally:
        await zygote.close()


async def _compiled(config: Config) -> tuple[JailReport, list[Fault]]:
    """The jail's report, after every Runnable and node was loaded in it, and what may be wrong with them.

    Raises Faults with those of all of them.
    """
    groups = [group for group in config.groups.values() if not group.is_shell]
    owners: list[Route | NodeGroup] = [*config.routes.values(), *groups]
    report, results = await _spawned((owner.program, owner.limits) for owner in owners)
    faults = [*await tool_faults(config), *await _shell_faults(config)]
    warnings: list[Fault] = []
    manifests = {}
    for owner, result in zip(owners, results, strict=True):
        if isinstance(result, Guest):
            warnings += result.warnings
            if isinstance(owner, NodeGroup):
                manifests[owner.name] = result.manifest
        elif isinstance(owner, NodeGroup):
            faults += group_faults(owner, result)
        elif isinstance(result, Faults):
            faults += result.faults
        elif isinstance(result, LanguageError):
            faults.append(language_fault(config, owner, result))
        else:
            raise result
    if not faults:
        findings = checked(config, manifests)
        faults += findings.faults
        warnings += findings.absent
    if faults:
        # Two routes may share a Runnable.
        raise Faults(list(dict.fromkeys(faults)))
    return report, [*misspelled_inputs(config), *dict.fromkeys(warnings)]


async def _shell_faults(config: Config) -> list[Fault]:
    """Why the shell steps of its recipes cannot run here."""
    names = [group.namespace for group in config.groups.values() if group.is_shell]
    if not names:
        return []
    try:
        cells = await ShellCells.start()
    except ProcessorError as err:
        return [shell_fault(config, name, err) for name in names]
    await cells.close()
    return []


async def tool_faults(config: Config) -> list[Fault]:
    """Why tools of the routes, and of groups of nodes, cannot be called here."""
    toolbox = Toolbox()
    try:
        owners: list[Route | NodeGroup] = [*config.routes.values(), *config.groups.values()]
        tools = [tool for owner in owners for tool in owner.reach.tools]
        return [tool_fault(config, name, err) for name, err in (await toolbox.unusable(tools)).items()]
    finally:
        await toolbox.close()


@dataclass(slots=True)
class _Findings:
    """What one route would find on the server: sentences, and those that would stop it."""

    input: str = ""
    contexts: str = ""
    outlets: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Server:
    version: str
    address: str
    app_stream: str
    routes: dict[str, _Findings]
    problems: list[str]

    def all_problems(self) -> list[str]:
        return [*self.problems, *(p for findings in self.routes.values() for p in findings.problems)]


async def _look(config: Config) -> _Server:
    async with connected(config.nats, f"processor check {config.app}") as broker:
        permissions = await broker.permissions()
        name = app_stream(config.app)
        info = await broker.stream(name)
        needs = _Needs(permissions or {})
        problems: list[str] = []
        said = f"{name} will be created"
        if info is None:
            problems += needs.missing(
                "publish", [f"$JS.API.STREAM.CREATE.{name}"], "to create the app's stream"
            )
        else:
            said = f"{name} holds {info['state']['messages']:,} messages; {durability(info)}"
            try:
                check_app_stream(info["config"], app_stream_config(config))
            except BrokerError as err:
                problems.append(with_remedy(err))
        if keeps_audit(config):
            problems += await _audit_problems(broker, config, needs)
        problems += needs.missing("publish", _app_subjects(config), "to commit and to read contexts")
        members = [f"ctl.{config.app}.members"]
        problems += needs.missing("publish", members, "to share routes with other processors")
        problems += needs.missing("subscribe", ["_INBOX.x.y", *members], "to receive anything at all")
        if config.control == "on":
            service = f"processor-{config.app}"
            asked = [f"$SRV.{verb}.{service}.x" for verb in ("PING", "INFO", "STATS")]
            asked += [api_subject(config.app, verb.name) for verb in VERBS]
            why = "to take control requests; or set `control: off`"
            problems += needs.missing("subscribe", asked, why)
            if not (permissions or {}).get("responses"):
                why = "to answer control requests; or set `allow_responses` for the user"
                problems += needs.missing("publish", ["_INBOX.x.y"], why)
        if permissions is None:
            said += "; the server does not say what this user may do, so permissions were not checked"
        holdings = Holdings(broker)
        routes = {
            route.name: await _findings(broker, holdings, config, route, needs)
            for route in config.routes.values()
        }
        return _Server(broker.server_version, broker.address, said, routes, problems)


async def _audit_problems(broker: Broker, config: Config, needs: _Needs) -> list[str]:
    """What keeps the audit from having its stream."""
    wanted = audit_stream_config(config)
    name = wanted["name"]
    asked = [f"$JS.API.STREAM.INFO.{name}", f"$JS.API.STREAM.MSG.GET.{name}", f"$JS.API.DIRECT.GET.{name}"]
    asked += [audit_subject(config.app, CONTROL), chain_record(config.app, CONTROL)]
    info = await broker.stream(name)
    if info is None:
        asked.append(f"$JS.API.STREAM.CREATE.{name}")
    problems = needs.missing("publish", asked, "to keep the audit")
    if info is not None:
        try:
            check_audit_stream(info["config"], wanted)
        except BrokerError as err:
            problems.append(with_remedy(err))
    return problems


def _app_subjects(config: Config) -> Iterator[str]:
    name = app_stream(config.app)
    for request in (
        "INFO",
        "STREAM.NAMES",
        f"STREAM.INFO.{name}",
        f"STREAM.MSG.GET.{name}",
        f"DIRECT.GET.{name}",
        f"CONSUMER.CREATE.{name}",
        *(
            f"CONSUMER.{verb}.{name}.{name}-{kind}-x"
            for verb in ("CREATE", "MSG.NEXT", "DELETE")
            for kind in ("due", "ctl")
        ),
    ):
        yield f"$JS.API.{request}"
    for route in config.routes:
        own = RouteSubjects(config.app, route)
        yield from (own.position(0), own.context(0, "1", WHOLE), own.dead_letter(0, 1), own.later(0, "1"))
        yield from (own.due(0, "1"), own.held(0, "1", 1), own.emit("1"), own.pause)


async def _findings(
    broker: Broker, holdings: Holdings, config: Config, route: Route, needs: _Needs
) -> _Findings:
    found = _Findings()
    try:
        await _look_at_input(broker, holdings, config, route, needs, found)
    except BrokerError as err:
        found.input = found.input or f"{', '.join(route.input.subjects)}, which cannot be read"
        found.problems.append(with_remedy(err))
    for pattern, is_durable in topics(route).items():
        await _look_at_outlet(broker, holdings, config, route, pattern, is_durable, needs, found)
    await _look_at_contexts(broker, route, max(_CONTEXTS_LEAST, _CONTEXTS_MAX // len(config.routes)), found)
    return found


async def _look_at_contexts(broker: Broker, route: Route, most: int, found: _Findings) -> None:
    """Name the positions (E421) and, of the first `most`, the contexts (E366) that cannot be read."""
    kinds: tuple[PositionKind, ...] = ("hop", "pos") if route.input.repartition else ("pos",)
    positions: list[str] = []
    contexts: list[str] = []
    looked_at, is_all = 0, False
    # Without permission to read them they are not known; that is a problem of its own.
    with contextlib.suppress(ApiError, Again, Unknown, BrokerError, TimeoutError):
        subjects = [RouteSubjects(route.app, route.name).position(kind=kind) for kind in kinds]
        for stored in await broker.last_of(app_stream(route.app), subjects):
            try:
                Position.read(stored)
            except BrokerError as err:
                positions.append(with_remedy(err))
        async with (
            asyncio.timeout(_CONTEXTS_S),
            contextlib.aclosing(reading.read(broker, route.app, route.name)) as contexts_read,
        ):
            try:
                async for key, items in contexts_read:
                    looked_at += 1
                    if not _is_readable(items):
                        contexts.append(f"E366 {no_context(key, route.name).text}.")
                    if looked_at == most:
                        break
                else:
                    is_all = True
            except BrokerError as err:
                if err.code != "E421":  # all that can be read was, and the positions are named above
                    raise
                is_all = True
    if looked_at:
        found.contexts = f"{looked_at:,} looked at" if is_all else f"the first {looked_at:,} looked at"
    for named in (positions, contexts):
        found.problems += named[:_SHOWN_MAX]
        if len(named) > _SHOWN_MAX:
            code, what = named[0].split()[0], "positions" if named is positions else "contexts"
            found.problems.append(f"{code} {len(named) - _SHOWN_MAX} more {what} cannot be read.")


def _is_readable(items: Mapping[str, bytes]) -> bool:
    try:
        for value in items.values():
            if value != TOMBSTONE:
                decode(value)
    except ValueError:
        return False
    return True


async def _look_at_input(
    broker: Broker, holdings: Holdings, config: Config, route: Route, needs: _Needs, found: _Findings
) -> None:
    if route.input.is_own:
        _look_at_inbox(broker, route, needs, found)
    if route.input.schedule:
        return
    subject = route.input.subjects[0]
    info = await holdings.input(route)
    # A route's stream serves every route that reads a subject of it.
    creators = [r for r in config.routes.values() if r.input.create and matches(r.input.subjects[0], subject)]
    reader = f"{app_stream(route.app)}-{route.name}"
    if info is not None:
        name = info["config"]["name"]
        retention = info["config"].get("retention", "limits")
        found.input = f"{subject} from stream {name} ({retention}, {info['state']['messages']:,} messages)"
        found.input += bounds(info["config"])
        await _check_position(broker, route, info)
        await _check_key(broker, route, info)
    elif creators:
        name = await free_name(broker, route.app, creators[0].input.subjects[0])
        create = creators[0].input.create or StreamLimits()
        made = bounds(limits(create.max_age_s, create.max_bytes))
        found.input = f"{subject} from stream {name}, which will be created{made}"
        found.problems += needs.missing(
            "publish", [f"$JS.API.STREAM.CREATE.{name}"], f"for route {route.name}"
        )
    else:
        found.input = f"{subject}, which no stream holds"
        await holdings.check_elsewhere(route)
        raise no_input(route)
    requests = (
        f"STREAM.INFO.{name}",
        f"CONSUMER.CREATE.{name}.{reader}-x",
        f"CONSUMER.MSG.NEXT.{name}.{reader}-x",
        f"CONSUMER.DELETE.{name}.{reader}-x",
    )
    wanted = [f"$JS.API.{request}" for request in requests]
    if info is not None and info["config"].get("retention", "limits") != "limits":
        wanted += [f"$JS.API.CONSUMER.LIST.{name}", f"$JS.API.CONSUMER.INFO.{name}.{reader}-x"]
        wanted += [f"$JS.ACK.{name}.{reader}-x.1.1.1.1.1"]
    missing = needs.missing("publish", wanted, f"for route {route.name} to read {name}")
    found.problems += missing
    is_limited = info is not None and (
        info["config"].get("retention") == "workqueue" or info["config"].get("max_consumers", -1) > 0
    )
    if info is not None and is_limited and not missing:
        consumers = await broker.consumers(name)
        if (refusal := expected_refusal(info, route.input.subjects, reader, consumers)) is not None:
            raise refusal


def _look_at_inbox(broker: Broker, route: Route, needs: _Needs, found: _Findings) -> None:
    own = app_stream(route.app)
    reader = f"{own}-{route.name}-x"
    subjects = RouteSubjects(route.app, route.name)
    wanted = [subjects.schedule, subjects.plan]
    if route.input.repartition:
        wanted = [subjects.position(0, kind="hop"), subjects.inbox(0)]
    requests = (f"CONSUMER.CREATE.{own}.{reader}", f"CONSUMER.MSG.NEXT.{own}.{reader}", f"STREAM.PURGE.{own}")
    wanted += [f"$JS.API.{request}" for request in requests]
    found.problems += needs.missing("publish", wanted, f"for route {route.name} to be given its messages")
    if route.input.schedule:
        found.input = f"{route.input.schedule.when}, a schedule that {own} keeps"
        try:
            check_server(route, broker)
        except BrokerError as err:
            found.problems.append(with_remedy(err))


async def _check_position(broker: Broker, route: Route, info: Mapping[str, Any]) -> None:
    """Raise BrokerError E418 where a position of the route is ahead of its input."""
    control = Control(broker, route.app)
    kind: PositionKind = "hop" if route.input.repartition else "pos"
    source = InputStream(info["config"]["name"], info["created"])
    # Without permission to read them, positions are not known; that is a problem of its own.
    with contextlib.suppress(ApiError, Again, Unknown):
        if source in await control.inputs(route.name, kind=kind):
            ahead = max(part.position for part in await control.parts(route.name, kind=kind))
            await check_end(
                broker, source.stream, source.created, ahead, f"the position of route {route.name}"
            )


async def _check_key(broker: Broker, route: Route, info: Mapping[str, Any]) -> None:
    """Raise BrokerError E410 where the route's `key` was changed while messages waited by the one before."""
    try:
        with contextlib.suppress(ApiError, Again, Unknown):
            await KeyChange(broker, route, info).check()
    except BrokerError as err:
        if err.code != "E421":  # each position that cannot be read is named with the contexts
            raise


async def _check_copies(
    broker: Broker, config: Config, pattern: str, way: Outlet, streams: Sequence[Holding]
) -> list[str]:
    """What is wrong where a stream has copied more of the app's stream than that holds (E419)."""
    asked = Streams(broker, config)
    for stream in [each.stream for each in streams if each.name == way.stream]:
        if (source := stream.source(config.app, pattern)) is not None:
            with contextlib.suppress(ApiError, Again, Unknown):
                copied = await asked.copied_if_permitted(stream.info, source)
                lost = None if copied is None else await asked.lost(stream.info, copied)
                return [] if lost is None else [str(lost)]
    return []


async def _look_at_outlet(
    broker: Broker,
    holdings: Holdings,
    config: Config,
    route: Route,
    pattern: str,
    is_durable: bool,
    needs: _Needs,
    found: _Findings,
) -> None:
    why = f"for route {route.name} to publish {pattern}"
    direct = [pattern.replace("*", "x").replace(">", "x")]
    if not is_durable:
        found.outlets[pattern] = "live, at most once; no stream keeps them"
        found.problems += needs.missing("publish", direct, why)
        return
    streams = await holdings.of([pattern])
    is_live = is_chunks(route, pattern)
    if not streams:
        created = await free_name(broker, route.app, pattern)
        how = "takes the chunks" if is_live else "copies committed outputs: exactly once"
        made = bounds(output_limits(route))
        found.outlets[pattern] = f"stream {created} will be created{made} and {how}"
        found.problems += needs.missing("publish", [f"$JS.API.STREAM.CREATE.{created}"], why)
    else:
        try:
            outlet = outlet_of(route, pattern, streams)
        except BrokerError as err:
            found.outlets[pattern] = "the app's own stream"
            found.problems.append(with_remedy(err))
            return
        ways = outlet.parts or {pattern: outlet}
        for part, way in ways.items():
            how, is_direct = _way(way, needs, streams, why)
            found.outlets[part] = f"stream {way.stream} {how}"
            if is_direct:
                try:
                    check_acknowledged(route, part, way, streams)
                except BrokerError as err:
                    found.problems.append(with_remedy(err))
            found.problems += await _check_copies(broker, config, part, way, streams)
            found.problems += needs.missing("publish", direct, why) if is_direct else []
        if outlet.parts:
            found.outlets[pattern] = "to any other subject: a dead letter, for no stream holds it (E417)"
    if is_live:
        found.problems += needs.missing("publish", direct, why)
    else:
        found.problems += needs.missing("publish", [committed_subject(route.app, direct[0])], why)


def _way(way: Outlet, needs: _Needs, streams: Sequence[Holding], why: str) -> tuple[str, bool]:
    """How one stream gets what is published, in words, and whether it is published there directly."""
    [config] = [each.info["config"] for each in streams if each.name == way.stream]
    limit = f"; those above {way.max_bytes} bytes become dead letters (E307)" if way.max_bytes else ""
    limit += (
        "; the stream has no limits: it grows until the server is full" if bounds(config) == UNBOUNDED else ""
    )
    if way.live:
        return f"takes the chunks{limit}", False
    if not way.foreign:
        return f"copies committed outputs: exactly once{limit}", False
    if config.get("mirror") or config.get("sealed") or config.get("allow_msg_schedules"):
        return f"cannot copy: published to it at least once, deduplicated{limit}", True
    if needs.missing("publish", [f"$JS.API.STREAM.UPDATE.{way.stream}"], why):
        return f"cannot copy: published to it at least once, deduplicated{limit}", True
    return f"will be asked to copy committed outputs: exactly once{limit}", False


class _Needs:
    """What the user may do, to be compared with what a processor has to do."""

    def __init__(self, permissions: Mapping[str, Any]) -> None:
        self._permissions = permissions

    def missing(self, action: str, subjects: Iterable[str], why: str) -> list[str]:
        """One sentence for the subjects that the user may not publish or subscribe to, if there are such."""
        rules = self._permissions.get(action) or {}
        allow = [rule.split()[0] for rule in rules.get("allow") or []]
        deny = [rule.split()[0] for rule in rules.get("deny") or []]
        denied = [
            subject
            for subject in subjects
            if any(matches(rule, subject) for rule in deny)
            or (allow and not any(matches(rule, subject) for rule in allow))
        ]
        if not denied:
            return []
        error = BrokerError("E403", f"the user may not {action} to {', '.join(denied)} ({why})")
        return [with_remedy(error)]


def _document(
    config: Config, jail: JailReport, server: _Server | None, problems: list[str]
) -> dict[str, Any]:
    routes: dict[str, Any] = {}
    for name, route in config.routes.items():
        routes[name] = {"program": route.program.id, "guarantee": guarantee(route), "reach": reachable(route)}
        if server is not None:
            found = server.routes[name]
            routes[name] |= {
                "input": found.input,
                "contexts": found.contexts,
                "outlets": found.outlets,
                "problems": found.problems,
            }
    document: dict[str, Any] = {
        "app": config.app,
        "faults": [],
        "problems": problems,
        "sandbox": {"level": jail.level, "layers": dict(jail.layers)},
        "routes": routes,
        "config": config.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    if server is not None:
        document["server"] = {
            "version": server.version,
            "address": server.address,
            "app_stream": server.app_stream,
        }
    return document


def _print_brief(screen: Screen, config: Config, jail: JailReport, server: _Server | None) -> None:
    count = "1 route" if len(config.routes) == 1 else f"{len(config.routes)} routes"
    if config.has_engine:
        graphs = "1 graph" if len(config.graphs) == 1 else f"{len(config.graphs)} graphs"
        count = f"{count}, {graphs}" if config.routes else graphs
    screen.heading(f"{config.path}: app {config.app}, {count}, no fault")
    screen.line(f"configuration {fingerprint(config)}, sandbox level {jail.level}")
    if server is not None:
        screen.line(f"server {server.version} at {server.address}: {server.app_stream}")
    screen.line("")
    if config.routes:
        screen.table(BRIEF, [brief(route) for route in config.routes.values()], elastic=3)
        screen.line("")
    if config.graphs:
        rows = [_brief_graph(graph) for graph in config.graphs.values()]
        screen.table(["graph", "nodes", "starts by", "sends its results to"], rows, elastic=4)
        screen.line("")
    if config.groups:
        groups = [_brief_group(group) for group in config.groups.values()]
        screen.table(["nodes", "run", "may reach"], groups, elastic=3)
        screen.line("")
    beside = [f"{name}: {what}." for name, route in config.routes.items() for what in notable(route)]
    for line in beside[:_NOTABLE_MAX]:
        screen.line(line)
    if len(beside) > _NOTABLE_MAX:
        screen.line(f"... and {len(beside) - _NOTABLE_MAX} more such lines")
    screen.line("Context, position, dead letters: exactly once. Calls outside: at least once.")
    screen.line("--full shows the effective configuration, the jail and every guarantee.")
    if server is not None:
        screen.line("")
        for name, found in server.routes.items():
            screen.heading(f"route {name}")
            _print_findings(screen, found)
    screen.flush()


def _brief_graph(graph: GraphDefinition) -> list[str]:
    triggers = [each.subject or each.when or "" for each in graph.triggers]
    nodes = ", ".join(node.identifier for node in graph.nodes)
    return [
        graph.name,
        nodes,
        ", ".join([*triggers, "request"]),
        graph.output.subject if graph.output else "-",
    ]


def _brief_group(group: NodeGroup) -> list[str]:
    reach = [*group.reach.outbound.allowed_domains, *(tool.name for tool in group.reach.tools)]
    reach += [*(endpoint.name for endpoint in group.reach.inference), *group.emits]
    where = f"in a pool, {group.concurrency} at a time" if group.is_pool else "with their runs"
    if group.is_shell:
        where = f"in cells, {group.concurrency} at a time"
    return [group.name, where, ", ".join(reach) or "nothing"]


def _print(screen: Screen, config: Config, jail: JailReport, server: _Server | None) -> None:
    screen.heading(f"configuration {config.path}, as it is used")
    for line in effective_yaml(config).splitlines():
        screen.line(f"  {line}")
    screen.heading(f"sandbox level {jail.level}")
    for layer, state in jail.layers.items():
        screen.line(f"  {layer}: {state}")
    if server is not None:
        screen.heading(f"server {server.version} at {server.address}")
        screen.line(f"  {server.app_stream}")
    for name, route in config.routes.items():
        screen.heading(f"route {name}")
        for sentence in [*guarantee(route), *reachable(route)]:
            screen.line(f"  - {sentence}")
        if server is not None:
            _print_findings(screen, server.routes[name])
    screen.flush()


def _print_findings(screen: Screen, found: _Findings) -> None:
    screen.line(f"  input: {found.input}")
    if found.contexts:
        screen.line(f"  contexts: {found.contexts}")
    for pattern, kind in found.outlets.items():
        screen.line(f"  {pattern}: {kind}")
