"""Graphs and runs for tests of the state machine: short definitions, and a driver that answers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from processor.graphs import machine
from processor.graphs.definition import Graph, GraphDefinition
from processor.graphs.plan import Plan, compile_plan
from processor.graphs.progress import Execution, GraphRun, Message, Todo

Nodes = list[dict[str, Any]]
Outcome = Callable[[Execution], Message]


def plan_of(nodes: Nodes, name: str = "g", **keys: Any) -> Plan:
    """The plan of a graph as people write it; a node without a `node_name` is of the kind Step."""
    named = [{"node_name": "Step", **node} for node in nodes]
    return compile_plan(GraphDefinition.named(name, Graph.model_validate({"nodes": named, **keys}), "app"))


def chain(*ids: str) -> Nodes:
    """A node for each id, one after the other; each gets `v` of the one before it."""
    return [
        {
            "identifier": id,
            "inputs": {"v": f"${{{{ {ids[place - 1]}.outputs.v }}}}" if place else "initial"},
            "next_nodes": list(ids[place + 1 : place + 2]),
        }
        for place, id in enumerate(ids)
    ]


def fan(*, strategy: str = "ALL_SUCCESS", **more: Any) -> Nodes:
    """split -> work -> sum, which unites split and gets every `v` of work."""
    split, work = chain("split", "work")
    work["next_nodes"] = ["sum"]
    unites = {"identifier": "split", "strategy": strategy}
    inputs = {"values": "${{ work.outputs.v }}"}
    return [split, {**work, **more}, {"identifier": "sum", "inputs": inputs, "unites": unites}]


def started(plan: Plan, **message: Any) -> tuple[GraphRun, Todo]:
    """A run of the plan that began at 1000 ms."""
    return machine.start(plan, "r", {"t": "start", "run": "r", "inputs": {"v": 0}, **message}, 1000)


def result(each: Execution, **outcome: Any) -> Message:
    """The message that an execution had this outcome."""
    return {"t": "result", "run": each.run, "x": each.x, "a": each.attempt, **outcome}


def answered(plan: Plan, run: GraphRun, todo: Todo, outcome: Outcome, now_ms: int = 1000) -> Todo:
    """Give every execution that is ready its outcome, round after round; all that came of it together."""
    total, ready = Todo(), list(todo.ready)
    while ready:
        each = ready.pop(0)
        more = machine.apply(plan, run, result(each, **outcome(each)), now_ms)
        ready += more.ready
        total.add(more)
    return total


def states(run: GraphRun) -> dict[str, str]:
    """The state of each execution."""
    return {x: each.state for x, each in run.executions.items()}
