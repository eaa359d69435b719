"""An item that a Runnable deleted was there again after a restart.

A context that has grown is kept item by item, also when it is small again. When such a context lost an item
and grew again in one run, the guest reported all of its items as for one that had never been large, and left
out that one was gone.
"""

from __future__ import annotations

from typing import Any

from tests.running import Start

ROUTE = """
r:
  input: {subject: in, create: true}
  runnable: shape.py
  output: out
"""
SHAPE = """
class Runnable:
    def process(self, queries):
        for query in queries:
            for name in query["delete"]:
                del self.context[name]
            for name, size in query["set"].items():
                self.context[name] = "x" * size
            yield sorted(self.context)
"""


async def test_an_item_deleted_while_its_context_grows_stays_deleted(processor: Start) -> None:
    """Large, small, and large again without one of its items: that is what the next start finds."""
    steps: list[dict[str, Any]] = [
        {"set": {"a": 5000, "b": 10}, "delete": []},
        {"set": {"a": 10}, "delete": []},
        {"set": {"c": 5000}, "delete": ["b"]},
    ]
    async with processor(ROUTE, shape=SHAPE) as running:
        for number, step in enumerate(steps, 1):
            await running.publish("in", step)
            await running.documents("out", number)
    async with processor(ROUTE, shape=SHAPE) as running:
        await running.publish("in", {"set": {}, "delete": []})
        assert (await running.documents("out", 4))[-1] == ["a", "c"]
