"""The contract of a source, the same for a stream's reader and in memory: in order, within what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.delivery.memory import MemorySource
from processor.delivery.source import Source
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Reader
from processor.model import NO_HEADERS, Delivery
from tests.conftest import waited
from tests.running import connected

ALL = 1 << 20


class OnServer:
    def __init__(self, broker: Broker, reader: Reader) -> None:
        self._broker = broker
        self.source: Source = reader

    async def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            await self._broker.publish_stored(Outgoing("in.a", payload))


class InMemory:
    def __init__(self) -> None:
        self._memory = MemorySource()
        self._count = 0
        self.source: Source = self._memory

    async def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            self._count += 1
            self._memory.give(Delivery("in.a", payload, NO_HEADERS, "IN", self._count, 0.0))


@asynccontextmanager
async def on_server(server: EmbeddedServer) -> AsyncIterator[OnServer]:
    async with connected(server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.*"], "storage": "memory"})
        info = await broker.stream("IN")
        assert info is not None
        reader = Reader(
            broker,
            "IN",
            ["in.*"],
            created=info["created"],
            retention="limits",
            name="r",
            start_sequence=1,
            prefetch=10,
        )
        await reader.open()
        yield OnServer(broker, reader)
        await reader.close()


@asynccontextmanager
async def in_memory() -> AsyncIterator[InMemory]:
    yield InMemory()


@pytest.fixture(params=["server", "memory"])
def opened(request: pytest.FixtureRequest) -> Any:
    """Opens the source of a test."""
    if request.param == "memory":
        return in_memory()
    return on_server(request.getfixturevalue("nats_server"))


async def test_deliveries_are_taken_in_order_and_within_what_was_asked(opened: Any) -> None:
    """So many and so many bytes at most, but one at least; `taken` is how far that went."""
    async with opened as place:
        source = place.source
        assert (source.taken, source.waiting, source.peek(5)) == (0, 0, [])
        await place.publish(b"1", b"22", b"333", b"4444", b"5")
        await waited(lambda: source.waiting == 5, "all of them are here")
        assert [d.payload for d in source.peek(2)] == [b"1", b"22"]
        assert [d.payload for d in await source.take(2, ALL)] == [b"1", b"22"]
        assert (source.taken, source.waiting) == (2, 3)
        assert [d.payload for d in await source.take(5, 2)] == [b"333"]
        taken = await source.take(5, 5)
        assert [(d.payload, d.sequence, d.subject) for d in taken] == [
            (b"4444", 4, "in.a"),
            (b"5", 5, "in.a"),
        ]
        await source.ack(taken)
        assert (source.taken, source.waiting) == (5, 0)


async def test_whoever_takes_waits_for_the_first(opened: Any) -> None:
    """With nothing there it returns as soon as something comes; one that is cancelled has taken nothing."""
    async with opened as place:
        source = place.source
        given_up = asyncio.create_task(source.take(5, ALL))
        await asyncio.wait({given_up}, timeout=0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        taking = asyncio.create_task(source.take(5, ALL))
        await asyncio.wait({taking}, timeout=0)
        assert not taking.done()
        await place.publish(b"1")
        assert [d.payload for d in await taking] == [b"1"]
        assert source.taken == 1


async def test_a_source_in_memory_says_when_it_is_drained() -> None:
    """Not when the last delivery was taken, but when more is asked for: what was taken has been taken up."""
    source = MemorySource([Delivery("in.a", b"1", NO_HEADERS, "IN", 1, 0.0)])
    drained = asyncio.create_task(source.drained())
    await source.take(5, ALL)
    await asyncio.wait({drained}, timeout=0)
    assert not drained.done()
    taking = asyncio.create_task(source.take(5, ALL))
    await drained
    source.give(Delivery("in.a", b"2", NO_HEADERS, "IN", 2, 0.0))
    assert [d.payload for d in await taking] == [b"2"]
    again = asyncio.create_task(source.drained())
    await asyncio.wait({again}, timeout=0)
    assert not again.done()
    again.cancel()
