"""Faults that other schedulers had with mapped tasks, kept as rules of ours.

Airflow skipped what joins a mapped group before the group had expanded, or where it expanded to nothing
(apache/airflow#39801, #59289). Dagster skipped what follows a mapped step when the steps that had failed were
run again (dagster-io/dagster#19490, #30077, #30972).
"""

from __future__ import annotations

from processor.graphs import machine
from processor.graphs.progress import Execution, Message
from tests.graphing import answered, chain, fan, plan_of, result, started, states

ERROR: Message = {"error": {"code": "E304", "text": "ValueError: no"}, "final": True}


def test_nothing_is_joined_before_the_fan_out_is_known() -> None:
    """While a fan-out is pruned beside it, tried again or waiting, what unites it is undecided."""
    nodes = fan()
    nodes[0]["identifier"] = "split"
    first = {"identifier": "a", "inputs": {"v": "initial"}, "next_nodes": ["split", "other"]}
    nodes[0]["inputs"] = {"v": "${{ a.outputs.v }}"}
    plan = plan_of([first, *nodes, {"identifier": "other"}], retry_policy={"max_retries": 1})
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000)
    split, other = todo.ready
    machine.apply(plan, run, result(other, prune={}), 1000)
    todo = machine.apply(plan, run, result(split, error={"text": "no"}), 1000)
    assert "sum" not in states(run)
    (timer,) = todo.timers.values()
    todo = machine.apply(plan, run, timer.message, timer.at_ms)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=[{"v": 0}, {"v": 1}]), 9000)
    assert [each.x for each in todo.ready] == ["work/split.0", "work/split.1"]
    answered(plan, run, todo, lambda each: {"outputs": {"v": 1}})
    assert (run.state, states(run)["sum"]) == ("SUCCESS", "SUCCESS")


def test_a_fan_out_of_nothing_is_joined() -> None:
    """What unites an empty fan-out runs, once, with empty lists; it is not skipped."""
    plan = plan_of(fan())
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=[]), 1000)
    assert [(each.x, each.inputs) for each in todo.ready] == [("sum", {"values": []})]


def test_what_follows_a_mapped_step_runs_after_its_retry() -> None:
    """A retry of the branches that failed runs what follows them, there and behind the unite."""
    split, work, after, last = chain("split", "work", "after", "last")
    last |= {"inputs": {"values": "${{ after.outputs.v }}"}, "unites": {"identifier": "split"}}
    plan = plan_of([split, work, after, last])
    run, todo = started(plan)

    def outcome(each: Execution) -> Message:
        if each.x == "split":
            return {"outputs": [{"v": number} for number in range(4)]}
        return ERROR if each.x in ("work/split.1", "work/split.3") else {"outputs": {"v": each.inputs["v"]}}

    answered(plan, run, todo, outcome)
    assert (run.state, states(run)["last"]) == ("FAILED", "SKIPPED")
    todo = machine.apply(plan, run, {"t": "control", "run": "r", "id": "1", "what": "retry", "x": None}, 2000)
    ran: list[str] = []

    def fine(each: Execution) -> Message:
        ran.append(each.x)
        return {"outputs": {"v": each.inputs.get("v")}}

    answered(plan, run, todo, fine)
    assert ran == ["work/split.1", "work/split.3", "after/split.1", "after/split.3", "last"]
    assert (run.state, run.executions["last"].united) == (
        "SUCCESS",
        {"success": 4, "errored": 0, "pruned": 0},
    )
