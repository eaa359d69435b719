"""Tries of a message that failed after its run left their changes in the guest's context.

The guest had succeeded and kept its changes; then the host found that an output could not be published (a
subject of too many bytes, base64 that is none). The message became a dead letter, but what its three tries
had counted went out with the next commit. Now the host takes such a run back.
"""

from __future__ import annotations

from tests.running import Start

ECHO = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] += 1
            outputs.append({"base64": query["data"]} if query["data"] != "count" else str(self.context["n"]))
        return outputs
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true, codec: raw}
  runnable: echo.py
  output: out
"""


async def test_a_run_that_cannot_be_published_leaves_no_trace(processor: Start) -> None:
    """Base64 that is none is refused by the host, three times; the count goes on as if it never came."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in.a", b"count", b"no base64!", b"count")
        assert await running.payloads("out", 2) == [b"1", b"2"]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E306"
        assert letter.headers["x-delivery-count"] == "3"
        assert await running.contexts("r") == {"": {"n": 2}}
