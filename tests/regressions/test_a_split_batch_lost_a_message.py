"""A stop moved positions beyond a message in hand.

A batch that fails is split around the group that failed, and what comes before it may hold later messages of
other keys. Their commit took the whole route to be read up to there: a stop then moved the position of the
partition whose message was still to be tried, and the next start skipped it.
"""

from __future__ import annotations

from tests.conftest import waited
from tests.running import Start

WORK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            if query.get("slow"):
                sum(range(60_000_000))
            if query.get("kill"):
                "x" * (1 << 40)
        return queries
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out.{key}
  retry: {attempts: 2, strategy: fixed, base_ms: 0}
  breaker: {deaths: 2, window_s: 60, pause_s: 600}
"""


async def test_a_stop_leaves_a_message_in_hand_to_the_next_start(processor: Start) -> None:
    """Whatever later messages of other keys were committed before it was tried."""
    async with processor(ROUTE, work=WORK) as running:
        await running.publish("in.c", {"i": 0, "slow": True})
        taken = "processor_received_messages_total"
        await waited(lambda: running.metric(taken, route="r") == 1, "what comes now is one batch")
        await running.publish("in.b", {"i": 1})
        await running.publish("in.a", {"i": 2, "kill": True})
        await running.publish("in.d", {"i": 3, "kill": True})
        await running.publish("in.b", {"i": 4})
        await running.documents("out.b", 2)  # the later one, too
        await waited(lambda: "breaker r" in running.telemetry.readiness.blocks, "nothing runs")
        assert await running.service.stop()
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-original-subject"] == "in.a"
    async with processor(ROUTE, work=WORK.replace('"x" * (1 << 40)', "pass")) as running:
        assert await running.documents("out.d", 1) == [{"i": 3, "kill": True}]
