"""A delayed message comes once, whatever is killed between the run that made it and the time it is due."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Stored
from tests.faults.test_kill import host
from tests.running import connected

CONFIG = """
app: app
http: off
routes:
  r:
    input: {subject: "in.*", create: true}
    emits: late.*
    batch: {max_messages: 20}
    code: |
      class Runnable:
          def process(self, queries):
              for i in queries:
                  self.emit(f"late.{i % 3}", i, delay_s=2 + i / 100)
                  self.emit("late.now", i)
"""
COUNT = 100


async def stored(broker: Broker, stream: str, pattern: str) -> list[Stored]:
    if await broker.stream(stream) is None:
        return []
    return [message async for message in broker.history(stream, [pattern])]


async def holds(broker: Broker, pattern: str, count: int) -> bool:
    return len(await stored(broker, "app-late-any", pattern)) >= count


async def is_sent(broker: Broker) -> bool:
    return not await stored(broker, "P_app", "p.app.emit.>")


async def test_delayed_messages_outlive_host_and_server(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The host dies in a commit and right after one, and the server while messages wait in it."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    async with connected(nats_server_file.url) as broker:
        await broker.create_stream({"name": "app-in-any", "subjects": ["in.*"]})
        for i in range(COUNT):
            await broker.publish_stored(Outgoing("in.x", orjson.dumps(i)))
        for point in ("inside step 2, half of the batch sent", "inside step 2, stored but not answered"):
            with host(config, nats_server_file.url, point, nth=2) as process:
                await wait_until(lambda: process.poll() is not None, f"the host died {point}", 30)
                assert process.returncode == -signal.SIGKILL
        with host(config, nats_server_file.url) as process:
            await wait_until(partial(holds, broker, "late.now", COUNT), "all have run", 30)
    nats_server_file.kill()
    nats_server_file.restart()
    async with connected(nats_server_file.url) as broker:
        await wait_until(partial(holds, broker, "late.*", 2 * COUNT), "all that waited has come", 30)
        await wait_until(partial(is_sent, broker), "nothing is left to come")
        late = [m for m in await stored(broker, "app-late-any", "late.*") if m.subject != "late.now"]
        assert sorted(int(m.payload) for m in late) == list(range(COUNT))
        assert all(m.subject == f"late.{int(m.payload) % 3}" for m in late)
