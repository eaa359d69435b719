"""Graphs on a server: runs from their start to their record, whatever happens to those that run them."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.context.subjects import GraphSubjects, RouteSubjects
from processor.embedded import EmbeddedServer
from processor.jetstream import GONE, KEPT, Outgoing, Stored
from processor.model import partition_of
from tests.conftest import waited
from tests.integration.test_api import done, refused
from tests.running import Running, started, write_sources

NODES = """
from exospherehost import BaseNode, PruneSignal
from pydantic import BaseModel


class Number(BaseModel):
    n: int


class Add(BaseNode):
    class Inputs(Number):
        by: int = 1

    class Outputs(Number):
        pass

    def execute(self):
        return self.Outputs(n=self.inputs.n + self.inputs.by)


class Split(BaseNode):
    class Inputs(Number):
        pass

    class Outputs(Number):
        pass

    def execute(self):
        return [self.Outputs(n=i) for i in range(self.inputs.n)]


class Sum(BaseNode):
    class Inputs(BaseModel):
        all: list

    class Outputs(Number):
        pass

    def execute(self):
        return self.Outputs(n=sum(self.inputs.all))


class Odd(BaseNode):
    class Inputs(BaseModel):
        how: str

    class Outputs(BaseModel):
        n: int = 0

    def execute(self):
        how = self.inputs.how
        if how == "fails":
            raise ValueError("no price")
        if how == "loops":
            while True:
                pass
        if how == "dies":
            "x" * (1 << 40)
        if how == "prunes":
            raise PruneSignal({"why": "enough"})
        if how == "none":
            return None
        if how == "wrong":
            return 7
        if how == "prints":
            print("printed")
        return self.Outputs(n=self.attempt)
"""
CONFIG = """
app: app
http: off
drain_s: 5
engine: {concurrency: 1, partitions: 8}
nodes:
  lib: {file: nodes.py, limits: {wall_s: 5, cpu_s: 1}}
  pool: {file: pool.py, where: pool, partitions: 8, limits: {wall_s: 5, cpu_s: 1}}
graphs:
  chain:
    nodes:
      - {identifier: a, node_name: Add, inputs: {n: 0}, next_nodes: [b]}
      - {identifier: b, node_name: Add, inputs: {n: "${{ a.outputs.n }}", by: 10}, next_nodes: [c]}
      - {identifier: c, node_name: Add, inputs: {n: "${{ b.outputs.n }}"}}
    outputs: {total: "${{ c.outputs.n }}"}
    output: results.chain
  pooled:
    nodes:
      - {identifier: a, node_name: PoolAdd, inputs: {n: 0}, next_nodes: [b]}
      - {identifier: b, node_name: PoolAdd, inputs: {n: "${{ a.outputs.n }}"}}
    outputs: {total: "${{ b.outputs.n }}"}
    output: results.pooled
  wide:
    nodes:
      - {identifier: split, node_name: Split, inputs: {n: 3}, next_nodes: [each]}
      - {identifier: each, node_name: Add, inputs: {n: "${{ split.outputs.n }}"}, next_nodes: [sum]}
      - {identifier: sum, node_name: Sum, inputs: {all: "${{ each.outputs.n }}"}, unites: {identifier: split}}
    outputs: {total: "${{ sum.outputs.n }}"}
  triggered:
    nodes:
      - {identifier: a, node_name: Add, inputs: {n: 0, by: 1}}
    outputs: {n: "${{ a.outputs.n }}"}
    triggers:
      - {subject: "orders.*", create: true, inputs: {n: "${{ document.order.n }}", by: "${{ document.by }}"}}
      - {schedule: "@every 1s", inputs: {n: 41}}
  odd:
    nodes:
      - identifier: odd
        node_name: Odd
        inputs: {how: ""}
        retry: {max_retries: 1, strategy: FIXED, backoff_factor: 50}
  odd_pool:
    nodes:
      - identifier: odd
        node_name: PoolOdd
        inputs: {how: ""}
        retry: {max_retries: 1, strategy: FIXED, backoff_factor: 50}
  delayed:
    nodes:
      - {identifier: a, node_name: Add, inputs: {n: 100}}
    outputs: {n: "${{ a.outputs.n }}"}
  wide_pool:
    nodes:
      - {identifier: split, node_name: Split, inputs: {n: 3}, next_nodes: [each]}
      - {identifier: each, node_name: PoolAdd, inputs: {n: "${{ split.outputs.n }}"}, next_nodes: [sum]}
      - {identifier: sum, node_name: Sum, inputs: {all: "${{ each.outputs.n }}"}, unites: {identifier: split}}
"""
POOL = re.sub(r"class (\w+)\(BaseNode", r"class Pool\1(BaseNode", NODES)


class Graphs:
    """An app that runs graphs, and what a client of it does."""

    def __init__(self, running: Running, partitions: int = 8) -> None:
        self.running = running
        self.subjects = GraphSubjects(running.app)
        self._partitions = partitions
        self._numbers = itertools.count(1)

    async def send(self, run: str, message: Mapping[str, Any]) -> None:
        """A message to a run, as its inbox gets it."""
        subject = RouteSubjects(self.running.app, "graphs").inbox(partition_of(run, self._partitions))
        body = orjson.dumps({"v": 1, "run": run, **message})
        await self.running.broker.publish_stored(Outgoing(subject, body))

    async def start(self, graph: str, run: str = "", **more: Any) -> str:
        """Start a run; its id."""
        run = run or f"r{next(self._numbers)}"
        inputs = more.pop("inputs", {})
        await self.send(run, {"t": "start", "graph": graph, "inputs": inputs, "by": "api", **more})
        return run

    async def record(self, run: str) -> dict[str, Any]:
        """The record of a run that has ended, as soon as it has."""

        async def ended() -> dict[str, Any] | None:
            for stored in await self.running.stored(self.subjects.record(run)):
                if stored.payload and ".running." not in stored.subject:
                    return dict(orjson.loads(stored.payload))
            return None

        found: dict[str, Any] = await waited(ended, f"run {run} has ended")
        return found

    async def kept(self) -> list[Stored]:
        """The contexts of runs outside of positions, timers, and messages that are not removed."""
        app = self.running.app
        patterns = [f"p.{app}.ctx.graphs.>", f"p.{app}.timer.>", f"p.{app}.in.>", f"p.{app}.run.*.running.*"]
        return [each for pattern in patterns for each in await self.running.stored(pattern) if each.payload]


@pytest.fixture
def app(tmp_path: Path, nats_server: EmbeddedServer) -> Callable[..., Any]:
    """`async with app() as graphs`: run the graphs of CONFIG until the block ends."""

    @asynccontextmanager
    async def start(config: str = CONFIG, **sources: str) -> AsyncIterator[Graphs]:
        write_sources(tmp_path, {"nodes": NODES, "pool": POOL, **sources})
        path = tmp_path / "config.yaml"
        path.write_text(config)
        async with started(path, nats_server.url) as running:
            await running.until_ready()
            yield Graphs(running)

    return start


App = Callable[..., Any]


async def test_a_run_of_pure_nodes_is_one_commit_and_leaves_its_record(app: App) -> None:
    """No context, no summary, no timer is left: the record, and one document where its graph sends them."""
    async with app() as graphs:
        heard = await graphs.running.listen("live.app.graphs.>")
        run = await graphs.start("chain", inputs={"n": 5})
        record = await graphs.record(run)
        assert (record["state"], record["outputs"], record["counts"]) == (
            "SUCCESS",
            {"total": 17},
            {"SUCCESS": 3},
        )
        [document] = await graphs.running.documents("results.chain", 1)
        assert (document["run"], document["state"], document["outputs"]) == (run, "SUCCESS", {"total": 17})
        await waited(
            lambda: [each.subject for each in heard] == [f"live.app.graphs.chain.{run}"], "it was shown"
        )
        assert await graphs.running.contexts("graphs") == {}
        await waited(lambda: _nothing(graphs), "what was processed is removed", 30)


async def _nothing(graphs: Graphs, kind: str = "") -> bool:
    return not [each for each in await graphs.kept() if each.subject.startswith(f"p.app.{kind}")]


async def test_a_start_that_comes_twice_is_one_run(app: App) -> None:
    """While it runs, after its end, and in another life of the processor: its client chose the id."""
    async with app() as graphs:
        for _ in range(2):
            await graphs.start("chain", "mine", check=True, inputs={"n": 1})
        await graphs.record("mine")
        await graphs.start("chain", "mine", check=True, inputs={"n": 2})
        await graphs.start("chain", "last")
        await graphs.record("last")
    async with app() as graphs:
        await graphs.start("chain", "mine", check=True, inputs={"n": 3})
        await graphs.start("chain", "later")
        await graphs.record("later")
        assert (await graphs.record("mine"))["outputs"] == {"total": 13}
        assert len(await graphs.running.documents("results.chain", 3)) == 3


async def test_nodes_of_a_pool_run_apart_and_their_results_come_back(app: App) -> None:
    """Each execution is a message to its pool and a result; then the run leaves no more than another."""
    async with app() as graphs:
        runs = [await graphs.start("pooled", inputs={"n": n}) for n in range(20)]
        records = [await graphs.record(run) for run in runs]
        assert [record["outputs"] for record in records] == [{"total": n + 2} for n in range(20)]
        assert len(await graphs.running.documents("results.pooled", 20)) == 20
        await waited(lambda: _nothing(graphs), "what was processed is removed", 30)
        assert await graphs.running.contexts("graphs") == {}


async def test_a_fan_out_is_united_also_where_it_is_cut_into_slices(app: App) -> None:
    """Three branches are in the run itself; two hundred are slices of it, which leave nothing either."""
    async with app() as graphs:
        for count in (3, 0, 64, 200):
            record = await graphs.record(await graphs.start("wide", inputs={"n": count}))
            total = sum(range(1, count + 1))
            assert (record["state"], record["outputs"]) == ("SUCCESS", {"total": total}), count
        await waited(lambda: _nothing(graphs), "what was processed is removed", 30)
        assert await graphs.running.contexts("graphs") == {}


async def test_each_message_and_each_due_time_of_a_trigger_is_one_run(app: App) -> None:
    """Named after it, with the inputs that the trigger makes of it; one that makes none is a dead letter."""
    async with app() as graphs:
        await waited(lambda: _has_stream(graphs, "orders.*"), "the stream of the trigger is made")
        await graphs.running.publish("orders.1", {"order": {"n": 5}}, b"{", {"order": {"n": 7}, "by": 10})
        stream = await graphs.running.broker.find_stream("orders.*")
        first, third = [await graphs.record(f"{stream}-{number}") for number in (1, 3)]
        assert (first["by"], first["outputs"], third["outputs"]) == ("subject", {"n": 6}, {"n": 17})
        [letter] = await graphs.running.dead_letters("=trigger-triggered-0")
        assert letter.headers["x-error-code"] == "E301"

        async def due() -> list[dict[str, Any]] | None:
            stored = await graphs.running.stored(graphs.subjects.runs("triggered", "success"))
            records = [orjson.loads(each.payload) for each in stored]
            found = [record for record in records if record["by"] == "schedule"]
            return found if len(found) >= 2 else None

        records: list[dict[str, Any]] = await waited(due, "two due times are two runs")
        assert all(record["outputs"] == {"n": 42} for record in records)
        assert len({record["run"] for record in records}) == len(records)
        assert all(record["run"].startswith("triggered-20") for record in records)


async def _has_stream(graphs: Graphs, subject: str) -> bool:
    return await graphs.running.broker.find_stream(subject) is not None


async def run_odd(graphs: Graphs, how: str, graph: str = "odd") -> dict[str, Any]:
    return await graphs.record(await graphs.start(graph, inputs={"how": how}))


@pytest.mark.parametrize("graph", ["odd", "odd_pool"])
async def test_whatever_a_node_does_is_a_result_of_its_execution(app: App, graph: str) -> None:
    """It fails with what it raised, loops, dies, prunes, returns nothing or the wrong thing, or prints."""
    async with app() as graphs:
        for how, state, code in (
            ("fails", "FAILED", "E304"), ("loops", "FAILED", "E311"), ("dies", "FAILED", "E313"),
            ("wrong", "FAILED", "E709"), ("prunes", "SUCCESS", ""), ("none", "SUCCESS", ""),
            ("prints", "SUCCESS", ""),
        ):  # fmt: skip
            record = await run_odd(graphs, how, graph)
            assert record["state"] == state, (how, record["errors"])
            [execution] = record["executions"]
            assert [error["code"] for error in record["errors"]] == ([code] if code else []), how
            assert execution["attempt"] == (2 if code[:2] == "E3" else 1), how
        record = await graphs.record(await graphs.start(graph, inputs={"how": 7}))
        assert [error["code"] for error in record["errors"]] == ["E709"]
        assert record["executions"][0]["attempt"] == 1
        assert not await graphs.running.stored("p.app.dlq.>")
        assert graphs.running.metric("processor_runs_total", graph=graph, state="failed") == 5
        await waited(lambda: _nothing(graphs), "what was processed is removed", 30)


async def test_a_node_that_dies_takes_nobody_with_it(app: App) -> None:
    """Of many runs in one batch only those whose node does it fail; what ran beside it has run once."""
    async with app() as graphs:
        runs = [await graphs.start("odd", inputs={"how": "dies" if n == 5 else ""}) for n in range(40)]
        records = [await graphs.record(run) for run in runs]
        assert [record["state"] for record in records] == [
            "FAILED" if n == 5 else "SUCCESS" for n in range(40)
        ]


async def test_a_kind_that_comes_lets_the_runs_go_on_that_wait_for_it(app: App) -> None:
    """They go on as soon as its file is there; until then their executions are WAITING."""
    async with app() as graphs:
        kind = graphs.subjects.kind("app", "Add")
        [stored] = await graphs.running.stored(kind)
        await graphs.running.broker.publish_stored(Outgoing(kind, b"", GONE))
        registry = graphs.running.service._graphs.registry  # type: ignore[union-attr]
        await waited(lambda: registry.kind("app/Add") is None, "the kind is gone")
        run = await graphs.start("chain", inputs={"n": 1})

        async def waiting() -> bool:
            found = await graphs.running.stored(graphs.subjects.run("chain", "running", run))
            return any(b'"WAITING":1' in each.payload for each in found)

        await waited(waiting, "the run waits")
        await graphs.running.broker.publish_stored(Outgoing(kind, stored.payload, KEPT))
        assert (await graphs.record(run))["outputs"] == {"total": 13}
        await waited(lambda: _nothing(graphs), "what was processed is removed", 30)


async def test_a_run_goes_on_with_the_shape_that_it_began_with(app: App) -> None:
    """Another version of its graph is for runs that begin later; a repaired node is for all."""
    async with app() as graphs:
        before = await graphs.start("delayed", delay_ms=1500)

        async def is_there() -> bool:
            return bool(await graphs.running.stored(graphs.subjects.run("delayed", "running", before)))

        await waited(is_there, "the run is created")
        path = graphs.running.path
        path.write_text(CONFIG.replace("{n: 100}", "{n: 200}"))
        await graphs.running.reload(nodes=NODES.replace("self.inputs.n + self.inputs.by", "-self.inputs.n"))
        after = await graphs.start("delayed")
        assert (await graphs.record(after))["outputs"] == {"n": -200}
        assert (await graphs.record(before))["outputs"] == {"n": -100}


async def test_a_cancelled_run_ends_at_once_and_its_executions_are_not_run(app: App) -> None:
    """Also where two hundred of them wait in a pool: none of those that are left is given to a guest."""
    async with app() as graphs:
        run = await graphs.start("wide_pool", inputs={"n": 200})

        async def is_running() -> bool:
            return bool(await graphs.running.stored(graphs.subjects.run("wide_pool", "running", run)))

        await waited(is_running, "the run has begun")
        await graphs.send(run, {"t": "control", "what": "cancel", "id": "1", "by": "me", "reason": "enough"})
        record = await graphs.record(run)
        assert record["state"] == "CANCELLED"
        assert record["errors"][0]["text"] == "cancelled by me: enough"
        await waited(lambda: _nothing(graphs, "in."), "what was processed is removed", 30)
        assert graphs.running.metric("processor_processed_messages_total", route="nodes-pool") < 200


async def test_a_failed_run_is_tried_again_from_its_record(app: App) -> None:
    """What succeeded stays; the record of its failure goes with the first commit of the new try."""
    async with app() as graphs:
        run = await graphs.start("odd", inputs={"how": "fails"})
        assert (await graphs.record(run))["state"] == "FAILED"
        await graphs.running.reload(nodes=NODES.replace('raise ValueError("no price")', "pass"))
        await graphs.send(run, {"t": "control", "what": "retry", "id": "2", "by": "me"})

        async def succeeded() -> bool:
            found = await graphs.running.stored(graphs.subjects.record(run))
            return [each.subject.split(".")[4] for each in found if each.payload] == ["success"]

        await waited(succeeded, "the run has one record, of its success")


async def test_two_processors_share_runs_and_one_takes_over(tmp_path: Path, app: App) -> None:
    """What a processor leaves in the middle, another one ends: each run once."""
    async with app() as graphs:
        async with started(graphs.running.path, graphs.running.broker.address) as other:
            await other.until_ready()
            runs = [await graphs.start("pooled", inputs={"n": n}) for n in range(60)]
            await graphs.record(runs[0])
        records = [await graphs.record(run) for run in runs]
        assert [record["outputs"] for record in records] == [{"total": n + 2} for n in range(60)]
        assert len(await graphs.running.documents("results.pooled", 60)) == 60


async def test_what_runs_keep_is_changed_run_by_run(app: App) -> None:
    """A context or a position of the routes of graphs is set by nobody; they can be looked at and paused."""
    async with app() as graphs:
        broker = graphs.running.broker
        for verb, more in (
            ("reset", {"to": 1}),
            ("context.set", {"key": "r1", "path": "run", "value": 1}),
            ("context.delete", {"key": "r1", "path": "run"}),
        ):
            for route in ("graphs", "nodes-pool"):
                said = await refused(broker, verb, {"route": route, "by": "me", **more})
                assert said.startswith(f"E601 route {route} runs graphs"), said
        assert (await done(broker, "pause", route="nodes-pool", by="me"))["paused"] is True
        run = await graphs.start("pooled", inputs={"n": 1})
        assert (await done(broker, "resume", route="nodes-pool", by="me"))["paused"] is False
        assert (await graphs.record(run))["outputs"] == {"total": 3}
