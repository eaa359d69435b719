"""`graph`: graphs and their runs on an app that runs them; the requests over NATS do the same."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import typer

from processor.cli.connection import connected_to_app
from processor.cli.graph_verb import GraphRequest
from processor.cli.inputs import is_confirmed, moment_s, read_all
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, Screen, complain, say
from processor.config import Config, GraphFile, load
from processor.context.history import me
from processor.errors import Faults, ProcessorError
from processor.graphs.checks import read_graph
from processor.graphs.client import new_run_id, sentences
from processor.jetstream import Broker
from processor.operate.graphs import Graphs
from processor.operate.runs import RUNS_MAX, ControlOrder, GraphRuns, StartRequest
from processor.printable import printable
from processor.telemetry import configure_logging

_VALUE_CHARS = 60  # of a value in a line for people
_KEYS = 30  # of a store that are shown to people
_WATCH_S = 5.0  # how long a run is looked at after an order to it
_LOOK_S = 0.2
_PAGE = 200
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ENDED = ("SUCCESS", "FAILED", "CANCELLED")
_ORDERS = ("retry", "cancel", "pause", "resume")


def do(request: GraphRequest) -> int:
    """Do what was asked for. Raises Faults, and ProcessorError for what is not there."""
    config = load(request.config, needs_secrets=False)
    configure_logging("human", "warning")
    if request.action in _ORDERS:
        return asyncio.run(_connected(config, request, _steer))
    return asyncio.run(_connected(config, request, _ACTIONS[request.action]))


_Action = Callable[[Broker, Config, GraphRequest, Screen], Awaitable[int]]


async def _connected(config: Config, request: GraphRequest, act: _Action) -> int:
    async with connected_to_app(config, "graph") as broker:
        screen = Screen(request.format)
        code = await act(broker, config, request, screen)
        screen.flush()
        return code


# graphs


async def _apply(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    written = GraphFile.read(Path(one(request, "FILE, in which the graph is written")))
    file, name = written.path, written.name
    # What is wrong with it whatever kinds there are has its line only here.
    if faults := written.faults(read_graph(name, written.keys, config.app)[1]):
        raise Faults(faults)
    graphs = Graphs(broker, config)
    head = await graphs.apply(name, written.keys, {}, by=me(), reason=request.reason)
    until_s = time.monotonic() + span_ms(request.wait or "0s", "--wait") / 1000
    while head["status"] == "PENDING" and time.monotonic() < until_s:
        await asyncio.sleep(_LOOK_S)
        head = await graphs.head(name)
    if screen.is_json:
        screen.document(head)
    else:
        screen.line(f"graph {name}, version {head['version']}: {head['status']}")
    for sentence in sentences(head):
        complain(f"{file}: {sentence}")
    if head["status"] == "INVALID":
        if head["valid"]:
            say(f"version {head['valid']}, which is valid, goes on to run")
        return EXIT_CONFIG
    return EXIT_OK if head["status"] == "VALID" or request.wait is None else EXIT_FAILED


async def _list_graphs(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    _none(request)
    heads = await Graphs(broker, config).heads()
    if screen.is_json:
        for head in heads:
            screen.document(head)
        return EXIT_OK
    rows = [
        [
            head["name"],
            head["status"],
            head["valid"] or "-",
            head["by"],
            head["at"].partition(".")[0],
        ]
        for head in heads
    ]
    if rows:
        screen.table(["graph", "status", "runs version", "applied by", "at (UTC)"], rows, elastic=1)
    else:
        say("there are no graphs")
    return EXIT_OK


async def _list_kinds(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    _none(request)
    kinds = await Graphs(broker, config).kinds()
    if screen.is_json:
        for kind in kinds:
            screen.document(kind)
        return EXIT_OK
    rows = [
        [
            kind["kind"],
            kind["where"],
            kind["group"],
            _fields(kind["inputs"]),
            _fields(kind["outputs"]),
            ", ".join(kind["secrets"]),
        ]
        for kind in kinds
    ]
    if rows:
        screen.table(["kind", "where", "group", "inputs", "outputs", "secrets"], rows, elastic=6)
    else:
        say("there are no kinds")
    return EXIT_OK


def _fields(schema: Mapping[str, Any]) -> str:
    """The fields of a JSON Schema, those that may be missing with a question mark."""
    required = schema.get("required", ())
    return ", ".join(name if name in required else f"{name}?" for name in schema.get("properties", {}))


# runs


async def _trigger(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    graph = one(request, "GRAPH")
    many = inputs_of(request)
    if len(many) > 1 and (request.run_id or request.wait):
        raise typer.BadParameter("several runs have no --run-id and no --wait", param_hint="--inputs")
    given, store = pairs_of(request.input, "--input"), pairs_of(request.store, "--store")
    delay_ms = span_ms(request.delay, "--delay") if request.delay else 0
    wait_ms = span_ms(request.wait, "--wait") if request.wait else None
    runs = GraphRuns(broker, config)
    asked = [StartRequest(graph, each | given, store, delay_ms, request.run_id or "") for each in many]
    code = EXIT_OK
    for first in range(0, len(asked), RUNS_MAX):
        for started in await runs.start(asked[first : first + RUNS_MAX]):
            if "code" in started:
                complain(f"{started['code']} {started['text']}")
                code = EXIT_FAILED
            elif wait_ms is not None:
                code = await _result(runs, started, wait_ms / 1000, screen)
            elif screen.is_json:
                screen.document(started)
            else:
                screen.line(started["run_id"])
            if started.get("ignored"):
                say(f"ignored, as the first node declares no such input: {', '.join(started['ignored'])}")
    return code


async def _result(runs: GraphRuns, started: Mapping[str, Any], wait_s: float, screen: Screen) -> int:
    """Show what a run returns when it has ended."""
    run = started["run_id"]
    record = await runs.ended(run, wait_s)
    if record is None:
        complain(f"run {run} has not ended within {wait_s:g} s; it goes on")
        return EXIT_FAILED
    screen.document(record if screen.is_json else record["outputs"])
    for error in record["errors"]:
        complain(_error_line(error))
    say(f"run {run} is {record['state']}")
    return EXIT_OK if record["state"] == "SUCCESS" else EXIT_FAILED


def _error_line(error: Mapping[str, Any]) -> str:
    where = f"{error['x']}: " if error.get("x") else ""
    return f"{where}{error.get('code', '')} {error.get('text', '')}".strip()


async def _list_runs(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    if len(request.names) > 1:
        raise typer.BadParameter("runs takes one GRAPH, or none", param_hint="GRAPH")
    graph = request.names[0] if request.names else ""
    async with aclosing(_found(GraphRuns(broker, config), request, graph)) as found:
        show_runs(screen, [run async for run in found])
    return EXIT_OK


def show_runs(screen: Screen, runs: Sequence[Mapping[str, Any]]) -> None:
    """Show what is known of several runs, in their order."""
    rows = []
    for run in runs:
        if screen.is_json:
            screen.document(run)
            continue
        counts = run.get("counts") or {}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        state = f"{run['state']}{' (paused)' if run.get('paused') else ''}"
        rows.append([run["graph"], told, state, _time(run["created"])[5:19], _took(run), run["run"]])
    if rows:  # what may be cut comes first; a run is named whole
        screen.table(["graph", "executions", "state", "created", "took", "run"], rows, elastic=2)
    elif not screen.is_json:
        say("there are no such runs")


async def _found(runs: GraphRuns, request: GraphRequest, graph: str) -> AsyncGenerator[dict[str, Any], None]:
    """The newest runs that are meant, at most `--limit`."""
    since_s = moment_s(request.since) if request.since else 0.0
    left, before = request.limit, 0
    while left:
        page, following = await runs.newest(
            graph=graph, state=request.state or "", since_s=since_s, limit=min(left, _PAGE), before=before
        )
        for run in page:
            yield run
        left -= len(page)
        if following is None:
            return
        before = following


async def _show_run(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    run = one(request, "RUN")
    runs = GraphRuns(broker, config)
    shown = await runs.show(run)
    show_run(screen, shown)
    while request.watch and shown["state"] not in _ENDED:
        screen.flush()
        await asyncio.sleep(_LOOK_S)
        before, shown = shown, await runs.show(run)
        if _changed(before, shown):
            show_run(screen, shown)
    return EXIT_FAILED if shown["state"] in ("FAILED", "CANCELLED") else EXIT_OK


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether there is something new; how many wait in a queue is not."""
    states = [
        (
            run["state"],
            run.get("paused"),
            run.get("counts"),
            [(each["x"], each["state"]) for each in run["open"]],
        )
        for run in (before, now)
    ]
    return states[0] != states[1]


def show_run(screen: Screen, run: Mapping[str, Any]) -> None:
    """Show all that is known of a run."""
    if screen.is_json:
        screen.document(run)
        return
    screen.heading(f"run {run['run']} of {run.get('graph', '?')}: {run['state']}")
    if run.get("paused"):
        screen.problem("  it is paused")
    if "created" in run:
        screen.line(f"  created {_time(run['created'])} by {run['by']}, took {_took(run)}")
    states = run.get("counts") or Counter(str(each["state"]) for each in run.get("executions", ()))
    if states:
        screen.line(f"  executions: {', '.join(f'{count} {state}' for state, count in states.items())}")
    for each in run.get("executions", ()):
        if each["state"] in ("ERRORED", "SKIPPED"):
            for why in each.get("why", [])[-1:]:
                screen.problem(f"  {each['x']} {each['state']}: {_error_line(why)}")
    for each in run["open"]:
        screen.line(printable(f"  {each['x']} {each['state']} since {_time(each['since'])}: {each['why']}"))
    shown = {each["x"] for each in run.get("executions", ())}
    for error in run.get("errors", ()):
        if error.get("x") not in shown:
            screen.problem(f"  {_error_line(error)}")
    if run.get("outputs"):
        screen.items(run["outputs"])
    history = run.get("history", {})
    for key, changes in list(history.items())[:_KEYS]:
        last = changes[-1]
        said = f"{_cut(orjson.dumps(last['new']).decode())} by {last['who']} at {_time(last['ts'])}"
        more = f", change {len(changes)} of it" if len(changes) > 1 else ""
        screen.line(printable(f"  {key} = {said}{more}"))
    if len(history) > _KEYS:
        screen.line(f"  and {len(history) - _KEYS} keys more; --format json has all")


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}..."


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().isoformat(" ", "milliseconds") if at_ms else "-"


def _took(run: Mapping[str, Any]) -> str:
    if not run.get("started"):
        return "-"
    end_ms = run["ended"] or time.time() * 1000
    return f"{(end_ms - run['started']) / 1000:.3f} s"


async def _steer(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    runs = GraphRuns(broker, config)
    if request.action == "retry" and request.graph:
        return await _retry_many(runs, request, screen)
    if not request.names:
        raise typer.BadParameter(f"{request.action} needs RUN, one or several", param_hint="RUN")
    code = EXIT_OK
    for run in request.names:
        try:
            accepted = await runs.steer(run, _order(request, request.id or ""))
        except ProcessorError as err:
            complain(err)
            code = EXIT_FAILED
            continue
        await _follow(runs, accepted, screen)
    return code


def _order(request: GraphRequest, id: str) -> ControlOrder:
    return ControlOrder(
        request.action, me(), request.reason, id, request.execution or "", after=request.and_after
    )


async def _follow(runs: GraphRuns, accepted: Mapping[str, Any], screen: Screen) -> None:
    """Show that an order was accepted, and what becomes of its run in the next moments."""
    record = await runs.ended(accepted["run"], _WATCH_S)
    state = record["state"] if record else await runs.state(accepted["run"])
    if screen.is_json:
        screen.document({**accepted, "state": state})
    else:
        screen.line(f"run {accepted['run']}: accepted; it is {state}")


async def _retry_many(runs: GraphRuns, request: GraphRequest, screen: Screen) -> int:
    if request.names or request.execution:
        raise typer.BadParameter(
            "--graph is for all its runs, without RUN and --execution", param_hint="--graph"
        )
    if request.state not in (None, "failed", "cancelled"):
        raise typer.BadParameter(f"{request.state} runs cannot be retried", param_hint="--state")
    chosen = GraphRequest(**{**_fields_of(request), "state": request.state or "failed"})
    async with aclosing(_found(runs, chosen, request.graph or "")) as found:
        names = [run["run"] async for run in found]
    if not names:
        say("there are no such runs")
        return EXIT_OK
    if not request.yes and not is_confirmed(
        f"Retry {len(names)} runs?", f"{len(names)} runs would be retried"
    ):
        say("nothing was changed")
        return EXIT_FAILED
    id, code = request.id or new_run_id(), EXIT_OK
    began_s = time.monotonic()
    for number, run in enumerate(names):
        if request.rate and (early_s := began_s + number / request.rate - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        try:
            accepted = await runs.steer(run, _order(request, id))
        except ProcessorError as err:
            complain(err)
            code = EXIT_FAILED
            continue
        if screen.is_json:
            screen.document(accepted)
        else:
            screen.line(run)
    say(f"asked {len(names)} runs to retry, with --id {id}")
    return code


def _fields_of(request: GraphRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in GraphRequest.__dataclass_fields__}


async def _signal(broker: Broker, config: Config, request: GraphRequest, screen: Screen) -> int:
    if not 1 <= len(request.names) <= 2:
        raise typer.BadParameter("signal needs RUN, and the name of a signal unless all are meant")
    value = _json(request.value, "--value") if request.value is not None else None
    x = request.names[1] if len(request.names) > 1 else ""
    runs = GraphRuns(broker, config)
    order = ControlOrder("signal", me(), request.reason, request.id or "", x, value)
    await _follow(runs, await runs.steer(request.names[0], order), screen)
    return EXIT_OK


_ACTIONS: Mapping[str, _Action] = {
    "apply": _apply,
    "ls": _list_graphs,
    "kinds": _list_kinds,
    "trigger": _trigger,
    "runs": _list_runs,
    "run": _show_run,
    "signal": _signal,
}

# what was written


def one(request: GraphRequest, what: str) -> str:
    """The one name that the action needs. Raises BadParameter."""
    if len(request.names) != 1:
        raise typer.BadParameter(f"{request.action} needs {what}", param_hint="GRAPH")
    return request.names[0]


def _none(request: GraphRequest) -> None:
    if request.names:
        raise typer.BadParameter(f"{request.action} needs nothing but CONFIG", param_hint="GRAPH")


def inputs_of(request: GraphRequest) -> list[dict[str, Any]]:
    """The inputs of each run that is to be started."""
    given = request.inputs
    if given is None:
        return [{}]
    text = (
        read_all("-" if given == "-" else given[1:]) if given == "-" or given[:1] == "@" else given.encode()
    )
    try:
        whole = orjson.loads(text)
        return [_object(whole, "--inputs")]
    except orjson.JSONDecodeError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise typer.BadParameter("it is not a JSON object", param_hint="--inputs") from None
        return [_object(_json(line, f"--inputs, line {n}"), "--inputs") for n, line in enumerate(lines, 1)]


def _object(value: Any, option: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise typer.BadParameter("inputs are a JSON object, by name", param_hint=option)
    return value


def _json(text: str | bytes, option: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise typer.BadParameter(f"it is not JSON: {err}", param_hint=option) from None


def pairs_of(given: Sequence[str], option: str) -> dict[str, Any]:
    """Values by name, as JSON or else as texts, of NAME=VALUE. Raises BadParameter."""
    found = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint=option)
        try:
            found[name] = orjson.loads(text)
        except orjson.JSONDecodeError:
            found[name] = text
    return found


def span_ms(text: str, option: str) -> int:
    """A span such as 30s in milliseconds. Raises BadParameter."""
    span = _SPAN.fullmatch(text)
    if span is None:
        raise typer.BadParameter(f"{text!r} is not a span such as 500ms, 30s or 2h", param_hint=option)
    return round(float(span[1]) * _UNIT_MS[span[2]])
