"""Everything that an app's stream can hold, as a build wrote it, to be read by every later one.

    python -m tests.regressions.captured VERSION

runs the routes below, and writes their stream to `captured-VERSION.jsonl` beside this file. A file that is
there is never written again: it is what users have.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import orjson

from processor.config import load
from processor.context.history import Author
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from processor.operate.edits import ContextEdits
from tests.conftest import waited
from tests.running import COUNT, Running, starter

FOLDER = Path(__file__).parent
ROUTES = """
r:
  input: {subject: "in.*", create: true}
  runnable: shape.py
  key: subject.2
  partitions: 2
  output: out.{key}
  history: 7d
b:
  input: {subject: "blocks.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 2
  output: blocked.{key}
  retry: {attempts: 1, max_ms: 3600000, then: block}
"""
SHAPE = """
class Runnable:
    def init(self):
        self.context["n"] = 0
        self.context["gone"] = True

    def process(self, queries):
        for query in queries:
            if query.get("reject"):
                raise Reject("captured")
            if query.get("retry"):
                raise Retry(after_s=900_000_000)
            self.context["n"] += 1
            for name, size in query.get("fill", {}).items():
                self.context[name] = "x" * size
            for name in query.get("delete", []):
                del self.context[name]
            kinds = {name: len(value) for name, value in self.context.items() if isinstance(value, str)}
            yield {"n": self.context["n"], "has": "gone" in self.context, "texts": kinds}
"""
FILLED = {
    "small": {"a": 10},
    "middle": {"b": 3500},
    "middle-2": {"b": 3500},
    "large": {"c": 5000, "d": 10, "long name " * 20: 20},
}


def kept(version: str) -> list[Outgoing]:
    """The messages of a captured stream, without what made them one commit."""
    found = []
    for line in (FOLDER / f"captured-{version}.jsonl").read_bytes().splitlines():
        message = orjson.loads(line)
        found.append(Outgoing(message["subject"], b64decode(message["data"]), message["headers"]))
    return found


async def scenario(running: Running) -> None:
    """Leave one of each kind behind."""
    for key, fill in FILLED.items():
        delete = ["gone"] if key == "small" else []
        await running.publish(f"in.{key}", {"fill": fill, "delete": delete})
        await running.documents(f"out.{key}", 1)
    await running.publish("in.small", {"reject": True}, {"reject": True})
    await running.dead_letters("r", 2)
    await running.publish("in.late", {"retry": True})
    await waited(partial(holds, running, "p.app.later.r.>", 1), "the retry is with the server")
    await running.publish("blocks.k", {"i": 0, "fails": "yet"}, {"i": 1}, {"i": 2})
    await waited(partial(holds, running, "p.app.held.b.>", 3), "the messages are held")
    route = load(running.path, {"NATS_URL": running.broker.address}).routes["r"]
    edits = ContextEdits(running.broker, route)
    await edits.set("edited", "tags", {"x", "y"}, Author("ann@desk", "captured"))
    control = Control(running.broker, "app")
    await control.pause("r", is_paused=True, reason="captured")
    await waited(lambda: running.service._runs["r"].worker is None, "the route stands still")
    letters = DeadLetters(running.broker, "app")
    [first, _] = [letter async for letter in letters.find(Filter(route="r"))]
    await letters.redrive(first)


async def holds(running: Running, subject: str, count: int) -> bool:
    return len(await running.stored(subject)) == count


async def messages(broker: Broker) -> list[dict[str, object]]:
    info = await broker.stream("P_app")
    assert info is not None
    found: list[dict[str, object]] = []
    sequence = 1
    while (stored := await broker.next_of("P_app", "p.app.>", sequence)) is not None:
        reply = await broker.api("STREAM.MSG.GET.P_app", {"seq": stored.sequence})
        headers = dict(headers_of(b64decode(reply["message"].get("hdrs", ""))))
        data = b64encode(stored.payload).decode()
        found.append({"subject": stored.subject, "headers": headers, "data": data})
        sequence = stored.sequence + 1
    return found


def headers_of(text: bytes) -> Iterator[tuple[str, str]]:
    for line in text.decode().split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name and not name.startswith(("Nats-Batch-", "Nats-Expected-")):
            yield name, value.strip()


async def capture(version: str) -> None:
    path = FOLDER / f"captured-{version}.jsonl"
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer.start(memory=True) as server:
        async with starter(Path(folder), server.url)(ROUTES, shape=SHAPE, count=COUNT) as running:
            await scenario(running)
            lines = [orjson.dumps(message) for message in await messages(running.broker)]
    with path.open("xb") as file:
        file.write(b"\n".join(lines) + b"\n")


if __name__ == "__main__":
    asyncio.run(capture(sys.argv[1]))
