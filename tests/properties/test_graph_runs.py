"""Runs of random graphs: they end, the same way wherever and in whatever order their executions are run.

`RUNS=2000 pytest tests/properties/test_graph_runs.py` tries more of them. Every run is written down and read
again between any two messages, as it is where another processor takes over.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processor.graphs import advance, machine, runs, sizes
from processor.graphs.local import JumpingClock, LocalRuns
from processor.graphs.outcomes import failures_of
from processor.graphs.plan import Plan
from processor.graphs.progress import OPEN, Execution, GraphRun, Message, Todo
from tests.graphing import plan_of

RUNS = int(os.environ.get("RUNS", "60"))
MANY = settings(
    max_examples=RUNS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="RUNS" not in os.environ,
)
SUB = plan_of(
    [
        {"identifier": "in", "inputs": {"v": 0}, "next_nodes": ["out"]},
        {"identifier": "out", "inputs": {"v": "${{ in.outputs.v }}"}},
    ],
    name="sub",
    outputs={"v": "${{ out.outputs.v }}"},
)


@st.composite
def graphs(draw: st.DrawFn, *, is_wild: bool = False) -> dict[str, Any]:
    """A graph of up to eight nodes: forks, joins, unites, nested graphs, and any reference back.

    A wild one also has waits and timeouts, and may stop at its first error.
    """
    count = draw(st.integers(2, 8))
    nodes: list[dict[str, Any]] = [{"identifier": "n0", "inputs": {"v": "initial"}, "next_nodes": []}]
    above: list[set[int]] = [set()]
    for number in range(1, count):
        parents = draw(st.sets(st.integers(0, number - 1), min_size=1, max_size=3))
        before = parents.union(*(above[parent] for parent in parents))
        looks = draw(st.lists(st.sampled_from(sorted(before)), max_size=2))
        node: dict[str, Any] = {
            "identifier": f"n{number}",
            "inputs": {f"i{at}": f"${{{{ n{other}.outputs.v }}}}" for at, other in enumerate(looks)},
            "next_nodes": [],
        }
        if draw(st.booleans()):
            strategy = draw(st.sampled_from(["ALL_SUCCESS", "ALL_DONE"]))
            node["unites"] = {"identifier": f"n{draw(st.sampled_from(sorted(before)))}", "strategy": strategy}
        if draw(st.integers(0, 5)) == 0:
            node["node_name"] = "graph:sub"
        if is_wild and draw(st.integers(0, 5)) == 0:
            node |= {
                "node_name": "Wait",
                "inputs": {"signal": "go", "timeout_s": draw(st.sampled_from([0.01, 5]))},
            }
        if is_wild and draw(st.integers(0, 3)) == 0:
            node["timeout_s"] = draw(st.sampled_from([0.005, 0.02]))
        for parent in parents:
            nodes[parent]["next_nodes"].append(node["identifier"])
        nodes.append(node)
        above.append(before)
    retry = {"max_retries": draw(st.integers(0, 2)), "strategy": "FIXED", "backoff_factor": 10}
    outputs = {
        f"o{at}": f"${{{{ n{at}.outputs.v }}}}" for at in draw(st.sets(st.integers(0, count - 1), max_size=2))
    }
    graph = {"nodes": nodes, "retry_policy": retry, "outputs": outputs}
    if is_wild:
        graph["on_error"] = draw(st.sampled_from(["finish", "stop"]))
        graph["timeout_s"] = draw(st.sampled_from([None, 0.05]))
    return graph


class Fate:
    """What becomes of each try: the same for the same execution, whoever runs it and whenever."""

    def __init__(self, seed: int, faults: int) -> None:
        self._seed = seed
        self._faults = faults  # of 20
        self.names = {"r": ""}  # of runs, by which slice of them an execution is in left out

    def began(self, message: Message) -> None:
        if up := message.get("up"):
            name = self.names[up["run"]]
            self.names[message["run"]] = name if message["t"] == "slice" else f"{name}~{up['x']}"

    def __call__(self, each: Execution) -> Message:
        inputs = orjson.dumps(each.inputs, option=orjson.OPT_SORT_KEYS)
        said = f"{self._seed}:{self.names[each.run]}:{each.x}:{each.attempt}".encode()
        chance = random.Random(said)
        value = hashlib.sha256(inputs + each.x.encode()).hexdigest()[:6]
        kind = chance.randrange(20)
        if kind < self._faults:
            fault = chance.randrange(3)
            if fault == 0 and each.attempt < 3:
                return {"requeue_ms": chance.randrange(50)} | ({"inputs": {"more": 1}} if kind % 2 else {})
            return (
                {"prune": {"why": "x"}}
                if fault == 1
                else {"error": {"code": "E304", "text": "ValueError: x"}}
            )
        if kind < self._faults + 5:
            return {"outputs": [{"v": f"{value}.{at}"} for at in range(chance.randrange(6))]}
        return {"outputs": None if kind == 19 else {"v": value}}


class World:
    """Streams, pools and timers, as unkind as they may be: order, repetition and cuts are left to chance."""

    def __init__(self, plan: Plan, fate: Fate, chance: random.Random) -> None:
        self.plans = {plan.name: plan, "sub": SUB}
        self.fate = fate
        self.chance = chance
        self.items: dict[str, dict[str, bytes]] = {}
        self.graphs: dict[str, str] = {}
        self.inbox: list[Message] = []
        self.timers: dict[tuple[str, str], tuple[int, Message]] = {}
        self.shared: dict[tuple[str, int], Mapping[str, Any]] = {}
        self.now_ms = 1000
        self.ended: dict[tuple[str, str], str] = {}
        self.records: dict[str, bytes] = {}
        self.last: dict[str, GraphRun] = {}
        self.is_healed = False
        self.is_steered = False

    def run(self, message: Message) -> None:
        self.inbox.append(message)
        for _ in range(20_000):
            if self.inbox and (self.chance.random() < 0.9 or not self.timers):
                self._deliver()
            elif self.timers:
                self._fire()
            else:
                return
        raise AssertionError("the run does not end")

    def _deliver(self) -> None:
        """Any message that may come now; what begins and steers a run comes in its order."""
        is_next, free = set(), []
        for at, message in enumerate(self.inbox):
            if message["t"] in ("start", "slice", "control"):
                if message["run"] not in is_next:
                    free.append(at)
                is_next.add(message["run"])
            elif message["run"] in self.last:
                free.append(at)
        message = self.inbox.pop(self.chance.choice(free))
        if self.chance.random() < 0.2:
            self.inbox.append(message)
        self._commit(message)

    def _fire(self) -> None:
        key = min(self.timers, key=lambda key: self.timers[key][0])
        at_ms, message = self.timers.pop(key)
        self.now_ms = max(self.now_ms, at_ms)
        self.inbox.append(message)

    def _commit(self, message: Message) -> None:
        id = message["run"]
        message = orjson.loads(orjson.dumps(message))
        total = Todo()
        if id not in self.items and not self._is_begun(message):
            return
        if id not in self.items:
            plan = self.plans[message["graph"]]
            self.fate.began(message)
            if "seen_at" in message:
                message["seen"] = self.shared[message["seen_at"]["run"], message["seen_at"]["n"]]
            self.graphs[id] = plan.name
            run, todo = machine.start(plan, id, message, self.now_ms)
        else:
            run = self.read(id)
            plan = self.plans[run.graph]
            todo = machine.apply(plan, run, message, self.now_ms, self.chance.random())
        total.add(todo)
        ready = list(todo.ready)
        while ready:
            each = ready.pop(0)
            if not machine.is_wanted(run, each):
                continue
            way = self.chance.randrange(3)
            if way == 0:  # the batch is cut short
                self.inbox.append({"t": "go", "run": id})
            elif way == 1:
                total.add(machine.dispatched(run, each.x, self.now_ms))
                self.inbox.append(self._result(each))
            else:
                more = machine.apply(plan, run, self._result(each), self.now_ms, self.chance.random())
                total.add(more)
                ready += more.ready
        if total.has_more:
            self.inbox.append({"t": "go", "run": id})
        self.inbox += total.sends
        for name in total.needless:
            self.timers.pop((id, name), None)
        for name, timer in total.timers.items():
            self.timers[id, name] = (timer.at_ms, timer.message)
        for number, seen in total.seen:
            self.shared[id, number] = seen
        self._check(run)
        self._write(run)
        if run.is_ended:
            self._end(run)

    def _is_begun(self, message: Message) -> bool:
        """Whether a message to a run that is not open begins it, or begins it again; else it is answered."""
        id = message["run"]
        if message["t"] in ("start", "slice"):
            return id not in self.last
        record = orjson.loads(self.records[id]) if id in self.records else None
        is_retry = message["t"] == "control" and message["what"] == "retry"
        if is_retry and record and (record["state"] != "SUCCESS" or message.get("after")):
            self._write(runs.revived(self.plans[self.graphs[id]], record))
            return True
        self.inbox += machine.answer(message, record)
        return False

    def _result(self, each: Execution) -> Message:
        outcome = {"outputs": {"v": each.x}} if self.is_healed else self.fate(each)
        return {"t": "result", "run": each.run, "x": each.x, "a": each.attempt, **outcome}

    def _check(self, run: GraphRun) -> None:
        assert run.open == sum(each.state in OPEN for each in run.executions.values())
        assert run.is_ended == (run.open == 0)
        assert all(counts[0] >= 0 for counts in run.units.values())
        for x, each in run.executions.items():
            if not self.is_healed and not self.is_steered and "~" not in run.id:  # these are tried again
                assert self.ended.get((run.id, x), each.state) == each.state
            if each.state not in OPEN:
                self.ended[run.id, x] = each.state

    def _write(self, run: GraphRun) -> None:
        change = runs.change_of(run)
        if change.whole:
            self.items[run.id] = {name: value for name, value in change.items.items() if value is not None}
        else:
            for name, value in change.items.items():
                if value is None:
                    self.items[run.id].pop(name, None)
                else:
                    self.items[run.id][name] = value
        assert change.size == sum(len(name) + len(value) for name, value in self.items[run.id].items())
        self.last[run.id] = self.read(run.id)

    def _end(self, run: GraphRun) -> None:
        """Keep of a run that has ended what an engine keeps."""
        if run.slice is None:
            record = runs.record_of(run)
            self.records[run.id] = orjson.dumps(record)
            if run.state == "SUCCESS" or not record.get("large"):
                del self.items[run.id]
        elif run.state == "SUCCESS":
            del self.items[run.id]

    def read(self, id: str) -> GraphRun:
        return runs.run_of(self.plans[self.graphs[id]], id, self.items[id])

    @property
    def family(self) -> dict[str, GraphRun]:
        return self.last


def executions(fate: Fate, family: Mapping[str, GraphRun]) -> dict[str, Any]:
    """Every execution of a run, its slices and its nested runs, and what became of it."""
    found: dict[str, Any] = {}
    for id, run in family.items():
        for x, each in run.executions.items():
            outputs = each.outputs if each.fan is None else None
            found[f"{fate.names[id]}:{x}"] = (each.state, each.attempt, outputs or None)
    return found


def locally(plan: Plan, fate: Fate) -> dict[str, GraphRun]:
    """The same run by the local driver, everything in one process and in order."""

    async def execute(ready: Sequence[Execution]) -> list[Message]:
        for id, run in local.runs.items():
            fate.began({"t": "start", "run": id, "up": run.up})
        return [fate(each) for each in ready]

    local = LocalRuns({plan.name: plan, "sub": SUB}, execute, JumpingClock(), lambda: 0.5)
    asyncio.run(local.run(START))
    return local.runs


START: Message = {"t": "start", "run": "r", "graph": "g", "inputs": {"v": 1}, "by": "api"}


@contextmanager
def slices_of(count: int) -> Iterator[None]:
    """Fan-outs of more than `count` are cut into slices, of which few are sent at a time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (advance, sizes):
            patch.setattr(module, "SLICE", count)
        patch.setattr(advance, "SLICES_AT_ONCE", count)
        yield


def assert_all_ended(world: World) -> None:
    for run in world.family.values():
        assert run.is_ended, run.id
        assert all(each.state not in OPEN for each in run.executions.values())


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without what a fan-out itself keeps, which is for its slices where it has some."""
    return {
        x: (state, attempt, None if isinstance(o, list) else o) for x, (state, attempt, o) in found.items()
    }


@pytest.mark.parametrize("slices", [64, 2], ids=["inline", "sliced"])
@MANY
@given(graph=graphs(), seed=st.integers(0, 1 << 30), faults=st.integers(0, 8))
def test_every_run_ends_the_same_way(slices: int, graph: dict[str, Any], seed: int, faults: int) -> None:
    """Inline, pooled, sliced, local, in any order, with repetition and cuts: a run ends, the same way."""
    plan = plan_of(**graph)
    fate = Fate(seed, faults)
    world = World(plan, fate, random.Random(seed))
    with slices_of(slices):
        world.run(START)
    assert_all_ended(world)
    family = world.family
    for run in family.values():
        for each in list(run.executions.values()):
            for uniter in each.node.uniters if each.state == "SUCCESS" else ():
                assert f"{uniter}{each.branch}" in run.executions
    local = locally(plan, fate)
    assert comparable(executions(fate, family)) == comparable(executions(fate, local))
    assert (family["r"].state, family["r"].outputs) == (local["r"].state, local["r"].outputs)


@MANY
@given(graph=graphs(is_wild=True), seed=st.integers(0, 1 << 30), faults=st.integers(0, 8))
def test_a_run_that_is_steered_ends(graph: dict[str, Any], seed: int, faults: int) -> None:
    """Whatever comes between (pause, resume, retry, cancel, timeouts, signals), all of a run ends."""
    chance = random.Random(seed)
    world = World(plan_of(**graph), Fate(seed, faults), chance)
    world.is_steered = True
    with slices_of(2):
        world.inbox += [START] + [
            {"t": "control", "run": "r", "id": f"{at}", "what": what, "x": None, "value": 1}
            for at, what in enumerate(
                chance.choices(["pause", "resume", "retry", "signal", "cancel"], [4, 4, 4, 2, 1], k=4)
            )
        ]
        world.run({"t": "control", "run": "r", "id": "last", "what": "resume"})
        assert_all_ended(world)


@MANY
@given(graph=graphs(), seed=st.integers(0, 1 << 30), faults=st.integers(1, 8))
def test_a_retry_heals_what_failed(graph: dict[str, Any], seed: int, faults: int) -> None:
    """Once its nodes succeed, a failed run is tried again to its SUCCESS, also from its record alone."""
    world = World(plan_of(**graph), Fate(seed, faults), random.Random(seed))
    with slices_of(2):
        world.run(START)
        world.is_healed = True
        failed = world.family["r"].state == "FAILED"
        world.run({"t": "control", "run": "r", "id": "again", "what": "retry", "x": None})
    assert_all_ended(world)
    run = world.family["r"]
    lost = run.fault is not None or any(failure["code"] == "E703" for failure in failures_of(run))
    assert run.state == "SUCCESS" or (failed and lost)


@MANY
@given(graph=graphs(), seed=st.integers(0, 1 << 30), faults=st.integers(0, 8))
def test_what_came_of_an_execution_is_made_anew(graph: dict[str, Any], seed: int, faults: int) -> None:
    """A retry of an execution and of what came of it ends like a run in which it had succeeded at once."""
    world = World(plan_of(**graph), Fate(seed, faults), random.Random(seed))
    with slices_of(2):
        world.run(START)
        x = random.Random(seed).choice(sorted(world.family["r"].executions))
        world.is_healed = True
        world.run({"t": "control", "run": "r", "id": "again", "what": "retry", "x": x, "after": True})
    assert_all_ended(world)
