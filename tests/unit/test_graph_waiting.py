"""What an execution waits for: its next try, its own wish, a result in time, a signal, a run below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from processor.graphs import machine
from processor.graphs.local import JumpingClock, LocalRuns
from processor.graphs.plan import Plan
from processor.graphs.progress import Execution, GraphRun, Message, Todo
from tests.graphing import chain, plan_of, result, started, states

ERROR: Message = {"error": {"code": "E304", "text": "ValueError: no", "traceback": "in execute"}}


def only_timer(todo: Todo) -> tuple[str, int]:
    (timer,) = todo.timers.values()
    return timer.name, timer.at_ms


def rung(plan: Plan, run: GraphRun, todo: Todo) -> Todo:
    """What the one timer of this Todo makes when it is due."""
    (timer,) = todo.timers.values()
    return machine.apply(plan, run, timer.message, timer.at_ms)


@pytest.mark.parametrize(
    ("strategy", "waits_ms"),
    [
        ("EXPONENTIAL", [100, 300, 900, 1000]),
        ("EXPONENTIAL_FULL_JITTER", [25, 75, 225, 250]),
        ("EXPONENTIAL_EQUAL_JITTER", [62, 188, 562, 625]),
        ("LINEAR", [100, 200, 300, 400]),
        ("LINEAR_FULL_JITTER", [25, 50, 75, 100]),
        ("LINEAR_EQUAL_JITTER", [62, 125, 188, 250]),
        ("FIXED", [100, 100, 100, 100]),
        ("FIXED_FULL_JITTER", [25, 25, 25, 25]),
        ("FIXED_EQUAL_JITTER", [62, 62, 62, 62]),
    ],
)
def test_what_failed_is_tried_again_after_its_wait(strategy: str, waits_ms: list[int]) -> None:
    """Each of the nine strategies waits as it says, at most `max_delay`; after the last try it is ERRORED."""
    policy = {"max_retries": 4, "strategy": strategy, "backoff_factor": 100, "exponent": 3, "max_delay": 1000}
    plan = plan_of(chain("a"), retry_policy=policy)
    run, todo = started(plan)
    for attempt, wait_ms in enumerate(waits_ms, 1):
        todo = machine.apply(plan, run, result(todo.ready[0], **ERROR), 5000, luck=0.25)
        assert states(run) == {"a": "WAITING"}
        assert only_timer(todo) == ("retry.a", 5000 + wait_ms)
        todo = rung(plan, run, todo)
        assert [(each.attempt, each.inputs) for each in todo.ready] == [(attempt + 1, {"v": 0})]
    todo = machine.apply(plan, run, result(todo.ready[0], **ERROR), 5000)
    assert (run.state, states(run), todo.is_finished) == ("FAILED", {"a": "ERRORED"}, True)
    assert [why["a"] for why in run.executions["a"].why] == [1, 2, 3, 4, 5]
    assert run.executions["a"].why[-1]["traceback"] == "in execute"


@pytest.mark.parametrize(
    "outcome", [{**ERROR, "final": True}, {"error": {"code": "E709", "text": "n: no integer"}}]
)
def test_what_no_second_try_can_change_is_not_tried_again(outcome: Message) -> None:
    """An error that is final, by itself or by its code, is ERRORED after its first try."""
    plan = plan_of(chain("a"))
    run, todo = started(plan)
    machine.apply(plan, run, result(todo.ready[0], **outcome), 1000)
    assert states(run) == {"a": "ERRORED"}


def test_a_retry_of_a_node_is_its_own() -> None:
    """A node with a policy of its own is tried as that says."""
    nodes = chain("a")
    nodes[0]["retry"] = {"max_retries": 0}
    plan = plan_of(nodes)
    run, todo = started(plan)
    machine.apply(plan, run, result(todo.ready[0], **ERROR), 1000)
    assert run.state == "FAILED"


def test_a_node_may_ask_to_be_run_again() -> None:
    """A requeue is no failed try: it waits as long as it asks for, with other inputs if it gives some."""
    plan = plan_of(chain("a"), retry_policy={"max_retries": 0})
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], requeue_ms=250), 1000)
    assert only_timer(todo) == ("retry.a", 1250)
    todo = rung(plan, run, todo)
    assert (todo.ready[0].attempt, todo.ready[0].inputs) == (2, {"v": 0})
    todo = rung(
        plan, run, machine.apply(plan, run, result(todo.ready[0], requeue_ms=0, inputs={"v": 5}), 1000)
    )
    assert todo.ready[0].inputs == {"v": 5}
    machine.apply(plan, run, result(todo.ready[0], outputs={"v": 5}), 1000)
    assert (run.state, run.executions["a"].requeues) == ("SUCCESS", 2)


def test_nothing_asks_to_be_run_again_for_ever() -> None:
    """After a thousand requeues an execution fails with E711."""
    plan = plan_of(chain("a"))
    run, todo = started(plan)
    for _ in range(1000):
        todo = rung(plan, run, machine.apply(plan, run, result(todo.ready[0], requeue_ms=0), 1000))
    machine.apply(plan, run, result(todo.ready[0], requeue_ms=0), 1000)
    assert (run.state, run.executions["a"].why[-1]["code"]) == ("FAILED", "E711")


@pytest.mark.parametrize(
    "requeue", [{"requeue_ms": "soon"}, {"requeue_ms": -1}, {"requeue_ms": 1, "inputs": [1]}]
)
def test_a_wish_that_makes_no_sense_is_an_error(requeue: Message) -> None:
    """What an external worker sends may be any JSON; it cannot break a run."""
    plan = plan_of(chain("a"))
    run, todo = started(plan)
    machine.apply(plan, run, result(todo.ready[0], **requeue), 1000)
    assert (states(run), run.executions["a"].why[0]["code"]) == ({"a": "ERRORED"}, "E709")


def test_a_result_that_is_late_is_not_waited_for() -> None:
    """What was dispatched fails after `timeout_s` (E710), is tried again, and its first result is stale."""
    nodes = chain("a")
    nodes[0]["timeout_s"] = 2
    plan = plan_of(nodes)
    run, todo = started(plan)
    first = todo.ready[0]
    todo = machine.dispatched(run, "a", 1000)
    assert (only_timer(todo), states(run)) == (("late.a", 3000), {"a": "QUEUED"})
    again = rung(plan, run, todo)
    assert run.executions["a"].why[0]["text"] == "no result within 2 s (timeout_s of a)"
    assert not machine.apply(plan, run, result(first, outputs={"v": 1}), 3001)
    second = rung(plan, run, again).ready[0]
    machine.dispatched(run, "a", 3000)
    done = machine.apply(plan, run, result(second, outputs={"v": 1}), 3500)
    assert (run.state, list(done.needless)) == ("SUCCESS", ["late.a"])


def test_a_run_has_its_own_time() -> None:
    """A run that lasts longer than `timeout_s` is FAILED, and what is open CANCELLED."""
    plan = plan_of(chain("a", "b"), timeout_s=10)
    run, todo = started(plan)
    assert only_timer(todo) == ("late", 11_000)
    ready = machine.dispatched(run, "a", 1000)
    late = rung(plan, run, todo)
    assert not ready.timers
    assert (run.state, states(run), late.is_gone) == ("FAILED", {"a": "CANCELLED"}, True)
    assert run.fault == {"code": "E710", "text": "the run had no result within 10 s (timeout_s)"}
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000)
    last = machine.apply(plan, run, result(todo.ready[0], **ERROR, final=True), 1000)
    assert list(last.needless) == ["late"]


def test_a_run_may_begin_later() -> None:
    """A run with a delay is CREATED until it is over."""
    plan = plan_of(chain("a"))
    run, todo = started(plan, delay_ms=500)
    assert (run.state, todo.ready, only_timer(todo)) == ("CREATED", [], ("start", 1500))
    assert [each.x for each in rung(plan, run, todo).ready] == ["a"]
    assert run.state == "RUNNING"


def test_what_has_no_processor_waits_and_looks_again() -> None:
    """An execution of a kind that nobody has waits with E704, longer each time, or until a `go`."""
    plan = plan_of(chain("a"))
    run, _ = started(plan)
    for wait_ms in (1000, 2000, 4000):
        todo = machine.waits(run, "a", "no kind 'app/Step' is registered", 1000)
        assert only_timer(todo) == ("retry.a", 1000 + wait_ms)
        assert [each.x for each in rung(plan, run, todo).ready] == ["a"]
    assert [why["code"] for why in run.executions["a"].why] == ["E704"]
    machine.waits(run, "a", "no kind", 1000)
    todo = machine.apply(plan, run, {"t": "go", "run": "r"}, 1000)
    assert ([each.x for each in todo.ready], list(todo.needless)) == (["a"], ["retry.a"])
    machine.apply(plan, run, result(todo.ready[0], outputs=None), 1000)
    assert run.state == "SUCCESS"


def waiting(**inputs: Any) -> tuple[Plan, GraphRun, Todo]:
    nodes = [
        {
            "identifier": "ask",
            "node_name": "Wait",
            "inputs": {"signal": "approve", **inputs},
            "next_nodes": ["b"],
        },
        {"identifier": "b", "inputs": {"v": "${{ ask.outputs.value }}"}},
    ]
    plan = plan_of(nodes)
    run, todo = started(plan)
    return plan, run, todo


def signal(value: Any = None, x: str | None = "approve", id: str = "1") -> Message:
    return {"t": "control", "run": "r", "id": id, "what": "signal", "x": x, "value": value}


@pytest.mark.parametrize("x", ["approve", "ask", None])
def test_a_wait_ends_by_its_signal(x: str | None) -> None:
    """A Wait gives the value of its signal, by the signal's name, by its own, or by none."""
    plan, run, todo = waiting(timeout_s=60)
    assert (states(run), only_timer(todo)) == ({"ask": "WAITING"}, ("late.ask", 61_000))
    todo = machine.apply(plan, run, signal({"by": "ann"}, x), 1000)
    assert (todo.ready[0].inputs, list(todo.needless)) == ({"v": {"by": "ann"}}, ["late.ask"])
    assert not machine.apply(plan, run, signal("again", x), 1000)


def test_a_signal_of_another_name_ends_no_wait() -> None:
    """A signal is for the Wait that has its name."""
    plan, run, _ = waiting()
    machine.apply(plan, run, signal(1, "deny"), 1000)
    assert states(run) == {"ask": "WAITING"}


def test_a_signal_may_come_before_its_wait() -> None:
    """A signal is kept until the Wait that it is for begins."""
    nodes = chain("a", "ask")
    nodes[1] |= {"node_name": "Wait", "inputs": {"signal": "approve"}}
    plan = plan_of(nodes, outputs={"said": "${{ ask.outputs.value }}"})
    run, todo = started(plan)
    machine.apply(plan, run, signal("yes"), 1000)
    machine.apply(plan, run, result(todo.ready[0], outputs=None), 1000)
    assert (run.state, run.outputs) == ("SUCCESS", {"said": "yes"})


def test_a_wait_may_be_in_vain() -> None:
    """A Wait whose signal does not come in time is ERRORED with E710, and not tried again."""
    plan, run, todo = waiting(timeout_s=60)
    rung(plan, run, todo)
    assert (run.state, states(run)) == ("FAILED", {"ask": "ERRORED"})
    assert run.executions["ask"].why[0]["text"] == "no signal 'approve' within 60 s (timeout_s of ask)"


def nested(**node: Any) -> tuple[Plan, GraphRun, Todo]:
    nodes = chain("a", "b")
    nodes[0] |= {"node_name": "graph:other", "inputs": {"n": 1}, **node}
    plan = plan_of(nodes, retry_policy={"max_retries": 1, "strategy": "FIXED", "backoff_factor": 10})
    run, todo = started(plan)
    return plan, run, todo


def child(state: str, a: int = 1, **more: Any) -> Message:
    return {"t": "child", "run": "r", "x": "a", "a": a, "state": state, "outputs": {"v": 3}, **more}


def test_a_node_may_be_another_graph() -> None:
    """A nested graph is a run of its own; what that returns are the outputs of the node."""
    plan, run, todo = nested()
    (message,) = todo.sends
    assert (message["t"], message["run"], message["graph"], message["inputs"]) == (
        "start",
        "r~a",
        "other",
        {"n": 1},
    )
    assert message["up"] == {"run": "r", "x": "a", "a": 1, "depth": 1}
    todo = machine.apply(plan, run, child("SUCCESS"), 1000)
    assert todo.ready[0].inputs == {"v": 3}


def test_a_retry_goes_down_to_the_run_below() -> None:
    """A nested graph that failed is tried again by a retry of what failed in it, and is told who asked."""
    plan, run, todo = nested()
    todo = machine.apply(plan, run, child("FAILED", error={"code": "E304", "text": "ValueError: no"}), 1000)
    assert run.executions["a"].why[0]["text"] == "run r~a is FAILED: E304 ValueError: no"
    (message,) = rung(plan, run, todo).sends
    assert (message["t"], message["what"], message["run"]) == ("control", "retry", "r~a")
    assert message["up"]["a"] == 2
    assert not machine.apply(plan, run, child("SUCCESS", a=1), 1000)
    machine.apply(plan, run, child("FAILED", a=2), 1000)
    assert run.state == "FAILED"


def test_a_run_below_that_is_late_is_cancelled() -> None:
    """`timeout_s` of a node that is a graph cancels its run."""
    plan, run, todo = nested(timeout_s=1)
    (order,) = rung(plan, run, todo).sends
    assert (order["what"], order["run"], states(run)) == ("cancel", "r~a", {"a": "WAITING"})


def test_who_is_gone_is_not_waited_for() -> None:
    """A retry of a run of which nothing is known any more is answered, so that nothing waits for it."""
    plan, run, todo = nested()
    todo = machine.apply(plan, run, child("FAILED"), 1000)
    (order,) = rung(plan, run, todo).sends
    (answer,) = machine.answer(order, None)
    machine.apply(plan, run, answer, 1000)
    assert (run.state, run.executions["a"].why[-1]["code"]) == ("FAILED", "E708")
    done = {"state": "SUCCESS", "outputs": {"v": 9}, "errors": []}
    (answer,) = machine.answer(order, done)
    assert (answer["t"], answer["a"], answer["outputs"]) == ("child", 2, {"v": 9})
    assert machine.answer(signal(), None) == []


def test_graphs_do_not_nest_for_ever() -> None:
    """A graph that runs itself ends eight levels down, with E711."""
    plan = plan_of([{"identifier": "a", "node_name": "graph:g"}])
    up: Message | None = None
    for _ in range(8):
        run, todo = started(plan, up=up)
        up = todo.sends[0]["up"]
    run, todo = started(plan, up=up)
    assert (run.state, run.executions["a"].why[0]["code"]) == ("FAILED", "E711")
    assert todo.sends[0]["t"] == "child"


async def test_nothing_is_run_that_nobody_wants_any_more() -> None:
    """What became ready before its run was stopped or cancelled is not run after."""
    nodes = chain("a", "b")
    nodes[0]["next_nodes"] = ["b", "c"]
    nodes[1]["inputs"] = {"v": "${{ a.outputs.v }}"}
    nodes.append({"identifier": "c", "inputs": {"v": "${{ a.outputs.nothing }}"}})
    ran: list[str] = []

    async def execute(ready: Sequence[Execution]) -> list[Message]:
        ran.extend(each.x for each in ready)
        return [{"outputs": {"v": 1}} for _ in ready]

    local = LocalRuns({"g": plan_of(nodes, on_error="stop")}, execute, JumpingClock())
    run = await local.run({"t": "start", "run": "r", "graph": "g", "inputs": {"v": 1}})
    assert (ran, run.state, states(run)) == (
        ["a"], "FAILED", {"a": "SUCCESS", "b": "CANCELLED", "c": "ERRORED"}
    )  # fmt: skip
