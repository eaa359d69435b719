"""A Runnable that cleared a context of more than a thousand items stopped its route for good.

Such a context is kept by item, and is small when it is empty: the commit was counted as one message and was
one for each item, which the server refuses, again and again.
"""

from __future__ import annotations

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
            for i in range(*query.get("fill", [0])):
                self.context[f"item-{i:04}"] = i
            for name in list(self.context)[: query.get("delete", 0)]:
                del self.context[name]
            yield len(self.context)
"""


async def test_what_no_commit_can_hold_is_a_dead_letter(processor: Start) -> None:
    """The route goes on, and what is removed in parts is removed."""
    async with processor(ROUTE, shape=SHAPE) as running:
        for number, query in enumerate(({"fill": [0, 700]}, {"fill": [700, 1400]}), 1):
            await running.publish("in", query)
            await running.documents("out", number)
        await running.publish("in", {"delete": 1400})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E324"
        await running.publish("in", {"delete": 700}, {"delete": 650})
        assert await running.documents("out", 4) == [700, 1400, 700, 50]
