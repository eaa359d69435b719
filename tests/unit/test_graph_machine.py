"""A run of a graph: what follows what, what is united, and when it has ended."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from processor.graphs import advance, branches, machine, outcomes, progress, retrying, runs, sizes, slices
from processor.graphs import plan as plan_module
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


def by_node(**outcomes: dict[str, Any]) -> Callable[[Execution], dict[str, Any]]:
    """Outcomes by node, or by the last number of a branch (`work_2`); else `v` is 1."""

    def outcome(each: Execution) -> dict[str, Any]:
        number = each.x.rpartition(".")[2]
        found = outcomes.get(f"{each.node.id}_{number}") or outcomes.get(each.node.id)
        return found or {"outputs": {"v": 1}}

    return outcome


ERROR = {"error": {"code": "E304", "text": "ValueError: no"}, "final": True}
THREE = {"outputs": [{"v": 0}, {"v": 1}, {"v": 2}]}


@pytest.mark.parametrize(
    ("strategy", "work", "state", "united", "run_state"),
    [
        ("ALL_SUCCESS", {"work_1": ERROR}, "SKIPPED", None, "FAILED"),
        ("ALL_DONE", {"work_1": ERROR}, "SUCCESS", {"success": 2, "errored": 1, "pruned": 0}, "SUCCESS"),
        (
            "ALL_SUCCESS",
            {"work_1": {"prune": {}}},
            "SUCCESS",
            {"success": 2, "errored": 0, "pruned": 1},
            "SUCCESS",
        ),
        (
            "ALL_SUCCESS",
            {"work": {"prune": {}}},
            "SUCCESS",
            {"success": 0, "errored": 0, "pruned": 3},
            "SUCCESS",
        ),
        ("ALL_DONE", {"work": ERROR}, "SUCCESS", {"success": 0, "errored": 3, "pruned": 0}, "SUCCESS"),
    ],
)
def test_a_unite_never_hangs(
    strategy: str, work: dict[str, Any], state: str, united: dict[str, int] | None, run_state: str
) -> None:
    """Pruned branches are left out; failed ones skip an ALL_SUCCESS, and are counted by an ALL_DONE."""
    plan = plan_of(fan(strategy=strategy))
    run, todo = started(plan)
    answered(plan, run, todo, by_node(split=THREE, **work))
    assert (run.executions["sum"].state, run.executions["sum"].united) == (state, united)
    assert run.state == run_state


def test_what_was_absorbed_is_still_told() -> None:
    """The errors that an ALL_DONE took fail no run, and are listed and counted."""
    plan = plan_of(fan(strategy="ALL_DONE"))
    run, todo = started(plan)
    answered(plan, run, todo, by_node(split=THREE, work_1=ERROR))
    record = runs.record_of(run)
    assert record["counts"] == {"SUCCESS": 4, "ERRORED": 1}
    assert record["errors"] == [{"x": "work/split.1", "code": "E304", "text": "ValueError: no"}]


def test_what_a_step_returned_that_failed_is_told_with_its_error() -> None:
    """Of the last try, where it is small; the record has it, and so has a list of errors."""
    plan = plan_of(chain("a"), retry_policy={"max_retries": 2})
    run, todo = started(plan)
    for n, returned in enumerate([{"status": "error", "n": 1}, {"status": "error", "n": 2}, "x" * 3000]):
        message = result(todo.ready[0], error={"code": "E716", "text": "no"}, returned=returned)
        todo = machine.apply(plan, run, message, 1000)
        told = [each.get("returned") for each in run.executions["a"].why]
        assert told == [*[None] * n, returned if n < 2 else None]
        for timer in todo.timers.values():
            todo = machine.apply(plan, run, timer.message, timer.at_ms)
    run, todo = started(plan_of(chain("a"), retry_policy={"max_retries": 0}))
    message = result(todo.ready[0], error={"code": "E716", "text": "no"}, returned={"status": "error"})
    machine.apply(plan_of(chain("a"), retry_policy={"max_retries": 0}), run, message, 1000)
    said = {"x": "a", "code": "E716", "text": "no", "returned": {"status": "error"}}
    assert runs.record_of(run)["errors"] == [said]


def test_a_fork_that_is_pruned_everywhere_prunes_what_unites_it() -> None:
    """Where no branch of one output reaches what unites it, that is PRUNED, and the run a success."""
    nodes = chain("a", "b", "c")
    nodes[2]["unites"] = {"identifier": "a"}
    plan = plan_of(nodes)
    run, todo = started(plan)
    answered(plan, run, todo, by_node(b={"prune": {"why": "late"}}))
    assert states(run) == {"a": "SUCCESS", "b": "PRUNED", "c": "PRUNED"}
    assert run.state == "SUCCESS"


def test_an_error_is_absorbed_where_it_is_united_first() -> None:
    """What an inner ALL_DONE took is no error to an ALL_SUCCESS around it."""
    nodes = [
        {"identifier": "a", "next_nodes": ["b"]},
        {"identifier": "b", "next_nodes": ["c"]},
        {"identifier": "c", "next_nodes": ["inner"]},
        {
            "identifier": "inner",
            "unites": {"identifier": "b", "strategy": "ALL_DONE"},
            "next_nodes": ["outer"],
        },
        {"identifier": "outer", "unites": {"identifier": "a", "strategy": "ALL_SUCCESS"}},
    ]
    plan = plan_of(nodes)
    run, todo = started(plan)
    answered(plan, run, todo, by_node(a=THREE, b={"outputs": [{}, {}]}, c_1=ERROR))
    assert run.executions["outer"].united == {"success": 3, "errored": 0, "pruned": 0}
    assert run.state == "SUCCESS"


def test_side_branches_do_not_hold_a_unite_up() -> None:
    """What does not lead to a unite may go on for longer than it."""
    nodes = fan()
    nodes[0]["next_nodes"] = ["work", "side"]
    nodes.append({"identifier": "side"})
    plan = plan_of(nodes)
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], **THREE), 1000)
    work = [each for each in todo.ready if each.node.id == "work"]
    for each in work:
        todo = machine.apply(plan, run, result(each, outputs={"v": 1}), 1000)
    assert [each.x for each in todo.ready] == ["sum"]
    machine.apply(plan, run, result(todo.ready[0], outputs={}), 1000)
    assert (run.state, run.open) == ("RUNNING", 3)


def test_a_value_that_is_missing_fails_the_execution_that_looks_at_it() -> None:
    """A reference to an output or a key that is not there is E703, at once and for good."""
    nodes = chain("a", "b")
    nodes[1]["inputs"] = {"v": "${{ a.outputs.nothing }}"}
    plan = plan_of(nodes)
    run, todo = started(plan)
    answered(plan, run, todo, plus_one)
    assert run.executions["b"].why[0] | {"at": 0} == {
        "a": 1, "code": "E703", "text": "inputs of b: a has no output 'nothing'", "at": 0
    }  # fmt: skip
    assert run.state == "FAILED"


@pytest.mark.parametrize(
    ("outputs", "limits", "code", "text"),
    [
        ([{}] * 13, {"fan_out": 12}, "E711", "'split' returned 13 elements; limits.fan_out is 12"),
        ([{}] * 13, {"executions": 10}, "E711", "makes 14 executions; limits.executions is 10"),
        ([{"v": 1}, 2], {}, "E709", "split returned a list of what are no objects"),
        ([{"v": "x" * 600_000}], {}, "E711", "what is kept of the outputs of split is 600010 bytes"),
        ("text", {}, "E709", "split returned 'text', which is no object"),
    ],
)
def test_outputs_have_limits(outputs: Any, limits: dict[str, int], code: str, text: str) -> None:
    """Outputs that are too many, too large or of no shape fail their execution with the limit's name."""
    plan = plan_of(fan(), limits=limits, retry_policy={"max_retries": 0})
    run, todo = started(plan)
    machine.apply(plan, run, result(todo.ready[0], outputs=outputs), 1000)
    why = run.executions["split"].why[0]
    assert why["code"] == code
    assert text in why["text"]
    assert run.state == "FAILED"


def test_outputs_that_nothing_refers_to_have_no_limit() -> None:
    """They are kept for people while they are small, and large ones do not fail their execution."""
    plan = plan_of(chain("a"))
    for outputs, seen in (
        ([{"n": 1}], [{"n": 1}]),
        ([{"n": "x" * 1000}] * 1000, None),
        ({"n": "x" * 600_000}, {}),
    ):
        run, todo = started(plan)
        machine.apply(plan, run, result(todo.ready[0], outputs=outputs), 1000)
        assert (run.state, run.executions["a"].outputs) == ("SUCCESS", seen)


def test_what_is_collected_has_a_limit() -> None:
    """A node that unites more than 512 KiB fails, and the text says to pass references."""
    plan = plan_of(fan())
    run, todo = started(plan)
    answered(plan, run, todo, by_node(split=THREE, work={"outputs": {"v": "x" * 200_000}}))
    why = run.executions["sum"].why[0]
    assert (why["code"], why["text"][:50]) == ("E711", "the inputs of sum are 600021 bytes together; 52428")


def test_an_error_may_stop_the_run() -> None:
    """With `on_error: stop` what is open is cancelled at the first ERRORED that no ALL_DONE takes."""
    for strategy, state in (("ALL_SUCCESS", "FAILED"), ("ALL_DONE", "RUNNING")):
        plan = plan_of(fan(strategy=strategy), on_error="stop")
        run, todo = started(plan)
        todo = machine.apply(plan, run, result(todo.ready[0], **THREE), 1000)
        machine.dispatched(run, "work/split.0", 1000)
        todo = machine.apply(plan, run, result(todo.ready[1], **ERROR), 1000)
        assert (run.state, todo.is_finished, todo.is_gone) == (state, state == "FAILED", state == "FAILED")
    assert states(run)["work/split.0"] == "QUEUED"


def test_texts_only() -> None:
    """With `strings_only` each input is a text: other values become their JSON."""
    nodes = chain("a", "b")
    nodes[1]["inputs"]["more"] = {"x": [1]}
    plan = plan_of(nodes, strings_only=True)
    run, todo = started(plan, inputs={"v": 7})
    assert todo.ready[0].inputs == {"v": "7"}
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": None}), 1000)
    assert todo.ready[0].inputs == {"v": "null", "more": '{"x":[1]}'}


def test_the_machine_knows_neither_time_nor_luck() -> None:
    """What decides about a run imports no clock and no chance, so that all who drive it get the same."""
    for module in (
        machine,
        advance,
        branches,
        outcomes,
        retrying,
        runs,
        sizes,
        slices,
        plan_module,
        progress,
    ):
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert not imported & {"time", "random", "datetime", "secrets", "uuid", "os", "asyncio"}, module
