"""Steering a run: cancel, pause, resume, retry, store; and runs that are cut into slices."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.graphs import machine, runs
from processor.graphs.plan import Plan
from processor.graphs.progress import Execution, GraphRun, Message, Todo
from tests.graphing import Nodes, answered, chain, fan, plan_of, result, started, states

ERROR: Message = {"error": {"code": "E304", "text": "ValueError: no"}, "final": True}


def control(what: str, id: str = "1", **more: Any) -> Message:
    return {"t": "control", "run": "r", "id": id, "what": what, "x": None, "by": "ann", **more}


def fine(each: Execution) -> Message:
    return {"outputs": {"v": 1}}


def broken(*xs: str) -> Any:
    return lambda each: ERROR if each.x in xs else fine(each)


def test_a_run_is_cancelled() -> None:
    """Cancel ends all that is open, and says who asked and why; a second one changes nothing."""
    plan = plan_of(chain("a", "b"), timeout_s=60)
    run, _ = started(plan)
    machine.dispatched(run, "a", 1000)
    todo = machine.apply(plan, run, control("cancel", reason="wrong day"), 1000)
    assert (run.state, states(run), run.fault) == (
        "CANCELLED", {"a": "CANCELLED"}, {"code": "", "text": "cancelled by ann: wrong day"}
    )  # fmt: skip
    assert (todo.is_finished, todo.is_gone, list(todo.needless)) == (True, True, ["late"])
    assert not machine.apply(plan, run, control("cancel", id="2"), 1000)


def test_a_run_that_has_not_begun_is_cancelled() -> None:
    """A run with a delay is cancelled before it began, with its timer."""
    plan = plan_of(chain("a"))
    run, _ = started(plan, delay_ms=500)
    assert list(machine.apply(plan, run, control("cancel"), 1000).needless) == ["start"]
    assert run.state == "CANCELLED"
    assert [each.x for each in again(plan, run).ready] == ["a"]
    assert (run.state, run.ended) == ("RUNNING", 0)


def test_a_run_is_paused_and_resumed() -> None:
    """While a run is paused results are kept and nothing new is begun; resume goes on from there."""
    plan = plan_of(chain("a", "b", "c"))
    run, todo = started(plan)
    machine.apply(plan, run, control("pause"), 1000)
    assert not machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000).ready
    assert states(run) == {"a": "SUCCESS", "b": "CREATED"}
    assert not machine.apply(plan, run, {"t": "go", "run": "r"}, 1000).ready
    todo = machine.apply(plan, run, control("resume", id="2"), 1000)
    assert [each.inputs for each in todo.ready] == [{"v": 1}]
    answered(plan, run, todo, fine)
    assert run.state == "SUCCESS"


def test_what_falls_due_in_a_pause_waits_for_its_end() -> None:
    """A try that is due while its run is paused is made when it is resumed."""
    plan = plan_of(chain("a"))
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], error={"text": "no"}), 1000)
    machine.apply(plan, run, control("pause"), 1000)
    (timer,) = todo.timers.values()
    assert not machine.apply(plan, run, timer.message, timer.at_ms).ready
    todo = machine.apply(plan, run, control("resume", id="2"), 9000)
    assert [each.attempt for each in todo.ready] == [2]


def test_an_ended_run_is_paused_no_more() -> None:
    """A pause is over when the run has ended: who tries it again goes on at once."""
    plan = plan_of(chain("a"))
    run, _ = started(plan)
    machine.apply(plan, run, control("pause"), 1000)
    machine.apply(plan, run, control("cancel", id="2"), 1000)
    assert [each.x for each in again(plan, run).ready] == ["a"]


def test_orders_to_runs_below_have_ids_of_their_own() -> None:
    """Cancel, retry and cancel in the same moment are three orders to the slices, and all are obeyed."""
    plan, run, todo = sliced(65)
    ids = []
    for at, what in enumerate(("cancel", "retry", "cancel")):
        todo = machine.apply(plan, run, control(what, id=str(at)), 1000)
        ids += [each["id"] for each in todo.sends]
    assert len(set(ids)) == len(ids) == 6


def test_the_same_order_counts_once() -> None:
    """A control message that was seen before, by its id, is not obeyed again."""
    plan = plan_of(chain("a"))
    run, _ = started(plan)
    machine.apply(plan, run, control("pause"), 1000)
    machine.apply(plan, run, control("resume", id="2"), 1000)
    machine.apply(plan, run, control("pause"), 1000)
    assert not run.is_paused


def test_people_change_the_store() -> None:
    """Values that are stored by hand are seen by what begins after."""
    nodes = chain("a", "b")
    nodes[1]["inputs"] = {"k": "${{ store.k }}"}
    plan = plan_of(nodes, store_config={"required_keys": ["k"]})
    run, todo = started(plan, store={"k": 1})
    machine.apply(plan, run, control("store", value={"k": 2}), 1000)
    assert machine.apply(plan, run, result(todo.ready[0], outputs=None), 1000).ready[0].inputs == {"k": 2}


def test_a_store_has_what_a_graph_requires() -> None:
    """A run without a required key is FAILED at once (E707); defaults stand for what is not given."""
    config = {"required_keys": ["cursor", "batch"], "default_values": {"cursor": "0"}}
    plan = plan_of(chain("a"), store_config=config)
    run, todo = started(plan)
    assert (run.state, todo.is_finished) == ("FAILED", True)
    assert run.fault == {"code": "E707", "text": "store keys 'batch' are missing and have no default"}
    run, todo = started(plan, store={"batch": 7})
    assert todo.ready[0].store == {"cursor": "0", "batch": 7}


def test_an_execution_sees_the_store_as_it_was_when_it_began() -> None:
    """Sets come with results, in their order; what has begun keeps what it saw."""
    nodes = chain("a", "b")
    nodes[0]["next_nodes"] = ["b", "c"]
    nodes.append({"identifier": "c"})
    plan = plan_of(nodes)
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}, sets=[["k", 1]]), 1000)
    for each, value in zip(todo.ready, (2, 3), strict=True):
        assert each.store == {"k": 1}
        machine.apply(plan, run, result(each, outputs=None, sets=[["k", value], [f"{each.x}", value]]), 1000)
    assert run.store == {"k": 3, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("sets", "code", "text"),
    [
        ([["k", "x" * 70_000]], "E711", "the value of 'k' in the store is 70002 bytes; 65536 are the most"),
        ([[f"k{n}", "x" * 60_000] for n in range(20)], "E711", "with 'k19'; 262144 are the most"),
        ([["k"]], "E709", "sets of the store are lists of a key and a value, and of who"),
    ],
)
def test_a_store_has_limits(sets: Any, code: str, text: str) -> None:
    """A set that is too large fails its execution, and changes nothing."""
    plan = plan_of(chain("a"))
    run, todo = started(plan)
    machine.apply(plan, run, result(todo.ready[0], outputs=None, sets=sets), 1000)
    assert (run.executions["a"].why[0]["code"], run.store) == (code, {})
    assert text in run.executions["a"].why[0]["text"]


def again(plan: Plan, run: GraphRun, **more: Any) -> Todo:
    return machine.apply(plan, run, control("retry", id=f"again{more}", **more), 9000)


def test_what_failed_is_tried_again_by_hand() -> None:
    """A retry begins all that is ERRORED as new attempts, and arms the unites that they skipped."""
    plan = plan_of(fan(), timeout_s=60)
    run, todo = started(plan)
    outputs = {"split": {"outputs": [{"v": 0}, {"v": 1}, {"v": 2}]}, "work/split.1": ERROR}
    answered(plan, run, todo, lambda each: outputs.get(each.x) or fine(each))
    assert (run.state, run.executions["sum"].state) == ("FAILED", "SKIPPED")
    todo = again(plan, run)
    assert [(each.x, each.attempt, each.inputs) for each in todo.ready] == [("work/split.1", 2, {"v": 1})]
    assert (run.state, todo.timers["late"].at_ms) == ("RUNNING", 69_000)
    answered(plan, run, todo, fine)
    assert (run.state, states(run)["sum"], run.errored) == ("SUCCESS", "SUCCESS", 0)
    assert not again(plan, run)


def test_a_cancelled_run_goes_on_by_a_retry() -> None:
    """What was CANCELLED is begun again, too."""
    plan = plan_of(chain("a", "b"))
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000)
    machine.apply(plan, run, control("cancel"), 1000)
    answered(plan, run, again(plan, run), fine)
    assert (run.state, run.fault) == ("SUCCESS", None)


def test_one_execution_is_tried_again() -> None:
    """A retry of one execution leaves the others as they are; of one that succeeded it does nothing."""
    nodes = chain("a", "b")
    nodes[0]["next_nodes"] = ["b", "c"]
    nodes.append({"identifier": "c"})
    plan = plan_of(nodes)
    run, todo = started(plan)
    answered(plan, run, todo, broken("b", "c"))
    assert not again(plan, run, x="a")
    answered(plan, run, again(plan, run, x="b"), fine)
    assert (run.state, states(run)) == ("FAILED", {"a": "SUCCESS", "b": "SUCCESS", "c": "ERRORED"})


def test_what_came_of_an_execution_is_taken_back() -> None:
    """A retry with `after` runs an execution and everything behind it again; old results are nobody's."""
    plan = plan_of(fan())
    run, todo = started(plan)
    stale: list[Message] = []

    def outcome(each: Execution) -> Message:
        stale.append(result(each, outputs={"v": 9}))
        return {"outputs": [{"v": 0}, {"v": 1}]} if each.x == "split" else fine(each)

    answered(plan, run, todo, outcome)
    todo = again(plan, run, x="work/split.1", after=True)
    assert states(run) == {"split": "SUCCESS", "work/split.0": "SUCCESS", "work/split.1": "CREATED"}
    assert not any(machine.apply(plan, run, message, 9000) for message in stale)
    seen = []
    answered(plan, run, todo, lambda each: seen.append(each) or {"outputs": {"v": 5}})  # type: ignore[func-returns-value]
    assert [(each.x, each.attempt, each.inputs) for each in seen] == [
        ("work/split.1", 2, {"v": 1}), ("sum", 2, {"values": [1, 5]})
    ]  # fmt: skip
    assert run.state == "SUCCESS"


def test_what_is_under_way_beside_is_left_alone() -> None:
    """Taking back what came of an execution does not give up what was dispatched beside it."""
    plan = plan_of(fan())
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=[{"v": 0}, {"v": 1}, {"v": 2}]), 1000)
    machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000)
    for each in todo.ready[1:]:
        machine.dispatched(run, each.x, 1000)
    again_todo = again(plan, run, x="split", after=True)
    assert (again_todo.is_gone, [each.x for each in again_todo.ready]) == (False, ["split"])
    assert not machine.apply(plan, run, result(todo.ready[1], outputs={"v": 1}), 1000)


def test_a_failed_run_goes_on_from_its_record() -> None:
    """A record is enough to try a run again that failed, with inputs that a requeue gave."""
    plan = plan_of(chain("a", "b"))
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": 1}), 1000)
    todo = machine.apply(plan, run, result(todo.ready[0], requeue_ms=1, inputs={"page": 2}), 1000)
    (timer,) = todo.timers.values()
    todo = machine.apply(plan, run, timer.message, 1001)
    machine.apply(plan, run, result(todo.ready[0], **ERROR), 1001)
    record = orjson.loads(orjson.dumps(runs.record_of(run)))
    assert "large" not in record
    same = runs.revived(plan, record)
    todo = again(plan, same)
    assert [(each.x, each.attempt, each.inputs) for each in todo.ready] == [("b", 3, {"v": 1, "page": 2})]
    answered(plan, same, todo, fine)
    assert runs.record_of(same)["counts"] == {"SUCCESS": 2}


def sliced(count: int, nodes: Nodes | None = None, **keys: Any) -> tuple[Plan, GraphRun, Todo]:
    plan = plan_of(nodes or fan(), **keys)
    run, todo = started(plan)
    outputs = [{"v": number, "unused": "x"} for number in range(count)]
    return plan, run, machine.apply(plan, run, result(todo.ready[0], outputs=outputs), 1000)


def worked(plan: Plan, message: Message, outcome: Any = fine) -> tuple[GraphRun, Todo]:
    """A slice that ran to its end."""
    run, todo = machine.start(plan, message["run"], message, 1000)
    total = Todo()
    total.add(todo)
    total.add(answered(plan, run, todo, outcome))
    return run, total


def test_a_large_fan_out_is_cut_into_slices() -> None:
    """More than 64 outputs run in sub-runs of 64, which get what is used; what unites them gets all."""
    plan, run, todo = sliced(130)
    assert [(each["run"], len(each["outputs"])) for each in todo.sends] == [
        ("r/split.0", 64), ("r/split.64", 64), ("r/split.128", 2)
    ]  # fmt: skip
    assert todo.sends[2]["outputs"] == [{"v": 128}, {"v": 129}]
    assert states(run) == {"split": "QUEUED"}
    total = Todo()
    for message in reversed(todo.sends):
        part, done = worked(plan, message, lambda each: {"outputs": {"v": each.inputs["v"]}})
        assert part.state == "SUCCESS"
        (report,) = done.sends
        total.add(machine.apply(plan, run, report, 2000))
        assert not machine.apply(plan, run, report, 2000)
    assert total.ready[0].inputs == {"values": list(range(130))}
    assert total.ready[0].united == {"success": 130, "errored": 0, "pruned": 0}
    answered(plan, run, total, fine)
    assert (run.state, run.count, runs.record_of(run)["counts"]) == ("SUCCESS", 132, {"SUCCESS": 132})


def test_slices_are_sent_as_commits_can_hold_them() -> None:
    """At most 200 slices are sent at a time; a `go` sends more."""
    plan, run, todo = sliced(64 * 200 + 1, limits={"fan_out": 20_000})
    assert (len(todo.sends), todo.has_more) == (200, True)
    todo = machine.apply(plan, run, {"t": "go", "run": "r"}, 1000)
    assert ([each["first"] for each in todo.sends], todo.has_more) == ([12_800], False)


def test_what_slices_share_is_sent_once() -> None:
    """What nodes in slices look at before the fan-out comes with them, or is stored once if it is large."""
    nodes = chain("a", "split", "work")
    nodes[2]["inputs"] = {"first": "${{ a.outputs.v }}", "own": "${{ split.outputs.v }}"}
    for value, is_shared in (("short", False), ("x" * 2000, True)):
        plan = plan_of(nodes)
        run, todo = started(plan)
        todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": value}), 1000)
        todo = machine.apply(plan, run, result(todo.ready[0], outputs=[{"v": n} for n in range(65)]), 1000)
        message = todo.sends[1]
        assert ("seen_at" in message, [number for number, _ in todo.seen]) == (
            is_shared,
            [1] if is_shared else [],
        )
        if is_shared:
            assert message["seen_at"] == {"run": "r", "n": 1}
            message = {**message, "seen": todo.seen[0][1]}
        _, begun = machine.start(plan, message["run"], message, 1000)
        assert begun.ready[0].inputs == {"first": value, "own": 64}


def test_an_error_in_a_slice_skips_what_unites_it() -> None:
    """A slice tells its errors; the run is FAILED, and a retry asks only the slices that failed."""
    plan, run, todo = sliced(130)
    slices = {}
    for message in todo.sends:
        part, done = worked(plan, message, broken("work/split.70", "work/split.71"))
        slices[part.id] = part
        machine.apply(plan, run, done.sends[0], 2000)
        if part.state == "FAILED":
            failed = done.sends[0]
    assert (run.state, states(run)["sum"], slices["r/split.64"].state) == ("FAILED", "SKIPPED", "FAILED")
    record = runs.record_of(run)
    assert (record["counts"]["ERRORED"], record["large"]) == (2, True)
    assert [error["x"] for error in record["errors"]] == ["work/split.70", "work/split.71"]
    todo = again(plan, run)
    (order,) = todo.sends
    assert (order["run"], order["what"], states(run)) == ("r/split.64", "retry", {"split": "QUEUED"})
    part = slices["r/split.64"]
    assert not machine.apply(plan, run, failed, 9000)
    done = answered(plan, part, machine.apply(plan, part, order, 9000), fine)
    todo = machine.apply(plan, run, done.sends[-1], 9000)
    assert todo.ready[0].inputs == {"values": [1] * 130}


def test_slices_that_succeeded_after_a_cancel_are_not_run_again() -> None:
    """A retry of a run that was cancelled goes on from what its slices did meanwhile, if that is all."""
    plan, run, todo = sliced(65)
    first, second = todo.sends
    machine.apply(plan, run, worked(plan, first)[1].sends[0], 1000)
    machine.apply(plan, run, control("cancel"), 1000)
    report = worked(plan, second)[1].sends[0]
    machine.apply(plan, run, report, 1000)
    todo = again(plan, run)
    assert (todo.sends, [each.inputs for each in todo.ready]) == ([], [{"values": [1] * 65}])
    answered(plan, run, todo, fine)
    assert (run.state, runs.record_of(run)["counts"]) == ("SUCCESS", {"SUCCESS": 67})


def test_slices_that_were_not_sent_before_a_cancel_are_sent_by_a_retry() -> None:
    """A fan-out that was cancelled while slices were still to be sent goes on with these."""
    plan, run, todo = sliced(64 * 200 + 1, limits={"fan_out": 20_000})
    for message in todo.sends:
        machine.apply(plan, run, worked(plan, message)[1].sends[0], 1000)
    machine.apply(plan, run, control("cancel"), 1000)
    todo = again(plan, run)
    assert [(each["t"], each["first"]) for each in todo.sends] == [("slice", 12_800)]
    todo = machine.apply(plan, run, worked(plan, todo.sends[0])[1].sends[0], 1000)
    assert [each.x for each in todo.ready] == ["sum"]


def test_an_execution_in_a_slice_is_tried_again_by_name() -> None:
    """A retry of one execution that lies in a slice goes to that slice."""
    plan, run, todo = sliced(130)
    for message in todo.sends:
        machine.apply(plan, run, worked(plan, message, broken("work/split.70"))[1].sends[0], 2000)
    (order,) = again(plan, run, x="work/split.70").sends
    assert (order["run"], order["x"]) == ("r/split.64", "work/split.70")


def test_side_branches_in_slices_do_not_hold_a_unite_up() -> None:
    """A slice tells as soon as nothing in it leads to what unites it, and again at its end."""
    nodes = fan()
    nodes[0]["next_nodes"] = ["work", "side"]
    nodes.append({"identifier": "side"})
    plan, run, todo = sliced(65, nodes)
    parts, told = [], Todo()
    for message in todo.sends:
        part, todo = machine.start(plan, message["run"], message, 1000)
        side = [each for each in todo.ready if each.node.id == "side"]
        todo.ready = [each for each in todo.ready if each.node.id == "work"]
        for report in answered(plan, part, todo, fine).sends:
            assert not report["is_last"]
            told.add(machine.apply(plan, run, report, 1000))
        parts.append((part, side))
    assert [each.x for each in told.ready] == ["sum"]
    answered(plan, run, told, fine)
    assert (run.state, states(run)) == ("RUNNING", {"split": "QUEUED", "sum": "SUCCESS"})
    for part, side in parts:
        todo.ready = side
        for report in answered(plan, part, todo, fine).sends:
            machine.apply(plan, run, report, 1000)
    assert (run.state, runs.record_of(run)["counts"]) == ("SUCCESS", {"SUCCESS": 132})


def test_orders_reach_the_slices() -> None:
    """Pause, resume and cancel of a run are told to its slices that have not ended."""
    plan, run, todo = sliced(130)
    machine.apply(plan, run, worked(plan, todo.sends[0])[1].sends[0], 1000)
    for at, what in enumerate(("pause", "resume", "cancel")):
        todo = machine.apply(plan, run, control(what, id=str(at)), 1000)
        assert [(each["run"], each["what"]) for each in todo.sends] == [
            ("r/split.64", what), ("r/split.128", what)
        ]  # fmt: skip
    assert run.state == "CANCELLED"


def test_a_slice_stays_within_one_message() -> None:
    """Large outputs make smaller slices: none is larger than a message may be."""
    plan = plan_of(fan())
    run, todo = started(plan)
    outputs = [{"v": "x" * 20_000} for _ in range(65)]
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=outputs), 1000)
    assert sum(len(each["outputs"]) for each in todo.sends) == 65
    assert max(len(orjson.dumps(each)) for each in todo.sends) < 300_000


def test_what_a_run_keeps_is_written_when_it_changes() -> None:
    """A small run is one item; of a large one only what changed is written."""
    plan, run, _ = sliced(60)
    first = runs.change_of(run)
    assert (first.whole, sorted(first.items)) == (True, ["run", "x.0", "x.1", "x.2", "x.3"])
    machine.dispatched(run, "work/split.7", 1000)
    change = runs.change_of(run)
    assert (change.whole, sorted(change.items)) == (False, ["run", "x.0"])
    plan = plan_of(chain("a", "b"))
    run, _ = started(plan)
    change = runs.change_of(run)
    assert (change.is_small, list(change.items)) == (True, ["run"])
    assert runs.plan_of({"run": change.items["run"] or b""}) == ("g", plan.version)


def test_a_large_execution_is_an_item_of_its_own() -> None:
    """Executions share items while they are small; a large one has its own while it is."""
    plan, run, _ = sliced(60)
    runs.change_of(run)
    large = {"t": "result", "run": "r", "x": "work/split.7", "a": 1}
    machine.apply(plan, run, {**large, "outputs": {"v": "x" * 20_000}}, 1000)
    change = runs.change_of(run)
    assert sorted(change.items) == ["b.work/split.7", "run", "x.0"]
    assert len(change.items["x.0"] or b"") < 10_000
    machine.apply(plan, run, {**large, "x": "work/split.8", "outputs": {"v": 1}}, 1000)
    assert sorted(runs.change_of(run).items) == ["run", "x.0"]


def test_no_run_is_larger_than_a_commit() -> None:
    """Fan-outs in fan-outs are begun in slices once their run has some hundred executions."""
    nodes = chain("a", "b", "c")
    plan = plan_of(nodes)
    run, todo = started(plan)
    outputs = [{"v": number} for number in range(64)]
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=outputs), 1000)
    slices = 0
    for each in todo.ready:
        slices += len(machine.apply(plan, run, result(each, outputs=outputs), 1000).sends)
    assert (len(run.executions), slices) == (65 + 2 * 64, 62)
    assert len(runs.change_of(run).items) < 20


def test_what_goes_together_fits_a_message() -> None:
    """What a run is given, and each execution, has limits of its own, so that a message of them is sent."""
    plan = plan_of(chain("a", "b"))
    run, _ = started(plan, inputs={"v": "x" * 300_000})
    assert (run.state, run.fault) == (
        "FAILED", {"code": "E711", "text": "the inputs of the run are 300008 bytes; 262144 are the most"}
    )  # fmt: skip
    run, _ = started(plan, store={"k": "x" * 70_000})
    assert run.fault is not None
    assert run.fault["text"] == "the value of 'k' in the store is 70002 bytes; 65536 are the most"
    nodes = chain("a", "b")
    nodes[1]["inputs"] = {"one": "${{ a.outputs.v }}", "two": "${{ a.outputs.v }}"}
    run, todo = started(plan := plan_of(nodes))
    machine.apply(plan, run, result(todo.ready[0], outputs={"v": "x" * 300_000}), 1000)
    assert run.executions["b"].why[0]["code"] == "E711"


def test_a_slice_that_has_too_much_says_so() -> None:
    """What a slice has for others is bounded as what one execution has; who looks at more of it fails."""
    plan, run, todo = sliced(65)
    for message in todo.sends:
        _, done = worked(plan, message, lambda each: {"outputs": {"v": "x" * 10_000}})
        assert len(orjson.dumps(done.sends[0])) < 1_000_000
        machine.apply(plan, run, done.sends[0], 1000)
    assert (run.state, run.executions["sum"].why[0]["code"]) == ("FAILED", "E711")


def test_a_record_has_its_limits() -> None:
    """Outputs above 2 KiB are cut to their size in a record, and executions above 64 KiB are left out."""
    plan = plan_of(chain("a", "b"))
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs={"v": "x" * 3000}), 1000)
    machine.apply(plan, run, result(todo.ready[0], **ERROR), 1000)
    record = runs.record_of(run)
    assert (record["executions"][0]["outputs"], record["large"]) == ({"cut": 3008}, True)
    nodes = fan()
    nodes[1]["retry"] = {"max_retries": 0}
    plan = plan_of(nodes)
    run, todo = started(plan)
    answered(
        plan,
        run,
        todo,
        lambda each: (
            {"outputs": [{"v": "x" * 1800}] * 60} if each.x == "split" else {"outputs": {"v": "y" * 1800}}
        ),
    )
    record = runs.record_of(run)
    assert (record["executions"], record["counts"], record["large"]) == ([], {"SUCCESS": 62}, True)


def test_reasons_are_bounded() -> None:
    """The last ten reasons of an execution are kept, each with 500 characters."""
    plan = plan_of(chain("a"), retry_policy={"max_retries": 30, "strategy": "FIXED"})
    run, todo = started(plan)
    for _ in range(15):
        todo = machine.apply(plan, run, result(todo.ready[0], error={"text": "x" * 900}), 1000)
        (timer,) = todo.timers.values()
        todo = machine.apply(plan, run, timer.message, timer.at_ms)
    assert [why["a"] for why in run.executions["a"].why] == list(range(6, 16))
    assert {len(why["text"]) for why in run.executions["a"].why} == {500}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(["x", "a", "outputs", "error", "final", "prune", "requeue_ms", "inputs", "sets"]),
        JSON,
    ),
    st.dictionaries(st.sampled_from(["id", "what", "x", "by", "reason", "value", "after", "up"]), JSON),
)
def test_no_message_breaks_a_run(said: Message, steered: Message) -> None:
    """Whatever a worker or a person sends, a run takes it or leaves it, and can be written down after."""
    plan = plan_of(fan(), retry_policy={"max_retries": 1})
    run, _ = started(plan)
    machine.apply(plan, run, {"t": "result", "run": "r", "x": "split", "a": 1, **said}, 1000, 0.5)
    for what in ("retry", "signal", "store", "pause", "resume", "cancel"):
        machine.apply(plan, run, {"t": "control", "run": "r", "what": what, **steered}, 1000)
    assert run.open == sum(each.is_open for each in run.executions.values())
    change = runs.change_of(run)
    items = {name: value for name, value in change.items.items() if value is not None}
    assert runs.record_of(runs.run_of(plan, "r", items))["counts"] == runs.record_of(run)["counts"]
