"""The engine of graphs by itself: what the messages of a batch leave behind, with nodes run elsewhere."""

from __future__ import annotations

import itertools
from typing import Any, Literal, cast

import orjson
import pytest

from processor.graphs.definition import Graph, GraphDefinition, NodeKind
from processor.graphs.engine import BATCH_MESSAGES, Engine
from processor.graphs.outbox import inner_subjects
from processor.graphs.plan import Plan, compile_plan
from processor.model import NO_CONTEXT, Emit, Failed, Group, Program, Ran, partition_of
from processor.reach import Reach
from processor.route import GraphEngine, NodeGroup, Route, RouteInput
from processor.subject import matches
from processor.telemetry import GraphTelemetry, Telemetry

NOW_MS = 1_790_000_000_000
GRAPH = {
    "nodes": [
        {"identifier": "split", "node_name": "Split", "next_nodes": ["each"], "inputs": {"n": 0}},
        {"identifier": "each", "node_name": "Each", "inputs": {"n": "${{ split.outputs.n }}"}},
    ],
    "retry_policy": {"max_retries": 1, "strategy": "FIXED", "backoff_factor": 2000},
    "output": "results.{graph}.{state}",
    "events": {"subject": "events.graphs", "level": "all"},
    "timeout_s": 60,
}


ALL_DONE: dict[str, Any] = {
    "nodes": [
        {"identifier": "split", "node_name": "Split", "next_nodes": ["each"], "inputs": {"n": 0}},
        {
            "identifier": "each", "node_name": "Each", "inputs": {"n": "${{ split.outputs.n }}"},
            "next_nodes": ["end"],
        },
        {
            "identifier": "end", "node_name": "End",
            "unites": {"identifier": "split", "strategy": "ALL_DONE"},
        },
    ],
}  # fmt: skip


class Known:
    """One graph, and kinds that all run in the same place."""

    def __init__(self, where: Literal["pool", "external"] | None, graph: Any = GRAPH) -> None:
        self.graph = GraphDefinition.named("wide", Graph.model_validate(graph), "shop")
        self.compiled = compile_plan(self.graph)
        self.where = where

    def plan(self, name: str, version: str | None = None) -> Plan | None:
        is_it = name == "wide" and version in (None, self.graph.version)
        return self.compiled if is_it else None

    def definition(self, name: str, version: str) -> GraphDefinition | None:
        return self.graph if name == "wide" else None

    def kind(self, id: str) -> NodeKind | None:
        namespace, _, name = id.partition("/")
        return NodeKind(namespace, name, {}, {}, where=self.where, group="api") if self.where else None

    async def look(self, name: str, version: str | None = None) -> None:
        pass


class Lane:
    """A worker's part: it gives the engine messages, and keeps the contexts that come of them."""

    def __init__(self, where: Literal["pool", "external"] | None = "pool") -> None:
        self.known = Known(where)
        group = NodeGroup(
            app="shop",
            name="api",
            program=Program("", "api.py", mode="nodes"),
            is_pool=True,
            reach=Reach("x"),
        )
        self.route = Route(
            app="shop",
            name="graphs",
            program=Program("", "graphs"),
            input=RouteInput(("p.shop.in.graphs.*",), codec="run", is_inner=True),
            emits=("results.*.*", "events.graphs"),
            inner=inner_subjects("shop", ["nodes-api"]),
            engine=GraphEngine(partitions=8),
            groups={"api": group},
        )
        self.contexts: dict[str, dict[str, bytes]] = {}
        self.resident: set[str] = set()
        self.now_ms = itertools.count(NOW_MS, 10)
        self.engine = self.new()

    def new(self) -> Engine:
        """Another engine, which has nothing in memory."""
        self.resident = set()

        async def no_guest(group: NodeGroup) -> Any:
            raise AssertionError(f"nothing of {group.name} runs inline")

        telemetry = GraphTelemetry(Telemetry())
        broker = cast(Any, Silent())
        self.engine = Engine(
            self.route, self.known, broker, no_guest, telemetry, lambda: next(self.now_ms) / 1000, lambda: 0.5
        )
        return self.engine

    async def give(self, *messages: dict[str, Any]) -> Ran:
        """The outcome of one batch of these messages; contexts are as committed after it."""
        by_key: dict[str, list[bytes]] = {}
        for message in messages:
            by_key.setdefault(message["run"], []).append(orjson.dumps({"v": 1, **message}))
        groups = [
            Group(key, documents, None if key in self.resident else self.contexts.get(key, {}))
            for key, documents in by_key.items()
        ]
        ran = await self.engine.run(groups)
        assert isinstance(ran, Ran), ran
        self.resident |= by_key.keys()
        for key, change in ran.contexts.items():
            before = {} if change.whole else self.contexts.get(key, {})
            after = {**before, **change.items}
            self.contexts[key] = {name: value for name, value in after.items() if value is not None}
            if change.gone:
                del self.contexts[key]
        for emit in ran.emits:
            patterns = (*self.route.inner, *self.route.emits, "live.shop.graphs.>")
            assert any(matches(pattern, emit.subject) for pattern in patterns), emit.subject
        return ran


class Silent:
    """A server that has stored nothing."""

    max_payload = 1 << 20

    async def connected(self) -> None:
        pass

    async def last_of(self, stream: str, subjects: list[str]) -> list[Any]:
        return []


def start(run: str = "r1", **more: Any) -> dict[str, Any]:
    return {"t": "start", "run": run, "graph": "wide", "inputs": {"n": 2}, "by": "api", **more}


def result(x: str, run: str = "r1", a: int = 1, **outcome: Any) -> dict[str, Any]:
    return {"t": "result", "run": run, "x": x, "a": a, **(outcome or {"outputs": {}})}


def named(ran: Ran, part: str) -> list[Emit]:
    return [emit for emit in ran.emits if part in emit.subject]


def bodies(ran: Ran, part: str) -> list[Any]:
    return [orjson.loads(emit.body) if emit.body else None for emit in named(ran, part)]


async def test_an_execution_goes_to_its_pool_and_the_run_waits_in_its_context() -> None:
    """With the summary that people see, the timer of its time-out, and the event that it began."""
    lane = Lane()
    ran = await lane.give(start())
    [execution] = bodies(ran, ".in.nodes-api.")
    assert execution["kind"] == "shop/Split"
    assert (execution["run"], execution["x"], execution["a"], execution["inputs"]) == (
        "r1",
        "split",
        1,
        {"n": 2},
    )
    assert named(ran, ".in.nodes-api.")[0].subject.endswith(f".{partition_of('r1split', 64)}")
    [summary] = bodies(ran, ".running.r1")
    assert (summary["state"], summary["counts"]) == ("RUNNING", {"QUEUED": 1})
    [timer] = named(ran, ".timer.")
    assert timer.headers["Nats-Schedule-Target"] == f"p.shop.in.graphs.{partition_of('r1', 8)}"
    assert timer.headers["Nats-Schedule"].startswith("@at 20")
    assert [event["event"] for event in bodies(ran, "events.graphs")] == ["started"]
    assert [*ran.contexts] == ["r1"]


@pytest.mark.parametrize("is_new", [False, True])
async def test_a_run_that_ends_leaves_its_record_and_nothing_else(is_new: bool) -> None:
    """Also where another engine goes on with it: context, summary and timer go with the record's commit."""
    lane = Lane()
    await lane.give(start())
    if is_new:
        lane.new()
    await lane.give(result("split", outputs=[{"n": 1}, {"n": 2}]))
    if is_new:
        lane.new()
    ran = await lane.give(result("each/split.0"), result("each/split.1"))
    [record] = bodies(ran, ".success.r1")
    assert (record["state"], record["counts"]) == ("SUCCESS", {"SUCCESS": 3})
    assert named(ran, ".success.r1")[0].headers == {"Nats-Rollup": "sub", "Nats-TTL": "604800s"}
    assert bodies(ran, ".running.r1") == [None]
    assert bodies(ran, ".timer.") == [None]
    assert ran.contexts == {"r1": NO_CONTEXT}
    assert [document["run"] for document in bodies(ran, "results.wide.SUCCESS")] == ["r1"]
    assert [event["event"] for event in bodies(ran, "events.graphs")] == ["completed"]
    again = await lane.give(result("each/split.1"), start())
    assert (again.emits, again.contexts) == ([], {})


async def test_a_try_that_failed_is_a_timer_and_then_a_new_attempt() -> None:
    """The last one fails the run; what comes of an earlier attempt is nobody's any more."""
    lane = Lane()
    await lane.give(start())
    failed = {"error": {"code": "E304", "text": "no price", "traceback": ""}, "final": False}
    ran = await lane.give(result("split", **failed))
    [timer] = [emit for emit in named(ran, ".timer.") if "retry" in emit.subject]
    tick = orjson.loads(timer.body)
    assert (await lane.give(result("split", a=1))).emits == []
    ran = await lane.give(tick)
    assert [execution["a"] for execution in bodies(ran, ".in.nodes-api.")] == [2]
    assert (await lane.give(tick)).emits == []  # a timer that fires twice
    ran = await lane.give(result("split", a=2, **failed))
    [record] = bodies(ran, ".failed.r1")
    assert [error["text"] for error in record["errors"]] == ["no price"]
    assert [event["event"] for event in bodies(ran, "events.graphs")] == ["failed"]


async def test_a_cancelled_run_is_gone_for_those_who_have_its_executions() -> None:
    """They are told once, with the time up to which what they have is needless."""
    lane = Lane()
    await lane.give(start())
    ran = await lane.give({"t": "control", "run": "r1", "what": "cancel", "id": "c", "by": "me"})
    [gone] = bodies(ran, ".gone.r1")
    assert gone["at_ms"] >= NOW_MS
    assert [record["state"] for record in bodies(ran, ".cancelled.r1")] == ["CANCELLED"]
    assert ran.contexts == {"r1": NO_CONTEXT}


async def test_a_graph_that_is_not_there_fails_its_run() -> None:
    """With a record that says so, and can be tried again."""
    ran = await Lane().give({**start(), "graph": "none"})
    [record] = bodies(ran, ".run.none.failed.r1")
    assert [(error["code"], error["text"]) for error in record["errors"]] == [
        ("E706", "graph 'none' is not there, or has no valid version")
    ]
    assert ran.contexts == {}


async def test_a_kind_that_nobody_has_makes_its_execution_wait() -> None:
    """It says so, looks again by itself, and goes on at once where it is told."""
    lane = Lane(where=None)
    ran = await lane.give(start())
    assert named(ran, ".in.") == []
    assert [emit for emit in named(ran, ".timer.") if "retry" in emit.subject]
    lane.known.where = "pool"
    assert lane.engine.awaiting("shop/Split") == {"r1"}
    assert lane.engine.awaiting("shop/Split") == frozenset()
    ran = await lane.give({"t": "go", "run": "r1"})
    assert [execution["x"] for execution in bodies(ran, ".in.nodes-api.")] == ["split"]


async def test_a_batch_leaves_no_more_than_a_commit_takes_and_goes_on() -> None:
    """What is ready beyond that is sent after a message that the run has left for itself; nothing twice."""
    lane = Lane()
    runs = [f"r{number}" for number in range(12)]
    for run in runs:
        await lane.give(start(run))
    outputs = [{"n": n} for n in range(60)]
    ran = await lane.give(*(result("split", run, outputs=outputs) for run in runs))
    sent = [(each["run"], each["x"]) for each in bodies(ran, ".in.nodes-api.")]
    assert len(ran.emits) <= BATCH_MESSAGES + 3 * len(runs)
    while goes := bodies(ran, ".in.graphs."):
        assert {go["t"] for go in goes} == {"go"}
        ran = await lane.give(*goes)
        sent += [(each["run"], each["x"]) for each in bodies(ran, ".in.nodes-api.")]
    assert sorted(sent) == sorted((run, f"each/split.{n}") for run in runs for n in range(60))


async def test_an_external_worker_answers_only_what_it_was_given() -> None:
    """A result of another namespace, of what is not with workers, or of a pool, changes nothing."""
    for where, namespace, is_taken in (
        ("external", "shop", True), ("external", "other", False), ("pool", "shop", False),
    ):  # fmt: skip
        lane = Lane(cast(Any, where))
        ran = await lane.give(start())
        assert bool(named(ran, "p.shop.out.work.shop.shop.Split")) == (where == "external")
        ran = await lane.give({**result("split", outputs=[]), "ns": namespace})
        assert bool(named(ran, ".success.r1")) == is_taken


@pytest.mark.parametrize(
    "message, why",
    [
        ({"t": "nonsense"}, "t of the message is 'nonsense'"),
        ({"t": ["start"]}, "t of the message is ['start']"),
        ({"t": "start", "graph": 7}, "graph of the message is 7"),
        ({"t": "start", "graph": "wide", "inputs": []}, "inputs of the message is []"),
        ({"t": "result", "x": None, "a": 1}, "x of the message is None"),
        ({"t": "control"}, "what of the message is None"),
    ],
)
async def test_a_message_of_another_shape_is_rejected_alone(message: dict[str, Any], why: str) -> None:
    """Those beside it are applied."""
    ran = await Lane().give({**message, "run": "odd"}, start())
    [(group, index, failure)] = ran.rejected
    assert (group, index, failure.code) == (0, 0, "E302")
    assert failure.text.startswith(why)
    assert bodies(ran, ".in.nodes-api.")


async def test_a_run_whose_version_nobody_has_fails_its_message() -> None:
    """Nothing is made of it, and the engine is not used again: what it holds may be half done."""
    lane = Lane()
    await lane.give(start())
    lane.new()
    lane.known.graph = lane.known.graph.model_copy(update={"timeout_s": 61})
    lane.known.graph.__dict__.pop("version", None)
    lane.known.graph.__dict__.pop("document", None)
    outcome = await lane.engine.run([Group("r1", [orjson.dumps(result("split"))], lane.contexts["r1"])])
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E706"
    assert not lane.engine.alive


async def test_a_large_run_that_failed_keeps_its_context_until_it_expires() -> None:
    """It can be tried again from there; its record alone is too small for that."""
    lane = Lane()
    await lane.give(start())
    text = "x" * 3000
    ran = await lane.give(result("split", outputs=[{"n": text} for _ in range(30)]))
    error = {"error": {"code": "E709", "text": "no"}, "final": True}
    ran = await lane.give(*(result(f"each/split.{n}", **error) for n in range(30)))
    assert [record["large"] for record in bodies(ran, ".failed.r1")] == [True]
    assert lane.contexts["r1"]
    [expire] = [emit for emit in named(ran, ".timer.") if emit.subject.endswith(".expire")]
    lane.new()
    ran = await lane.give({"t": "control", "run": "r1", "what": "retry", "id": "1", "by": "me"})
    assert len(named(ran, ".in.nodes-api.")) == 30
    assert bodies(ran, ".failed.r1") == [None]
    assert [emit.body for emit in named(ran, ".timer.") if emit.subject.endswith(".expire")] == [b""]
    ran = await lane.give(*(result(f"each/split.{n}", a=2, **error) for n in range(30)))
    ran = await lane.give(orjson.loads(expire.body))
    assert ran.contexts == {"r1": NO_CONTEXT}
    assert lane.contexts == {}


async def test_what_a_slice_reports_after_a_cancel_is_not_run_again() -> None:
    """A run that was cancelled keeps what its slices did meanwhile, and a retry asks only the others."""
    lane = Lane()
    await lane.give(start())
    fan_out = await lane.give(result("split", outputs=[{"n": number} for number in range(70)]))
    slices = [body for body in bodies(fan_out, "in.graphs") if body["t"] == "slice"]
    assert [body["run"] for body in slices] == ["r1/split.0", "r1/split.64"]
    await lane.give(slices[0])
    cancel = {"t": "control", "run": "r1", "id": "1", "what": "cancel", "x": None}
    cancelled = await lane.give(cancel)
    assert [body["run"] for body in bodies(cancelled, "in.graphs")] == ["r1/split.0", "r1/split.64"]
    done = await lane.give(*(result(f"each/split.{number}", "r1/split.0") for number in range(64)))
    [report] = bodies(done, "in.graphs")
    await lane.give(report)
    lane.new()
    again = await lane.give({"t": "control", "run": "r1", "id": "2", "what": "retry", "x": None})
    assert [(body["run"], body["what"]) for body in bodies(again, "in.graphs")] == [("r1/split.64", "retry")]


async def test_what_no_message_holds_fails_its_execution_or_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An execution that is too large is its own failure, a run that is ends; both with records that fit."""
    monkeypatch.setattr(Silent, "max_payload", 300 << 10)
    large = {"n": "x" * 250_000}
    lane = Lane()
    ran = await lane.give(start(inputs=large))
    [record] = bodies(ran, ".failed.r1")
    assert record["errors"][0]["code"] == "E711"
    assert "a message takes" in record["errors"][0]["text"]
    assert record["inputs"] == {"cut": len(orjson.dumps(large))}
    lane = Lane()
    lane.known = Known("pool", ALL_DONE)
    lane.new()
    await lane.give(start(store={f"k{n}": "x" * 60_000 for n in range(2)}))
    ran = await lane.give(result("split", outputs=[{"n": "x" * 130_000}]))
    assert named(ran, ".in.nodes-api.") == []
    [go] = bodies(ran, ".in.graphs.")  # what unites is ready, for all before it have failed
    ran = await lane.give(go)
    assert [execution["x"] for execution in bodies(ran, ".in.nodes-api.")] == ["end"]
    lane = Lane(where=None)
    ran = await lane.give(start(inputs=large))
    [record] = bodies(ran, ".cancelled.r1")
    assert "more than a message takes" in record["errors"][0]["text"]
    assert ran.contexts == {}
