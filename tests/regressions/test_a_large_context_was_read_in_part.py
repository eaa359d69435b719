"""An answer of more bytes than the server lets a client be behind ended early, and nobody looked at how.

A context of 100 MB came back from a restart with 64 MB of its items. What was read message by message instead
could end with a dropped connection.
"""

from __future__ import annotations

import asyncio

from processor.embedded import EmbeddedServer
from processor.jetstream import Again, Broker, Outgoing
from tests.running import connected

COUNT, SIZE = 80, 900_000  # 72 MB, of 64


async def fill(broker: Broker, count: int, size: int) -> None:
    await broker.create_stream(
        {"name": "BIG", "subjects": ["big.*"], "max_msgs_per_subject": 1, "allow_direct": True}
    )
    for number in range(count):
        await broker.publish_stored(Outgoing(f"big.{number}", b"%d" % number + b"x" * size))


async def test_all_of_a_large_answer_is_read(nats_server: EmbeddedServer) -> None:
    """The last messages of many subjects, and what a stream holds, in parts that the client keeps up with."""
    async with connected(nats_server.url) as broker:
        await fill(broker, COUNT, SIZE)
        found = await broker.last_of("BIG", ["big.*"])
        assert [s.subject for s in found] == [f"big.{number}" for number in range(COUNT)]
        seen = [s.sequence async for s in broker.history("BIG", ["big.*"])]
        assert seen == list(range(1, COUNT + 1))
        assert broker.generation == 1  # the connection was not lost over it


async def test_many_small_messages_are_read_in_order(nats_server: EmbeddedServer) -> None:
    """A request that brought all that it asked for is not taken for one that failed."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "BIG", "subjects": ["big.*"], "allow_direct": True})
        await broker.publish(*(Outgoing("big.1", b"%d" % number) for number in range(2499)))
        await broker.publish_stored(Outgoing("big.1", b"2499"))  # behind all others
        seen = [int(s.payload) async for s in broker.history("BIG", ["big.*"])]
        assert seen == list(range(2500))


async def test_parts_of_a_large_answer_are_of_one_moment(nats_server: EmbeddedServer) -> None:
    """What changes between two parts makes the whole be read again: a mixture is never returned."""
    async with connected(nats_server.url) as broker, connected(nats_server.url) as other:
        await fill(broker, 40, 500_000)
        ended, again = asyncio.Event(), 0

        async def change() -> None:
            number = 0
            while not ended.is_set():
                number += 1
                await other.publish_stored(Outgoing("big.0", b"%d" % number))
                await other.publish_stored(Outgoing("big.1", b"%d" % number))

        changing = asyncio.create_task(change())
        for _ in range(20):
            try:
                found = {s.subject: s.payload for s in await broker.last_of("BIG", ["big.*"])}
            except Again:
                again += 1
                continue
            assert len(found) == 40
            first, second = (found[f"big.{n}"] for n in range(2))
            if len(first) < 100 and len(second) < 100:
                assert int(first) - int(second) in (0, 1)
        ended.set()
        await changing
        assert again > 0
