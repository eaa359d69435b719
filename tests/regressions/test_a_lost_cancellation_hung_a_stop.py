"""A service that was told to stop right after its start could wait for ever for one of its own tasks.

In Python 3.11 `asyncio.wait_for` returns what came instead of the cancellation that came in the same moment,
and nats-py waits for messages with it: the task that watches for due messages went on watching. Now what is
read from the server is waited for with `asyncio.timeout`, which loses nothing. The same happened to the
publisher of a benchmark at a flush; and a flush that was cancelled before its pong cost the connection.
"""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Unknown
from tests.conftest import frozen
from tests.running import connected


@types.coroutine
def turn() -> Iterator[None]:
    """One turn of the event loop."""
    yield


async def look_up(broker: Broker) -> None:
    await broker.last_of("S", ["s"])


async def read(broker: Broker) -> None:
    assert [stored.payload async for stored in broker.history("S", ["s"])] == [b"x"]


async def flush(broker: Broker) -> None:
    await broker.flush()


def arrived(broker: Broker) -> int:
    """Messages and pongs that the server has sent."""
    return broker.client.stats["in_msgs"] + broker.client._pongs_received


@pytest.mark.parametrize("work", [look_up, read, flush])
async def test_a_cancellation_ends_what_it_cancels(work: Any, nats_server: EmbeddedServer) -> None:
    """At every step from the moment an answer arrives: what is cancelled before it is done never returns."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "S", "subjects": ["s"], "allow_direct": True})
        await broker.publish_stored(Outgoing("s", b"x"))
        for answer, step in itertools.product(range(1, 5), range(10)):
            reading: Coroutine[Any, Any, None] = work(broker)
            task = asyncio.create_task(reading)
            seen = arrived(broker) + answer
            while arrived(broker) < seen and not task.done():
                await turn()
            for _ in range(step):
                await turn()
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task


async def test_a_flush_that_is_given_up_leaves_the_connection_as_it_was(nats_server: EmbeddedServer) -> None:
    """Cancelled before the pong, and out of time before it: what is asked next is answered as ever."""
    async with connected(nats_server.url) as broker:
        generation = broker.generation
        task = asyncio.create_task(broker.flush())
        await turn()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await broker.flush()
        async with frozen(nats_server.pid):
            with pytest.raises(Unknown):
                await broker._ping(timeout_s=0.05)
        await broker.flush()
        assert broker.generation == generation
