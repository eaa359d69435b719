"""`graph check` and `graph show`: graphs as files have them, without a server; `check` asks here, too.

With a version or a run, or for a graph that is not in the configuration, `show` reads what the app has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import orjson
import typer

from processor.capability.declared import misfits
from processor.cli.connection import connected_to_app
from processor.cli.graph_verb import GraphRequest
from processor.cli.terminal import EXIT_CONFIG, EXIT_OK, Screen, complain, name_pages, warn
from processor.config import Config, GraphFile, load, placed
from processor.errors import Fault, Faults, LanguageError, ProcessorError
from processor.graphs.checks import Problem, problems_with_kinds, read_graph
from processor.graphs.definition import GraphDefinition, NodeKind
from processor.graphs.pictures import States, mermaid, svg
from processor.graphs.registry import kinds_of_manifest
from processor.graphs.steps import shell_manifest
from processor.operate.graphs import Graphs
from processor.operate.runs import GraphRuns
from processor.route import NodeGroup
from processor.sandbox.host import Guest, Zygote
from processor.telemetry import configure_logging


@dataclass(frozen=True, slots=True)
class GraphFindings:
    """What the graphs of a configuration are with its own kinds.

    `faults` keep it from running as it is meant. `absent` are kinds that a client or a Runtime may bring
    (E704): the graphs that need them are PENDING until then.
    """

    kinds: Mapping[str, NodeKind]
    faults: list[Fault]
    absent: list[Fault]


def checked(config: Config, manifests: Mapping[str, Mapping[str, Any]]) -> GraphFindings:
    """All that is wrong with the graphs of a configuration whose groups told of these kinds, by group; groups
    of shell steps have nobody to tell.
    """
    kinds: dict[str, NodeKind] = {}
    faults: list[Fault] = []
    shell = {group.name: shell_manifest(group) for group in config.groups.values() if group.is_shell}
    for name, manifest in {**manifests, **shell}.items():
        faults += misfits(config.groups[name], manifest)
        for kind in kinds_of_manifest(config.groups[name], manifest):
            other = kinds.setdefault(kind.id, kind)
            if other is not kind:
                text = f"'{kind.name}' is in the groups {other.group} and {name}. Rename one of them."
                faults.append(Fault(config.groups[name].program.filename, 1, 1, "E702", text))
    found: dict[str, list[Problem]] = {
        name: problems_with_kinds(graph, kinds, config.graphs, lambda kind: config.groups[kind.group].values)
        for name, graph in config.graphs.items()
    }
    absent = {name: [each for each in problems if each.code == "E704"] for name, problems in found.items()}
    wrong = {name: [each for each in problems if each.code != "E704"] for name, problems in found.items()}
    return GraphFindings(kinds, [*faults, *placed(config, wrong)], placed(config, absent))


def group_faults(group: NodeGroup, error: BaseException) -> list[Fault]:
    """Why the guest of a group could not be loaded. Raises what is no fault of its file."""
    if isinstance(error, Faults):
        return error.faults
    if isinstance(error, LanguageError):
        text = f"nodes.{group.name}: {error.what}. {error.remedy}"
        return [Fault(group.program.filename, 1, 1, error.code, text)]
    raise error


def do(request: GraphRequest) -> int:
    """Do what was asked for. Raises Faults, and ProcessorError for what is not there."""
    if request.action == "check":
        if request.names:
            raise typer.BadParameter("check takes one file", param_hint="NAME")
        return check_graphs(request.config, format=request.format)
    if len(request.names) != 1:
        raise typer.BadParameter("it takes one graph", param_hint="NAME")
    return show_graph(request)


def check_graphs(path: Path, *, format: str | None) -> int:
    """Check the graphs of a configuration, or the graph in a file of its own, and say what was found."""
    configure_logging("human", "warning")
    screen = Screen(format)
    try:
        file = GraphFile.read(path)
        if not file.is_configuration:
            return _check_file(file, screen)
        config = load(path, needs_login=False, needs_secrets=False)
        findings = asyncio.run(_findings(config))
        if findings.faults:
            raise Faults(findings.faults)
    except Faults as err:
        if screen.is_json:
            screen.document({"faults": [str(fault) for fault in err.faults]})
        else:
            complain(err)
            name_pages(*map(str, err.faults))
        return EXIT_CONFIG
    _print_findings(screen, config, findings)
    return EXIT_OK


def _check_file(file: GraphFile, screen: Screen) -> int:
    definition, problems = read_graph(file.name, file.keys, "app")
    if faults := file.faults(problems):
        raise Faults(faults)
    assert definition is not None, "without a fault there is a graph"
    if screen.is_json:
        screen.document({"faults": [], "graphs": {file.name: {"version": definition.version}}})
    else:
        screen.line(f"{file.path}: graph {file.name}, {_counted(len(definition.nodes), 'node')}, no fault")
        screen.line("Whether its kinds are there, and fit, `graph check CONFIG` and `graph apply` say.")
        screen.flush()
    return EXIT_OK


def _print_findings(screen: Screen, config: Config, findings: GraphFindings) -> None:
    if screen.is_json:
        graphs = {name: {"version": graph.version} for name, graph in config.graphs.items()}
        absent = [str(fault) for fault in findings.absent]
        screen.document({"faults": [], "absent": absent, "graphs": graphs, "kinds": list(findings.kinds)})
        return
    count = _counted(len(config.graphs), "graph")
    screen.line(f"{config.path}: {count}, {_counted(len(findings.kinds), 'kind')}, no fault")
    rows = [
        (name, graph.version, str(len(graph.nodes)), ", ".join(graph.kinds))
        for name, graph in config.graphs.items()
    ]
    if rows:
        screen.line("")
        screen.table(("graph", "version", "nodes", "kinds"), rows, elastic=3)
    screen.flush()
    warn(findings.absent)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


async def _findings(config: Config) -> GraphFindings:
    zygote = await Zygote.start()
    try:
        groups = [group for group in config.groups.values() if not group.is_shell]
        spawns = [zygote.spawn(group.program, group.limits) for group in groups]
        results = await asyncio.gather(*spawns, return_exceptions=True)
    finally:
        await zygote.close()
    manifests: dict[str, Mapping[str, Any]] = {}
    faults: list[Fault] = []
    for group, result in zip(groups, results, strict=True):
        if isinstance(result, Guest):
            manifests[group.name] = result.manifest
        else:
            faults += group_faults(group, result)
    if faults:
        raise Faults(list(dict.fromkeys(faults)))
    return checked(config, manifests)


def show_graph(request: GraphRequest) -> int:
    """Show a graph. Raises Faults, and ProcessorError E602 or E706 where there is none."""
    [name] = request.names
    config = load(request.config, needs_secrets=False, needs_login=False)
    configure_logging("human", "warning")
    is_of_app = name not in config.graphs and not get_close_matches(name, config.graphs, n=1)
    if request.version or request.run or is_of_app:
        asyncio.run(_show_of_app(load(request.config, needs_secrets=False), name, request))
    else:
        show(Screen(request.format), graph_of(config, name), request.format)
    return EXIT_OK


async def _show_of_app(config: Config, name: str, request: GraphRequest) -> None:
    async with connected_to_app(config, "graph") as broker:
        version, states, title = request.version or "", None, ""
        if request.run:
            record = await GraphRuns(broker, config).show(request.run)
            if record["graph"] != name:
                what = f"run {request.run} is one of graph {record['graph']!r}"
                raise ProcessorError("E602", what, remedy="Name that graph.")
            version, states = str(record["version"]), _states_of(record)
            title = f"{name} {version}, run {request.run}: {record['state']}"
        said = await Graphs(broker, config).show(name, version)
        graph = GraphDefinition.of_document(orjson.dumps(said["definition"]))
        show(Screen(request.format), graph, request.format, states, title)


def _states_of(record: Mapping[str, Any]) -> dict[str, Counter[str]]:
    """How many executions of each node are in each state, as far as the record of a run has them."""
    states: dict[str, Counter[str]] = {}
    for each in record.get("executions", ()):
        states.setdefault(str(each["node"]), Counter())[str(each["state"])] += 1
    return states


def graph_of(config: Config, name: str) -> GraphDefinition:
    """The graph of this name. Raises ProcessorError E706 where the configuration has none."""
    graph = config.graphs.get(name)
    if graph is None:
        near = get_close_matches(name, config.graphs, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(config.graphs) or 'none'}."
        raise ProcessorError("E706", f"the configuration has no graph {name!r}", remedy=hint)
    return graph


def show(
    screen: Screen,
    graph: GraphDefinition,
    format: str | None,
    states: States | None = None,
    title: str = "",
) -> None:
    """Print a graph in one of its formats, with the states of a run where they are given."""
    match format:
        case "mermaid":
            _print_picture(mermaid(graph, states))
        case "svg":
            _print_picture(svg(graph, states, title))
        case "json":
            screen.document({"version": graph.version, **graph.model_dump(mode="json")})
        case _:
            _print_text(screen, graph, states, title)


def _print_picture(text: str) -> None:
    screen = Screen("human")
    for line in text.splitlines():
        screen.line(line)
    screen.flush()


def _print_text(screen: Screen, graph: GraphDefinition, states: States | None, title: str) -> None:
    screen.heading(title or f"graph {graph.name}, version {graph.version}")
    rows = []
    for node in graph.nodes:
        counts = (states or {}).get(node.identifier, {})
        row = [
            node.identifier,
            node.kind,
            ", ".join(node.next_nodes) or "-",
            ", ".join(_notes(graph, node.identifier)),
        ]
        rows.append(
            [*row, ", ".join(f"{count} {state}" for state, count in counts.items())] if states else row
        )
    head = ["node", "kind", "next", "beside"]
    screen.table([*head, "states"] if states else head, rows, elastic=3)
    for trigger in graph.triggers:
        when = trigger.subject or f"{trigger.when} ({trigger.zone or 'UTC'})"
        screen.line(f"trigger: {when}")
    if graph.output:
        screen.line(f"output: {graph.output.subject}")
    screen.flush()


def _notes(graph: GraphDefinition, identifier: str) -> Iterable[str]:
    node = graph.by_identifier[identifier]
    if node.unites:
        yield f"unites {node.unites.identifier} ({node.unites.strategy})"
    if node.retry:
        policy = graph.retry_of(node)
        yield "1 try" if policy.attempts == 1 else f"{policy.attempts} tries"
    if node.timeout_s:
        yield f"{node.timeout_s:g} s a try"
