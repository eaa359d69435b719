"""What operators are told of runs is told once, and of what was committed."""

from __future__ import annotations

import logging

import pytest

from tests.conftest import waited
from tests.running import Start

ROUTE = """r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  output: out.{key}
  key: subject.2
  retry: {attempts: 1}
"""
# While it spins, what comes next gathers into one batch.
BUSY = """
class Runnable:
    def process(self, queries):
        outputs = []
        for query in queries:
            for _ in range(query.get("spins", 0)):
                pass
            text = "x" * query.get("size", 1)
            outputs.append({"one": text, "two": text})
        return outputs
"""


async def test_a_dead_letter_is_told_once(processor: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Also where its batch is put together again, because what another message made fits into no message."""
    caplog.set_level(logging.INFO, "processor")
    async with processor(ROUTE, work=BUSY) as running:
        await running.publish("in.a", {"spins": 10_000_000})
        await waited(lambda: running.metric("processor_received_messages_total") == 1, "it spins")
        await running.publish("in.b", b"not json")
        await running.publish("in.c", {"size": 600_000})
        await running.dead_letters("r", 2)

        def told() -> list[str]:
            return [line.message[:17] for line in caplog.records if line.message.startswith("dead letter")]

        await waited(lambda: len(told()) >= 2, "both are told")
        assert sorted(told()) == ["dead letter: E301", "dead letter: E307"]
        assert running.metric("processor_batch_messages_count") == 4
        assert running.metric("processor_batch_messages_sum") == 1 + 2 + 1 + 1  # two together, then apart
