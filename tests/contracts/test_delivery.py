"""The delivery contract, the same on every kind of storage: once each, in order per key, context included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import waited
from tests.contracts.conftest import Storage
from tests.running import Running, starter

COUNT = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] += 1
            if query.get("poison"):
                raise ValueError("poison")
            outputs.append({**query, "n": self.context["n"]})
        return outputs
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  output: out.{key}
  batch: {max_messages: 30}
"""


async def outputs_of(running: Running, key: str, count: int) -> list[tuple[int, int]]:
    return [(o["i"], o["n"]) for o in await running.documents(f"out.{key}", count)]


async def test_every_message_has_its_effects_once_and_in_order(storage: Storage, tmp_path: Path) -> None:
    """Over two lives of the processor: outputs numbered per key without gap, one dead letter."""
    processor = starter(tmp_path, storage.urls)
    for life in range(2):
        async with processor(ROUTE, storage.top, count=COUNT) as running:
            for i in range(100):
                document = {"i": i, "poison": True} if life == 0 and i == 50 else {"i": i}
                await running.publish(f"in.k{i % 3}", document)
            for number, done in enumerate((34, 33, 32) if life == 0 else (68, 66, 65)):
                found = await outputs_of(running, f"k{number}", done)
                assert [n for _, n in found] == list(range(1, done + 1))
            [letter] = await running.dead_letters("r")
            assert letter.headers["x-original-subject"] == "in.k2"
    async with processor(ROUTE, storage.top, count=COUNT) as running:
        assert await running.contexts("r") == {"k0": {"n": 68}, "k1": {"n": 66}, "k2": {"n": 65}}


REMIND = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.emit("later.x", query["i"], delay_s=query["i"] / 50)
            if query.get("poison"):
                raise ValueError("poison")
"""
REMINDED = """
r:
  input: {subject: "in.*", create: true}
  runnable: remind.py
  emits: later.*
  retry: {base_ms: 0}
collect:
  input: later.*
  code: |
    class Runnable:
        def process(self, queries):
            self.context["seen"] = self.context.get("seen", []) + queries
            return queries
  output: seen
"""


async def test_what_is_emitted_comes_once_and_when_it_is_due(storage: Storage, tmp_path: Path) -> None:
    """To another route, whose stream the first one makes; a run that failed has left nothing for later."""
    async with starter(tmp_path, storage.urls)(REMINDED, storage.top, remind=REMIND) as running:
        await running.publish("in.a", *({"i": i, "poison": i == 7} for i in range(20)))
        await running.dead_letters("r")
        seen = await running.documents("seen", 19)
        assert sorted(seen) == [i for i in range(20) if i != 7]
        assert await running.contexts("collect") == {"": {"seen": seen}}

        async def is_sent() -> bool:
            return not await running.stored("p.app.emit.>")

        await waited(is_sent, "nothing is left to come")


@pytest.mark.parametrize("retention", ["limits", "interest", "workqueue"])
async def test_every_retention_of_the_input_is_read_once(
    storage: Storage, tmp_path: Path, retention: str
) -> None:
    """Streams that keep and streams that delete what is acknowledged: the same outputs, over a restart."""
    processor = starter(tmp_path, storage.urls)
    route = ROUTE.replace(", create: true", "")
    async with processor(route, storage.top, count=COUNT) as running:
        await storage.create_input(running.broker, retention)
        await running.until_ready()
        await running.publish("in.k", *({"i": i} for i in range(60)))
        await running.documents("out.k", 60)
    async with processor(route, storage.top, count=COUNT) as running:
        await running.publish("in.k", *({"i": i} for i in range(60, 90)))
        assert await outputs_of(running, "k", 90) == [(i, i + 1) for i in range(90)]
