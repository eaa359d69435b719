"""A stream that was deleted and quickly made again was read on at the old position.

The consumer was made anew, as after any disturbance, at the next sequence: messages of the new stream below
it were skipped without a word. Now the reader compares when the stream was created.
"""

from __future__ import annotations

from typing import Any

from tests.running import Start

ECHO = """
class Runnable:
    def process(self, queries):
        return queries
"""
ROUTE = """
r:
  input: in
  runnable: echo.py
  output: out
"""


async def test_a_stream_made_anew_stops_the_route(processor: Start, wait_until: Any) -> None:
    """E407 in readiness, whether the reader or the restart notices; nothing of the new stream is read."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in"]})
        await running.publish("in", {"i": "old"}, {"i": "old"})
        await running.documents("out", 2)
        await running.broker.api("STREAM.DELETE.IN")
        await running.broker.create_stream({"name": "IN", "subjects": ["in"]})
        await running.publish("in", *({"i": i} for i in range(4)))
        await wait_until(lambda: "E407" in str(running.telemetry.readiness.blocks), "the route refuses", 20)
        assert await running.documents("out", 2) == [{"i": "old"}] * 2
