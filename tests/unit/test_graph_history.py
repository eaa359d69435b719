"""The history of a run's store: what it remembers, how it is written, and what of it is given away."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.graphs import machine, runs
from processor.graphs.history import HISTORY_BYTES, StoreChange, read_changes, told, with_changes
from processor.graphs.inline import document
from processor.graphs.plan import Plan
from processor.graphs.progress import GraphRun
from processor.graphs.sizes import set_store
from tests.graphing import chain, fan, plan_of, result, started

KEPT = {"history": 1000}


def set_by(plan: Plan, run: GraphRun, x: str, *sets: list[Any], now_ms: int = 1000) -> Any:
    """What becomes ready when the first try of an execution ends well, and has set this."""
    message = {"t": "result", "run": "r", "x": x, "a": 1, "outputs": {"v": 1}, "sets": [*sets]}
    return machine.apply(plan, run, message, now_ms).ready


def test_a_run_remembers_who_changed_its_store() -> None:
    """Each change has its time, its author, the old and the new value; who says neither is the execution."""
    plan = plan_of(chain("a", "b", "c"), store_config={**KEPT, "default_values": {"n": 0}})
    run, _ = started(plan)
    assert not run.history
    set_by(plan, run, "a", ["n", 1], ["m.v1", [1], "reader", 990], now_ms=1001)
    [third] = set_by(plan, run, "b", ["n", 2, "writer", 1002])
    assert told(run.history) == {
        "n": [
            {"ts": 1001, "who": "a", "old": 0, "new": 1},
            {"ts": 1002, "who": "writer", "old": 1, "new": 2},
        ],
        "m.v1": [{"ts": 990, "who": "reader", "old": None, "new": [1]}],
    }
    assert third.history == run.history
    assert orjson.loads(document(third, {}))["history"] == run.history
    value = {"t": "control", "run": "r", "id": "1", "what": "store", "by": "ann", "value": {"n": 3}}
    machine.apply(plan, run, value, 1003)
    assert told(run.history)["n"][-1] == {"ts": 1003, "who": "ann", "old": 2, "new": 3}
    assert len(third.history["n"]) == 3  # what was given to an execution stays as it was


def test_without_the_key_nothing_is_remembered() -> None:
    """A graph that does not ask for it has no history, and its items and documents are as ever."""
    plan = plan_of(chain("a", "b"))
    run, _ = started(plan)
    [ready] = set_by(plan, run, "a", ["n", 1, "somebody", 990])
    assert (run.store, run.history) == ({"n": 1}, {})
    assert "history" not in orjson.loads(document(ready, {}))
    assert b"his" not in (runs.change_of(run).items["run"] or b"")


def test_a_key_has_its_last_changes() -> None:
    """Of each key so many as the graph says, and `old` of the first is what it was before."""
    history = with_changes({}, {"n": -1}, [StoreChange("n", each, "a", each) for each in range(5)], 2)
    assert told(history) == {"n": [
        {"ts": 3, "who": "a", "old": 2, "new": 3}, {"ts": 4, "who": "a", "old": 3, "new": 4},
    ]}  # fmt: skip


def test_the_oldest_changes_go_where_all_are_too_much() -> None:
    """Together they have 96 KiB; what is newer stays, of whichever key it is."""
    changes = [StoreChange(f"k{each % 3}", "x" * 9000, "a", each) for each in range(30)]
    history = with_changes({}, {}, changes, 1000)
    assert len(orjson.dumps(history)) <= HISTORY_BYTES
    kept = sorted(each["ts"] for log in told(history).values() for each in log)
    assert kept == list(range(30 - len(kept), 30))
    assert len(kept) == 7  # each key also has the value before
    assert with_changes({}, {"k": "x" * 60_000}, [StoreChange("k", "y" * 60_000, "a", 1)], 1000) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 50)), max_size=30))
def test_changes_told_are_those_made(made: list[tuple[str, int, int]]) -> None:
    """However they are made, one by one or together, old and new values meet, and the last is the store's."""
    store: dict[str, Any] = {"a": "given"}
    one_by_one: Any = {}
    for key, value, ts in made:
        one_by_one = with_changes(one_by_one, store, [StoreChange(key, value, "w", ts)], 1000)
        store[key] = value
    together = with_changes({}, {"a": "given"}, [StoreChange(k, v, "w", ts) for k, v, ts in made], 1000)
    assert one_by_one == together
    for key, log in told(together).items():
        assert [each["new"] for each in log] == [v for k, v, _ in made if k == key]
        assert [each["old"] for each in log[1:]] == [each["new"] for each in log[:-1]]
        assert log[0]["old"] == ("given" if key == "a" else None)
        assert log[-1]["new"] == store[key]


def test_it_outlives_its_processor_and_the_end_of_its_run() -> None:
    """It is in the items of a run, small or large, where it changed; and in the record, for a retry."""
    for size in (10, 6000):
        plan = plan_of(chain("a", "b"), store_config=KEPT)
        run, _ = started(plan)
        runs.change_of(run)
        [ready] = set_by(plan, run, "a", ["n", "x" * size, "reader", 990])
        change = runs.change_of(run)
        assert ("h" in change.items) == (size > 4096)
        items = {name: item for name, item in change.items.items() if item is not None}
        assert runs.run_of(plan, "r", items).history == run.history
        machine.dispatched(run, "b", 1000)
        assert "h" not in runs.change_of(run).items
        error = {"error": {"code": "E304", "text": "no"}, "final": True}
        machine.apply(plan, run, result(ready, **error), 1000)
        record = orjson.loads(orjson.dumps(runs.record_of(run)))
        assert (record["state"], told(record["history"])["n"][0]["who"]) == ("FAILED", "reader")
        assert runs.revived(plan, record).history == run.history


@pytest.mark.parametrize(
    "sets",
    [
        {"n": 1}, [["n"]], [["n", 1, "a"]], [["n", 1, "a", 1, 2]], [[1, 1]], [["n", 1, None, 1]],
        [["n", 1, "a", "1"]], [["n", 1, "a", -1]], [["n", 1, "a", 10**15]], [["n", 1, "a", 1.5]], ["n1"],
    ],
)  # fmt: skip
def test_what_is_no_list_of_changes_is_an_error_of_its_execution(sets: Any) -> None:
    """A result may come from anywhere: what it lists is read only where all of it can be."""
    assert read_changes(sets, "a", 1) is None
    plan = plan_of(chain("a"), store_config=KEPT, retry_policy={"max_retries": 0})
    run, _ = started(plan)
    machine.apply(plan, run, {"t": "result", "run": "r", "x": "a", "a": 1, "outputs": {}, "sets": sets}, 1000)
    assert (run.state, run.store, run.history) == ("FAILED", {}, {})
    assert runs.record_of(run)["errors"][0]["code"] == "E709"


def test_a_long_author_is_cut() -> None:
    """An author is 128 characters at most."""
    assert read_changes([["n", 1, "w" * 500, 1]], "a", 1) == [StoreChange("n", 1, "w" * 128, 1)]


def test_a_store_that_would_be_too_large_is_not_changed() -> None:
    """What is refused is not remembered, either."""
    run = GraphRun("r", "g", "1", 1)
    assert "65538 bytes" in set_store(run, [StoreChange("n", "x" * 65_536, "a", 1)], 1000)
    assert (run.store, run.history) == ({}, {})


def test_what_slices_set_is_a_change_by_the_node_that_was_split() -> None:
    """A slice remembers nothing itself; its run has one change of each key that it set."""
    plan = plan_of(fan(), store_config=KEPT)
    run, todo = started(plan)
    todo = machine.apply(plan, run, result(todo.ready[0], outputs=[{"v": each} for each in range(65)]), 1000)
    reports = []
    for number, message in enumerate(todo.sends):
        part, begun = machine.start(plan, message["run"], message, 1000)
        for each in begun.ready:
            done = result(each, outputs={"v": 1}, sets=[["n", number], ["n", number + 10]])
            reports += machine.apply(plan, part, done, 1000).sends
        assert not part.history
    for report in reports:
        machine.apply(plan, run, report, 1001)
    assert told(run.history) == {"n": [
        {"ts": 1001, "who": "split", "old": None, "new": 10},
        {"ts": 1001, "who": "split", "old": 10, "new": 11},
    ]}  # fmt: skip
