"""What came of a redriven message was dropped by streams that Processor publishes to.

A stream that does not copy from the app's drops what has an id that it has seen in its duplicate window. The
outputs of a redriven message were numbered anew under the id of its first life, which its dead letter's event
had taken in the same stream.
"""

from __future__ import annotations

from processor.embedded import EmbeddedServer
from processor.operate.dead_letters import DeadLetters, Filter
from tests.running import COUNT, REPAIRED, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  output: all.out
  events: {subject: all.events, level: failures}
  retry: {attempts: 1}
"""


async def test_what_comes_of_a_redriven_message_is_new(processor: Start, nats_server: EmbeddedServer) -> None:
    """In a stream that is published to it comes beside the event of its dead letter, and of the next one."""
    async with connected(nats_server.url) as broker:
        needed = {"allow_msg_ttl": True, "allow_rollup_hdrs": True}
        # A stream with schedules cannot have sources.
        scheduled = {"name": "ALL", "subjects": ["all.>"], "allow_msg_schedules": True, **needed}
        await broker.create_stream(scheduled)
    async with processor(ROUTE, work=COUNT) as running:
        letters = DeadLetters(running.broker, "app")
        await running.publish("in.a", {"i": 0, "fails": "no"})
        for count in (1, 2):
            await running.dead_letters("r")
            assert len(await running.documents("all.events", count)) == count
            if count == 2:
                await running.reload(work=REPAIRED)
            for letter in [letter async for letter in letters.find(Filter(route="r"))]:
                assert await letters.redrive(letter)
        assert await running.documents("all.out", 1) == [{"i": 0, "n": 1}]
