"""The verb `graph`: its options and its help. What an action does is in the module that `WORK` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

Action = Literal[
    "check",
    "show",
    "apply",
    "ls",
    "kinds",
    "trigger",
    "runs",
    "run",
    "retry",
    "cancel",
    "pause",
    "resume",
    "signal",
    "try",
]
Format = Literal["human", "text", "json", "mermaid", "svg"]

# The module that does an action, as a function of `GraphRequest`; imported when it is asked for.
WORK: Mapping[str, str] = dict.fromkeys(
    ("apply", "ls", "kinds", "trigger", "runs", "run", "retry", "cancel", "pause", "resume", "signal"),
    "processor.cli.graphs",
) | {
    "check": "processor.cli.graph_files",
    "show": "processor.cli.graph_files",
    "try": "processor.cli.graph_trying",
}


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """What was asked of the verb `graph`, as it was written."""

    action: str
    config: Path
    names: tuple[str, ...]
    format: str | None = None
    input: tuple[str, ...] = ()
    inputs: str | None = None
    store: tuple[str, ...] = ()
    delay: str | None = None
    run_id: str | None = None
    wait: str | None = None
    watch: bool = False
    state: str | None = None
    since: str | None = None
    limit: int = 50
    graph: str | None = None
    version: str | None = None
    run: str | None = None
    execution: str | None = None
    and_after: bool = False
    id: str | None = None
    rate: float | None = None
    value: str | None = None
    reason: str = ""
    yes: bool = False


def graph(
    action: Annotated[
        Action,
        typer.Argument(
            metavar="ACTION",
            help="check, show, apply, ls, kinds, trigger, runs, run, retry, cancel, pause, resume, signal or"
            " try.",
        ),
    ],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="apply: a graph's file; show, trigger, runs, try: a graph; signal: a run, its signal; else"
            " runs.",
        ),
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="K=V", help="trigger, try: an input, as JSON or else a text."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE|-",
            help="trigger, try: all inputs; for trigger, several lines are as many runs.",
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option("--store", metavar="K=V", help="trigger, try: a value of the run's store."),
    ] = None,
    delay: Annotated[
        str | None, typer.Option(metavar="SPAN", help="trigger: begin so long from now, as 3s or 2h.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="trigger: the id of the run; given again, nothing is started again."),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="trigger, try, apply: wait so long for the end, or for it to be valid."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="run: show it again until it has ended.")] = False,
    state: Annotated[
        Literal["running", "success", "failed", "cancelled"] | None,
        typer.Option(help="runs, retry: only in this state."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="runs, retry: of the last 30s, 10m, 2h or 7d, or since a time."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="runs, retry: the newest N.")] = 50,
    graph: Annotated[
        str | None, typer.Option("--graph", metavar="GRAPH", help="retry: all runs of this graph.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(metavar="V", help="show: this version, as the app has it.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="show: with the states of this run.")] = None,
    execution: Annotated[
        str | None,
        typer.Option(metavar="X", help="retry: only this execution, as `run` names it; try: only this node."),
    ] = None,
    and_after: Annotated[
        bool, typer.Option("--and-after", help="retry: also what came of it, whatever its state.")
    ] = False,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="retry: given again, nothing is done again.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, metavar="N", help="retry: at most N runs a second.")
    ] = None,
    value: Annotated[
        str | None, typer.Option(metavar="JSON", help="signal: what the Wait returns as `value`.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; the run keeps it.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before many runs are retried.")] = False,
    format: Annotated[
        Format | None,
        typer.Option(
            help="Lines for people, or JSON objects; show: also mermaid, or svg. By default lines at a"
            " terminal, and JSON in a pipe."
        ),
    ] = None,
) -> int:
    """Define graphs of nodes, start runs of them, and look at and steer these.

    `check` finds all faults of the graphs of a configuration, or of a graph in a file of its own; `show`
    shows one, as text or as a picture. Neither needs a server.

    `apply` defines the graph of a file on a running app; `ls` lists graphs, `kinds` what nodes can be.
    `trigger` starts a run and prints its id; with --wait also what it returns. `runs` lists runs, newest
    first; `run` shows one, and why each open execution is open. `retry` runs again what failed of a run, or
    of all that --graph, --state and --since name. `cancel` ends runs, `pause` and `resume` hold and release
    them, `signal` tells a run what it waits for. `try` runs a graph here, without a server: with its real
    nodes, which ask others what they ask, but its waits take no time, unless there is --wait.

    The exit code is 1 where a run FAILED or was CANCELLED or is not there, and where it has not ended in
    time; 2 where a graph is INVALID.

    Examples:
    processor graph check market.yaml
    processor graph show market.yaml my-workflow --format svg > my-workflow.svg
    processor graph apply market.yaml graphs/my-workflow.yaml --wait 30s
    processor graph trigger market.yaml my-workflow -i source=web --store cursor=0 --wait 30s
    processor graph runs market.yaml my-workflow --state failed --since 1h
    processor graph run market.yaml 0192f0c1-7a51-7b3c-9d0e-1f2a3b4c5d6e --watch
    processor graph retry market.yaml --graph my-workflow --state failed --since 1h --rate 10
    processor graph try market.yaml my-workflow -i source=web
    processor graph signal market.yaml order-17 approval --value '{"approved": true}'
    """
    request = GraphRequest(
        action,
        config,
        tuple(names or ()),
        format="human" if format == "text" else format,
        input=tuple(input or ()),
        inputs=inputs,
        store=tuple(store or ()),
        delay=delay,
        run_id=run_id,
        wait=wait,
        watch=watch,
        state=state,
        since=since,
        limit=limit,
        graph=graph,
        version=version,
        run=run,
        execution=execution,
        and_after=and_after,
        id=id,
        rate=rate,
        value=value,
        reason=reason,
        yes=yes,
    )
    if format in ("mermaid", "svg") and action != "show":
        raise typer.BadParameter(f"{format} is for show", param_hint="--format")
    code: int = import_module(WORK[action]).do(request)
    return code
