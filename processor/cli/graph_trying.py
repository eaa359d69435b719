"""`graph try`: one run of a graph with its real nodes, with this process in place of a server.

What decides about the run is the machine that decides about every run. Nodes run in guests as a processor has
them, with what their group may reach, so what they ask of others is really asked. Waits take no time unless
they are to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import typer

from processor.capability.monitor import Governor, Mandate, Monitor
from processor.capability.registry import HostCalls
from processor.cli.graph_files import checked, graph_of, group_faults
from processor.cli.graph_verb import GraphRequest
from processor.cli.graphs import inputs_of, one, pairs_of, show_run, span_ms
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, say
from processor.config import Config, load
from processor.errors import Fault, Faults, LanguageError
from processor.graphs.definition import NodeKind
from processor.graphs.inline import Given, InlineGuests, Spawn
from processor.graphs.local import JumpingClock, LocalRuns, WallClock
from processor.graphs.plan import Plan, compile_plan
from processor.graphs.pools import graph_routes
from processor.graphs.progress import NOTHING, SUCCESS, Execution, GraphRun, Message, Progress
from processor.graphs.runs import record_of
from processor.printable import printable
from processor.route import NodeGroup
from processor.sandbox.host import Guest, Zygote
from processor.telemetry import configure_logging

RUN = "try"
_LINES = 100  # of executions that are shown


def do(request: GraphRequest) -> int:
    """Run the graph; the exit code says whether it is a SUCCESS. Raises Faults and ProcessorError."""
    config = load(request.config, needs_login=False)
    graph = graph_of(config, one(request, "GRAPH"))
    if graph.name in config.recipes:
        file = config.recipes[graph.name].path
        what = f"{graph.name} is a recipe; `processor recipe run {file}` runs it here"
        raise typer.BadParameter(what, param_hint="GRAPH")
    configure_logging("human", "warning")
    inputs = {**inputs_of(request)[0], **pairs_of(request.input, "--input")}
    plans = {name: compile_plan(definition) for name, definition in config.graphs.items()}
    return asyncio.run(_try(config, plans, graph.name, inputs, request))


async def _try(
    config: Config, plans: Mapping[str, Plan], graph: str, inputs: Mapping[str, Any], request: GraphRequest
) -> int:
    screen = Screen(request.format)
    async with _nodes_of(config, screen) as nodes:
        if request.execution is not None:
            return await _try_one(plans[graph], nodes, request.execution, inputs, screen)
        for name in plans[graph].ignored(inputs):
            say(f"input {name!r} is left out: the first node of the graph does not name it")
        message: Message = {"v": 1, "t": "start", "run": request.run_id or RUN, "graph": graph, "by": "try"}
        message |= {"inputs": inputs, "store": pairs_of(request.store, "--store")}
        wait_s = None if request.wait is None else span_ms(request.wait, "--wait") / 1000
        clock = WallClock() if wait_s is not None else JumpingClock(time.time_ns() // 1_000_000)
        local = LocalRuns(plans, nodes.execute, clock)
        try:
            async with asyncio.timeout(wait_s):
                await local.run(message)
        except TimeoutError:
            say(f"the run has not ended within {request.wait}")
        run = local.runs[message["run"]]
        _show(screen, run, local.runs)
        return EXIT_OK if run.state == SUCCESS else EXIT_FAILED


def _show(screen: Screen, run: GraphRun, family: Mapping[str, GraphRun]) -> None:
    record = record_of(run)
    record["open"] = [
        {"x": each.x, "state": each.state, "since": each.sent or each.created, "why": _why(each)}
        for each in run.executions.values()
        if each.is_open
    ]
    if not screen.is_json:
        every = [(id, each) for id, part in family.items() for each in part.executions.values()]
        for id, each in every[:_LINES]:
            of = "" if id == run.id else f" of {id}"
            outputs = f" {orjson.dumps(each.outputs).decode():.200}" if each.outputs else ""
            screen.line(printable(f"{each.x}{of}: {each.state}{outputs}"))
        if len(every) > _LINES:
            screen.line(f"and {len(every) - _LINES} executions more")
    show_run(screen, record)
    screen.flush()


def _why(each: Progress) -> str:
    if each.node.is_wait:
        return f"waits for signal {(each.inputs or NOTHING).get('signal')!r:.80}"
    return each.why[-1]["text"] if each.why else "it was not run"


async def _try_one(
    plan: Plan, nodes: _Nodes, identifier: str, inputs: Mapping[str, Any], screen: Screen
) -> int:
    """Run one node alone, with the inputs that the graph writes out and those that are given."""
    node = plan.nodes.get(identifier)
    if node is None or "/" not in node.kind:
        has = ", ".join(each.id for each in plan.nodes.values() if "/" in each.kind)
        raise typer.BadParameter(
            f"{identifier!r} is no node that can be run alone: {has}", param_hint="--execution"
        )
    written = {name: template.value for name, template in node.inputs.items() if template.is_literal}
    every = {**written, **inputs}
    if missing := [name for name in node.inputs if name not in every]:
        raise typer.BadParameter(f"{identifier} needs {', '.join(missing)}", param_hint="--input")
    execution = Execution(RUN, identifier, node, 1, every, plan.default_values, None, f"{RUN}:{identifier}")
    [result] = await nodes.execute([execution])
    if screen.is_json:
        screen.document({"x": identifier, **result})
    elif "error" in result:
        screen.problem(f"{identifier}: {result['error']['code']} {result['error']['text']}")
        for line in str(result["error"].get("traceback") or "").splitlines():
            screen.line(f"  {printable(line)}")
    else:
        screen.items(result)
    screen.flush()
    return EXIT_FAILED if "error" in result else EXIT_OK


class _Nodes:
    """What runs executions: a guest for each group of nodes, with what the group may reach."""

    def __init__(
        self,
        kinds: Mapping[str, NodeKind],
        monitors: Mapping[str, Monitor],
        guests: InlineGuests,
        screen: Screen,
    ) -> None:
        """`monitors` are of the groups that reach outside, by name."""
        self._kinds = kinds
        self._monitors = monitors
        self._guests = guests
        self._screen = screen

    async def execute(self, executions: Sequence[Execution]) -> list[Message]:
        """The outcome of each; those of a group that reaches nothing outside run together."""
        found: dict[int, Message] = {}
        together: dict[str, list[int]] = {}
        for place, each in enumerate(executions):
            kind = self._kinds.get(each.node.kind)
            if kind is None:
                text = f"no file in `nodes` has the kind {each.node.kind!r}"
                found[place] = {"error": {"code": "E704", "text": text}, "final": True}
            elif kind.group not in self._guests:
                text = f"{each.node.id} is a shell step; `processor recipe run` runs it without a server"
                found[place] = {"error": {"code": "E715", "text": text}, "final": True}
            elif (monitor := self._monitors.get(kind.group)) is not None:
                # One at a time: what it asked of others is not to be asked again for its neighbour's sake.
                monitor.begin()
                try:
                    [given] = await self._guests.run(kind.group, [each])
                finally:
                    await monitor.finish()
                found[place] = self._said(each, given)
            else:
                together.setdefault(kind.group, []).append(place)
        for group, places in together.items():
            given_all = await self._guests.run(group, [executions[place] for place in places])
            for place, given in zip(places, given_all, strict=True):
                found[place] = self._said(executions[place], given)
        return [found[place] for place in range(len(executions))]

    def _said(self, each: Execution, given: Given) -> Message:
        """Show what an execution said and sent; its outcome."""
        for line in self._guests.logs:
            say(printable(f"{each.x}: {line.level} {line.text}"))
        self._guests.logs.clear()
        for emit in given.emits:
            self._screen.line(
                printable(f"{each.x} emits to {emit.subject}: {emit.body.decode(errors='replace'):.200}")
            )
        for event in given.events:
            self._screen.line(
                printable(f"{each.x} event {event.name}: {event.body.decode(errors='replace'):.200}")
            )
        return given.result


@asynccontextmanager
async def _nodes_of(config: Config, screen: Screen) -> AsyncIterator[_Nodes]:
    """Guests for the groups of a configuration. Raises Faults: all that is wrong with them and the graphs."""
    zygote = await Zygote.start()
    calls = HostCalls()
    routes = graph_routes(config)
    reach: dict[str, Governor] = {}
    monitors: dict[str, Monitor] = {}
    try:
        for group in config.groups.values():
            if group.is_pool and not group.is_shell:
                route = routes[group.route_name]
                governor = calls.for_route(route.reach, Mandate.of(route))
                governor.see(dict.fromkeys(route.policy.expiring, time.time_ns() // 1000))
                governor.connections.files.open()
                reach[group.name], monitors[group.name] = governor, governor.lane()

        async def spawn(group: NodeGroup) -> Guest:
            if (governor := reach.get(group.name)) is None:
                return await zygote.spawn(group.program, group.limits, emits=group.emits)
            return await zygote.spawn(
                group.program,
                group.limits,
                perform=monitors[group.name].perform,
                capabilities=governor.signatures,
                secrets=governor.secrets,
                emits=group.emits,
            )

        kinds = await _kinds_of(config, spawn)
        guests = InlineGuests(
            {name: replace(each, is_pool=False) for name, each in config.groups.items() if not each.is_shell},
            spawn,
        )
        try:
            yield _Nodes(kinds, monitors, guests, screen)
        finally:
            await guests.close()
    finally:
        await zygote.close()
        await calls.close()


async def _kinds_of(config: Config, spawn: Spawn) -> Mapping[str, NodeKind]:
    manifests: dict[str, Mapping[str, Any]] = {}
    faults: list[Fault] = []
    for group in config.groups.values():
        if group.is_shell:
            continue
        try:
            guest = await spawn(group)
        except (Faults, LanguageError) as err:
            faults += group_faults(group, err)
            continue
        manifests[group.name] = guest.manifest
        await guest.close()
    if not faults:
        findings = checked(config, manifests)
        faults = findings.faults
    if faults:
        raise Faults(list(dict.fromkeys(faults)))
    return findings.kinds
