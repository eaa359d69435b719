"""kill -9 of a host at every kind of commit of graphs, before it and after it without its answer.

Whatever the engine or a pool was about to leave behind, the next host ends every run once: with one record,
one document, the right outputs, and nothing else. `tests/faults/host.py` has the names of the points.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.context.subjects import GraphSubjects, RouteSubjects
from processor.delivery.streams import Streams
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.model import partition_of
from tests.conftest import waited
from tests.faults.test_kill import dies, host
from tests.running import connected

NODES = """
from exospherehost import BaseNode
from pydantic import BaseModel


class Number(BaseModel):
    n: int


class PREFIXAdd(BaseNode):
    class Inputs(Number):
        pass

    class Outputs(Number):
        pass

    def execute(self):
        return self.Outputs(n=self.inputs.n + 1)


class PREFIXOnce(PREFIXAdd):
    def execute(self):
        if self.attempt < self.inputs.n:
            raise ValueError("not yet")
        return self.Outputs(n=self.attempt)


class PREFIXSplit(PREFIXAdd):
    def execute(self):
        return [self.Outputs(n=i) for i in range(self.inputs.n)]


class PREFIXSum(BaseNode):
    class Inputs(BaseModel):
        all: list

    class Outputs(Number):
        pass

    def execute(self):
        return self.Outputs(n=sum(self.inputs.all))
"""
CONFIG = """
app: %s
http: off
engine: {concurrency: 1, partitions: 4}
nodes:
  lib: lib.py
  pool: {file: pool.py, where: pool, partitions: 4}
graphs:
  chain:
    nodes:
      - {identifier: a, node_name: Add, inputs: {n: 0}, next_nodes: [b]}
      - {identifier: b, node_name: PoolAdd, inputs: {n: "${{ a.outputs.n }}"}}
    outputs: {n: "${{ b.outputs.n }}"}
    output: results.%s
  wide:
    nodes:
      - {identifier: split, node_name: Split, inputs: {n: 0}, next_nodes: [each]}
      - {identifier: each, node_name: Add, inputs: {n: "${{ split.outputs.n }}"}, next_nodes: [sum]}
      - {identifier: sum, node_name: Sum, inputs: {all: "${{ each.outputs.n }}"}, unites: {identifier: split}}
    outputs: {n: "${{ sum.outputs.n }}"}
    output: results.%s
  again:
    nodes:
      - identifier: a
        node_name: Once
        inputs: {n: 0}
        retry: {max_retries: 1, strategy: FIXED, backoff_factor: 100}
    outputs: {n: "${{ a.outputs.n }}"}
    output: results.%s
  outer:
    nodes:
      - {identifier: a, node_name: "graph:chain", inputs: {n: 0}, next_nodes: [b]}
      - {identifier: b, node_name: Add, inputs: {n: "${{ a.outputs.n }}"}}
    outputs: {n: "${{ b.outputs.n }}"}
    output: results.%s
"""
COUNT = 2500  # executions of a wide run: more than one batch takes
STARTS: dict[str, tuple[str, int, int]] = {  # by run: its graph, its input, and what comes of it
    **{f"c{n}": ("chain", n, n + 2) for n in range(5)},
    "w": ("wide", COUNT, COUNT * (COUNT + 1) // 2),
    "r": ("again", 2, 2),
    "o": ("outer", 5, 8),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all points: each has an app of its own."""
    running = EmbeddedServer.start(tmp_path_factory.mktemp("nats"), memory=True)
    yield running
    running.stop()


async def send(broker: Broker, app: str, run: str, **message: Any) -> None:
    subject = RouteSubjects(app, "graphs").inbox(partition_of(run, 4))
    await broker.publish_stored(Outgoing(subject, orjson.dumps({"v": 1, "run": run, **message})))


async def records(broker: Broker, app: str) -> dict[str, dict[str, Any]]:
    """The records of runs that have ended, by run; each has one."""
    found: dict[str, dict[str, Any]] = {}
    for stored in await broker.last_of(f"P_{app}", [f"p.{app}.run.>"]):
        if stored.payload and ".running." not in stored.subject:
            record = orjson.loads(stored.payload)
            assert record["run"] not in found
            found[record["run"]] = record
    return found


@pytest.mark.parametrize(
    "point",
    [
        "half of a record sent",
        "a record stored but not answered",
        "a dispatch stored but not answered",
        "half of a result sent",
        "a result stored but not answered",
        "half of a slice sent",
        "a slice stored but not answered",
        "a cut stored but not answered",
        "a timer stored but not answered",
        "a child stored but not answered",
        "a revival stored but not answered",
    ],
)
async def test_runs_end_once_wherever_a_host_was_killed(
    point: str, tmp_path: Path, server: EmbeddedServer
) -> None:
    """Also those that it was killed over, and a run that is tried again when it had failed."""
    app = "-".join(word[:8] for word in point.split())[:32]
    (tmp_path / "lib.py").write_text(NODES.replace("PREFIX", ""))
    (tmp_path / "pool.py").write_text(NODES.replace("PREFIX", "Pool"))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % ((app,) * 5))
    expected = {run: end for run, (_, _, end) in STARTS.items()}
    async with connected(server.url) as broker:
        await Streams(broker, load(path, {"NATS_URL": server.url})).prepare()
        for run, (graph, n, _) in STARTS.items():
            await send(broker, app, run, t="start", graph=graph, inputs={"n": n}, by="api")
        if "revival" in point:
            expected["late"] = 3
            await send(broker, app, "late", t="start", graph="again", inputs={"n": 3}, by="api")
            with host(path, server.url):
                await waited(lambda: _has(broker, app, "late", "FAILED"), "it has failed", 60)
            await send(broker, app, "late", t="control", what="retry", id="1", by="me")
        await dies(path, server.url, point)
        with host(path, server.url):

            async def ended() -> dict[str, int] | None:
                found = await records(broker, app)
                is_done = {
                    run for run, each in found.items() if each["state"] == "SUCCESS"
                } >= expected.keys()
                return {run: found[run]["outputs"]["n"] for run in expected} if is_done else None

            assert await waited(ended, "every run has ended well", 90) == expected
            child = "o~a"
            stream = await broker.find_stream(f"results.{app}")
            assert stream is not None
            documents = [
                orjson.loads(each.payload) async for each in broker.history(stream, [f"results.{app}"])
            ]
            ends = [(each["run"], each["state"]) for each in documents]
            failed = [("late", "FAILED")] if "revival" in point else []
            assert sorted(ends) == sorted([(run, "SUCCESS") for run in (*expected, child)] + failed)
            await waited(lambda: _nothing(broker, app), "nothing else is left", 60)


async def _has(broker: Broker, app: str, run: str, state: str) -> bool:
    return (await records(broker, app)).get(run, {}).get("state") == state


async def _nothing(broker: Broker, app: str) -> bool:
    subjects = GraphSubjects(app)
    kinds = [f"p.{app}.ctx.graphs.>", subjects.every_timer, subjects.runs(state="running")]
    return not [each for each in await broker.last_of(f"P_{app}", kinds) if each.payload]
