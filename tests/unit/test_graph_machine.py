"""A run of a graph: what follows what, what is united, and when it has ended."""

from __future__ import annotations

from typing import Any

from processor.graphs import machine
from processor.graphs.progress import Execution
from tests.graphing import answered, chain, fan, plan_of, result, started, states


def plus_one(each: Execution) -> dict[str, Any]:
    return {"outputs": {"v": each.inputs["v"] + 1}}


def test_a_chain_runs_to_its_end() -> None:
    """Each node runs after the one before it, with its outputs, and the run returns what the graph says."""
    plan = plan_of(
        chain("a", "b", "c"), outputs={"last": "${{ c.outputs.v }}", "first": "${{ a.outputs.v }}"}
    )
    run, todo = started(plan)
    assert [(each.x, each.inputs, each.key) for each in todo.ready] == [("a", {"v": 0}, "r:a")]
    last = answered(plan, run, todo, plus_one)
    assert (run.state, last.is_finished) == ("SUCCESS", True)
    assert run.outputs == {"last": 3, "first": 1}
    assert states(run) == {"a": "SUCCESS", "b": "SUCCESS", "c": "SUCCESS"}


def test_a_trigger_replaces_inputs_that_the_first_node_declares() -> None:
    """Inputs of a run replace those of the first node; others are left out, and can be named."""
    nodes = chain("a")
    nodes[0]["inputs"] = {"v": "initial", "mode": "fast"}
    plan = plan_of(nodes)
    _, todo = started(plan, inputs={"v": 7, "other": 1})
    assert todo.ready[0].inputs == {"v": 7, "mode": "fast"}
    assert plan.ignored({"v": 7, "other": 1}) == ["other"]


def test_branches_are_united_in_their_order() -> None:
    """What unites a fan-out runs once, with the values of all branches in numeric order."""
    plan = plan_of(fan())
    run, todo = started(plan)
    seen = []

    def outcome(each: Execution) -> dict[str, Any]:
        seen.append(each)
        if each.node.id == "split":
            return {"outputs": [{"v": number} for number in range(12)]}
        return {"outputs": {"v": each.inputs.get("v", 0)}}

    answered(plan, run, todo, outcome)
    assert run.state == "SUCCESS"
    assert [each.x for each in seen[1:-1]] == [f"work/split.{number}" for number in range(12)]
    assert (seen[-1].x, seen[-1].inputs) == ("sum", {"values": list(range(12))})
    assert seen[-1].united == {"success": 12, "errored": 0, "pruned": 0}


def test_a_node_of_several_parents_runs_for_each() -> None:
    """Where nothing is united, a node runs once for each of its parents, and so does what comes after it."""
    nodes = chain("a", "b")
    nodes[0]["next_nodes"] = ["b", "c"]
    nodes[1]["next_nodes"] = ["d"]
    nodes += [
        {"identifier": "c", "inputs": {"v": "${{ a.outputs.v }}"}, "next_nodes": ["d"]},
        {"identifier": "d", "inputs": {"v": "${{ a.outputs.v }}"}, "next_nodes": ["e"]},
        {"identifier": "e", "inputs": {"v": "${{ d.outputs.v }}"}},
    ]
    plan = plan_of(nodes, outputs={"all": "${{ e.outputs.v }}"})
    run, todo = started(plan)
    answered(plan, run, todo, plus_one)
    assert set(run.executions) == {"a", "b", "c", "d/~b", "d/~c", "e/~b", "e/~c"}
    assert run.outputs == {"all": [3, 3]}


def test_what_is_known_already_changes_nothing() -> None:
    """A result that came before, of another attempt, or of what is not there, makes nothing to do."""
    plan = plan_of(chain("a", "b"))
    run, todo = started(plan)
    first = result(todo.ready[0], outputs={"v": 1})
    assert [each.x for each in machine.apply(plan, run, first, 1000).ready] == ["b"]
    before = states(run)
    for stale in (first, {**first, "x": "b", "a": 2}, {**first, "x": "z"}, {"t": "nonsense"}, {"t": "go"}):
        todo = machine.apply(plan, run, stale, 1000)
        assert [each.x for each in todo.ready] == (["b"] if stale["t"] == "go" else [])
    assert states(run) == before
