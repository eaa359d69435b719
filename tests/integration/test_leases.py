"""Messages of a work queue that workers lease: each is somebody's, and comes again where that one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import NS, Broker, LeasedMessage, Outgoing, WorkQueue, create_consumer
from tests.conftest import waited
from tests.running import connected

STREAM = {"name": "jobs", "subjects": ["job.*"], "retention": "workqueue", "storage": "file"}


@asynccontextmanager
async def working(broker: Broker, *, batch: int = 4, ack_wait_s: float = 30) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(broker, "jobs", "job.a", name="a", ack_wait_s=ack_wait_s, batch=batch)
    try:
        yield queue
    finally:
        await queue.close()


async def put(broker: Broker, *payloads: bytes) -> None:
    for payload in payloads:
        await broker.publish_stored(Outgoing("job.a", payload))


async def until_left(broker: Broker, count: int) -> None:
    async def is_so() -> bool:
        info = await broker.stream("jobs")
        return info is not None and info["state"]["messages"] == count

    await waited(is_so, f"{count} messages are left")


async def next_of(queue: WorkQueue) -> LeasedMessage:
    async with asyncio.timeout(20):
        return await queue.next()


async def test_workers_share_what_there_is(nats_server: EmbeddedServer) -> None:
    """Each message is leased to one; what is finished is gone, what is given back is for the other."""
    async with connected(nats_server.url) as broker, connected(nats_server.url) as other:
        await broker.create_stream(STREAM)
        await put(broker, b"1", b"2")
        async with working(broker, batch=1) as mine, working(other, batch=1) as theirs:
            first, second = await next_of(mine), await next_of(theirs)
            assert {first.payload, second.payload} == {b"1", b"2"}
            assert (first.tries, second.tries) == (1, 1)
            mine.finish(first)
            await until_left(broker, 1)
            theirs.give_back(second)
            again = await next_of(mine)
            assert (again.payload, again.tries, again.sequence) == (second.payload, 2, second.sequence)
            mine.finish(again)
            await until_left(broker, 0)


async def test_no_more_is_leased_than_was_asked_for(nats_server: EmbeddedServer) -> None:
    """What is in hand counts, and the next comes when one of it is done; the rest is for others."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream(STREAM)
        await put(broker, *(b"%d" % n for n in range(5)))
        async with working(broker, batch=2) as queue:
            held = [await next_of(queue), await next_of(queue)]
            info = (await broker.consumers("jobs"))[0]
            assert (info["num_ack_pending"], info["num_pending"]) == (2, 3)
            waiting = asyncio.create_task(next_of(queue))
            queue.finish(held.pop())
            held.append(await waiting)
            assert [each.payload for each in held] == [b"0", b"2"]
        # What was fetched and not taken is given back at once, what was taken is not.
        async with working(broker, batch=4) as queue:
            found = {(await next_of(queue)).payload for _ in range(2)}
            assert found == {b"3", b"4"}


async def test_a_lease_ends_unless_it_is_extended(nats_server: EmbeddedServer) -> None:
    """A message comes again to another when its time is over; `extend` gives it the whole time again."""
    async with connected(nats_server.url) as broker, connected(nats_server.url) as other:
        await broker.create_stream(STREAM)
        await put(broker, b"kept", b"lost")
        async with working(broker, batch=2, ack_wait_s=1) as mine, working(other, ack_wait_s=1) as theirs:
            kept, lost = await next_of(mine), await next_of(mine)
            assert (kept.payload, lost.payload) == (b"kept", b"lost")
            waiting = asyncio.create_task(next_of(theirs))

            def came_again() -> bool:
                mine.extend(kept)
                return waiting.done()

            await waited(came_again, "the other has it")
            again = await waiting
            assert (again.payload, again.tries) == (b"lost", 2)
            mine.finish(kept)
            theirs.finish(again)
            await until_left(broker, 0)


async def test_a_consumer_made_by_hand_keeps_its_time(nats_server: EmbeddedServer) -> None:
    """Operators may give more time; one that takes something else is named with what it takes."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream(STREAM)
        config = {
            "durable_name": "a",
            "filter_subject": "job.a",
            "ack_policy": "explicit",
            "ack_wait": 90 * NS,
        }
        await create_consumer(broker.api, "jobs", config, name="a")
        await put(broker, b"1")
        async with working(broker) as queue:
            assert (await next_of(queue)).payload == b"1"
            assert queue.ack_wait_s == 90
        await broker.delete_consumer("jobs", "a")
        await create_consumer(broker.api, "jobs", {**config, "filter_subject": "job.b"}, name="a")
        async with working(broker) as queue:
            with pytest.raises(BrokerError, match=r"E408 consumer a of stream jobs takes job\.b"):
                await next_of(queue)


async def test_work_goes_on_after_trouble(nats_server_file: EmbeddedServer) -> None:
    """A stream that is not there yet, a deleted consumer and a restart of the server are waited out."""
    async with connected(nats_server_file.url) as broker, working(broker) as queue:
        waiting = asyncio.create_task(next_of(queue))
        await broker.create_stream(STREAM)
        await put(broker, b"1")
        queue.finish(await waiting)
        await until_left(broker, 0)
        waiting = asyncio.create_task(next_of(queue))

        async def is_asking() -> Any:
            found = await broker.consumers("jobs")
            return found and found[0]["num_waiting"]

        await waited(is_asking, "it asks for work")
        await broker.delete_consumer("jobs", "a")
        await put(broker, b"2")
        queue.finish(await waiting)
        await until_left(broker, 0)
        waiting = asyncio.create_task(next_of(queue))
        await waited(is_asking, "it asks for work")
        nats_server_file.restart()
        async with connected(nats_server_file.url) as other:
            await put(other, b"3")
        assert (await waiting).payload == b"3"
