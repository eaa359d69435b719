"""A route with a backlog went on through all of it before it stopped.

Waiting for the next messages and for the stop at once, the puller looked at the messages first; with some
always at hand it never saw the stop. Now the stop goes first.
"""

from __future__ import annotations

from typing import Any

from tests.running import Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: echo.py
  mode: stream
  output: out
"""
ECHO = """
class Runnable:
    def process_stream(self, query):
        yield query
"""
BACKLOG = 6000


async def test_a_stop_settles_what_is_in_hand_and_leaves_the_rest(processor: Start, wait_until: Any) -> None:
    """One message per commit, thousands waiting: the stop is clean, and they wait for the next start."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in.a", *({"i": i} for i in range(BACKLOG)))
        await wait_until(lambda: running.metric("processor_committed_messages_total") > 0, "it has begun")
        assert await running.service.stop()
        assert running.metric("processor_committed_messages_total") < BACKLOG
