"""A service that was told to stop right after its start could wait for ever for one of its own tasks.

In Python 3.11 `asyncio.wait_for` returns what came instead of the cancellation that came in the same moment,
and nats-py waits for messages with it: the task that watches for due messages went on watching. Now what is
read from the server is waited for with `asyncio.timeout`, which loses nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Message
from tests.running import connected


@types.coroutine
def turn() -> Iterator[None]:
    """One turn of the event loop."""
    yield


async def look_up(broker: Broker) -> None:
    await broker.last_of("S", ["s"])


async def read(broker: Broker) -> None:
    assert [stored.payload async for stored in broker.history("S", ["s"])] == [b"x"]


@pytest.mark.parametrize("work", [look_up, read])
async def test_a_cancellation_ends_what_it_cancels(work: Any, nats_server: EmbeddedServer) -> None:
    """At every step from the moment an answer arrives: what is cancelled before it is done never returns."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "S", "subjects": ["s"], "allow_direct": True})
        await broker.publish_stored(Message("s", b"x"))
        for answer, step in itertools.product(range(1, 5), range(10)):
            reading: Coroutine[Any, Any, None] = work(broker)
            task = asyncio.create_task(reading)
            seen = broker.client.stats["in_msgs"] + answer
            while broker.client.stats["in_msgs"] < seen and not task.done():
                await turn()
            for _ in range(step):
                await turn()
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
