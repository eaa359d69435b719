"""A redrive ended with an error when a cluster asked to try again, or when its answer was lost.

With three servers a write to a subject on which another is under way is refused for the moment (10164): of
two people who redrove the same letters at once, one saw a traceback. And an answer that is lost says nothing.
Now it is tried again, and looked up whose write it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from processor.jetstream import Again, Broker, Outgoing, Unknown
from processor.operate.dead_letters import DeadLetters, Filter
from tests.running import COUNT, REPAIRED, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  output: out
  retry: {attempts: 1}
"""


class Troubled(Broker):
    """A broker that is told to try again, and then hears nothing of what was stored."""

    commits = 0

    async def commit(self, messages: Sequence[Outgoing]) -> int:
        self.commits += 1
        if self.commits == 1:
            raise Again("wrong last sequence (10164)")
        stored = await super().commit(messages)
        if self.commits == 2:
            raise Unknown("the answer is lost")
        return stored


async def test_a_redrive_in_trouble_is_tried_again_and_known_as_ours(processor: Start) -> None:
    """Refused for the moment, then stored without an answer, then refused for good: it was done, once."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"})
        await running.dead_letters("r")
        await running.reload(work=REPAIRED)
        broker = await Troubled.connect({"servers": [running.broker.address]}, name="test", wait=False)
        letters = DeadLetters(broker, "app")
        [letter] = [letter async for letter in letters.find(Filter())]
        assert await letters.redrive(letter)
        assert broker.commits == 3
        assert not await letters.redrive(letter)
        await broker.close()
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 2) == [{"i": 0, "n": 1}, {"i": 1, "n": 2}]
