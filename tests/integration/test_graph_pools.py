"""Executions of a pool that share runs of its guest: each is a result of its own, and calls are made once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from processor.embedded import EmbeddedServer
from tests.integration.test_graphs import Graphs
from tests.running import started, write_sources
from tests.web import Web, answer, serving

NODES = """
import httpx
from exospherehost import BaseNode, PruneSignal
from pydantic import BaseModel


class Ask(BaseNode):
    class Inputs(BaseModel):
        url: str
        how: str = ""

    class Outputs(BaseModel):
        said: str = ""

    async def execute(self):
        async with httpx.AsyncClient() as client:
            said = (await client.get(self.inputs.url)).text
        for number in range({"tells": 2, "floods": 301, "raises": 1}.get(self.inputs.how, 0)):
            self.event("told", {"number": number})
        if self.inputs.how == "raises":
            raise ValueError("after the call")
        if self.inputs.how == "prunes":
            raise PruneSignal({})
        if self.inputs.how == "dies":
            "x" * (1 << 40)
        return self.Outputs(said=said)
"""
PURE = """
from exospherehost import BaseNode
from pydantic import BaseModel


class Tell(BaseNode):
    class Inputs(BaseModel):
        count: int

    def execute(self):
        for number in range(self.inputs.count):
            self.event("told", {"number": number})
"""
CONFIG = """
app: app
http: off
drain_s: 5
engine: {{concurrency: 1, partitions: 8}}
nodes:
  pool: {{file: nodes.py, partitions: 1, outbound: ["{host}"]}}
  lib: lib.py
graphs:
  ask:
    nodes:
      - {{identifier: a, node_name: Ask, inputs: {{url: "", how: ""}}, retry: {{max_retries: 0}}}}
    outputs: {{said: "${{{{ a.outputs.said }}}}"}}
    events: {{subject: events.ask, level: user}}
  tell:
    nodes:
      - {{identifier: a, node_name: Tell, inputs: {{count: 0}}, retry: {{max_retries: 0}}}}
    events: {{subject: events.tell, level: user}}
"""


@asynccontextmanager
async def app(tmp_path: Path, server: EmbeddedServer, web: Web) -> AsyncIterator[Graphs]:
    """An app with a pool of one guest that asks a web server."""
    write_sources(tmp_path, {"nodes": NODES, "lib": PURE})
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(host=web.host))
    async with started(path, server.url) as running:
        await running.until_ready()
        yield Graphs(running)


async def test_one_that_fails_among_many_is_alone_and_calls_are_made_once(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """Each execution has its own result, and one request: also those beside one that ended their guest."""
    async with (
        serving(lambda asked: answer(asked.target.encode())) as web,
        app(tmp_path, nats_server, web) as graphs,
    ):
        first = await graphs.start("ask", inputs={"url": f"{web.url}/first"})
        await graphs.record(first)  # now it is known how long they take
        odd = {7: "raises", 13: "prunes", 19: "dies", 26: "raises"}
        runs = [
            await graphs.start("ask", inputs={"url": f"{web.url}/{n}", "how": odd.get(n, "")})
            for n in range(40)
        ]
        records = [await graphs.record(run) for run in runs]
        wanted = ["FAILED" if odd.get(n) in ("raises", "dies") else "SUCCESS" for n in range(40)]
        assert [record["state"] for record in records] == wanted
        for n, record in enumerate(records):
            if n not in odd:
                assert record["outputs"] == {"said": f"/{n}"}
        assert records[7]["errors"][0]["code"] == "E304"
        assert "after the call" in records[7]["errors"][0]["text"]
        asked = Counter(each.target for each in web.asked)
        assert asked == {"/first": 1, **{f"/{n}": 1 for n in range(40)}}


async def test_what_nodes_say_goes_to_the_events_of_their_graph(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """Once, with the result of their execution; none of one that failed, or says more than a commit takes."""
    async with (
        serving(lambda asked: answer(asked.target.encode())) as web,
        app(tmp_path, nats_server, web) as graphs,
    ):
        runs = [
            await graphs.start("ask", inputs={"url": f"{web.url}/{how}", "how": how})
            for how in ("tells", "floods", "raises")
        ]
        records = [await graphs.record(run) for run in runs]
        assert [record["state"] for record in records] == ["SUCCESS", "FAILED", "FAILED"]
        assert records[1]["errors"][0]["code"] == "E324"
        events = await graphs.running.documents("events.ask", 2)
        assert [(event["run"], event["x"], event["name"], event["data"]) for event in events] == [
            (runs[0], "a", "told", {"number": 0}),
            (runs[0], "a", "told", {"number": 1}),
        ]
        runs = [await graphs.start("tell", inputs={"count": count}) for count in (1, 301)]
        records = [await graphs.record(run) for run in runs]
        assert [record["state"] for record in records] == ["SUCCESS", "FAILED"]
        assert records[1]["errors"][0]["code"] == "E324"
        assert len(await graphs.running.documents("events.tell", 1)) == 1
