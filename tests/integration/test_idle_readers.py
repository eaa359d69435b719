"""Readers for which nothing comes: what they ask of the server, and that they notice what is lost.

Their intervals are small parts of what they are in a process that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Reader
from processor.model import Delivery
from tests.conftest import frozen, waited
from tests.running import connected

HEARTBEAT_S, SHORT_S, LONG_S = 0.25, 0.6, 1.5


@pytest.fixture(autouse=True)
def _intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.jetstream.connection.TICK_S", HEARTBEAT_S)
    monkeypatch.setattr("processor.jetstream.reader._HEARTBEAT_S", HEARTBEAT_S)
    monkeypatch.setattr("processor.jetstream.reader._EXPIRES_S", SHORT_S)
    monkeypatch.setattr("processor.jetstream.reader._EXPIRES_IDLE_S", LONG_S)


@asynccontextmanager
async def reading(broker: Broker) -> AsyncIterator[Reader]:
    """A reader of an empty stream that somebody waits for."""
    await broker.create_stream({"name": "IN", "subjects": ["in.*"]})
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
        prefetch=100,
    )
    await reader.open()
    try:
        yield reader
    finally:
        await reader.close()


async def test_a_reader_for_which_nothing_comes_asks_less_often(nats_server: EmbeddedServer) -> None:
    """A request behind one that brought nothing lasts longer; heartbeats are asked for as often as before.

    Behind one that brought something it is a short one again, whose end brings all in step.
    """
    asked: list[dict[str, Any]] = []

    async def hear(delivery: Delivery) -> None:
        asked.append(orjson.loads(delivery.payload))

    def lengths() -> list[float]:
        """The least that the requests behind the first last: each ends at the next moment of its reader."""
        return [LONG_S if each["expires"] >= LONG_S * 1e9 else SHORT_S for each in asked[1:]]

    async with connected(nats_server.url) as broker, connected(nats_server.url) as listener:
        await listener.listen("$JS.API.CONSUMER.MSG.NEXT.>", hear)
        await listener.flush()
        async with reading(broker) as reader:
            await waited(lambda: len(asked) >= 3, "it has asked three times")
            assert lengths() == [SHORT_S, LONG_S]
            await broker.publish(Outgoing("in.a", b"1"))
            [taken] = await reader.take(10, 1 << 20)
            assert taken.payload == b"1"
            await waited(lambda: len(asked) >= 5, "it has asked twice more")
            assert lengths() == [SHORT_S, LONG_S, SHORT_S, LONG_S]
            assert {each["idle_heartbeat"] for each in asked[1:]} == {int(HEARTBEAT_S * 1e9)}


async def test_a_reader_that_hears_nothing_begins_anew(nats_server: EmbeddedServer) -> None:
    """Without heartbeats it is silent and its consumer lost; it goes on with another, none missing."""
    async with connected(nats_server.url) as broker, reading(broker) as reader:
        taking = asyncio.create_task(reader.take(10, 1 << 20))
        before = [consumer["name"] for consumer in await broker.consumers("IN")]
        async with frozen(nats_server.pid):
            await waited(lambda: reader in broker.silent, "it is silent")
            assert reader.is_silent
        await broker.publish(Outgoing("in.a", b"1"))
        assert [delivery.payload for delivery in await taking] == [b"1"]
        after = [consumer["name"] for consumer in await broker.consumers("IN")]
        assert not set(before) & set(after)
        await waited(lambda: reader not in broker.silent, "it is heard of again")
    assert not broker.silent


async def test_readers_that_wait_have_no_timers_of_their_own(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a message gives the loop nothing to wake up for."""
    async with connected(nats_server.url) as broker, reading(broker) as reader:
        timers: list[Any] = []
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(at_s: float, call: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:
            timers.append(getattr(call, "__self__", None))
            return call_at(at_s, call, *args, **more)

        monkeypatch.setattr(loop, "call_at", counted)
        taking = asyncio.create_task(reader.take(10, 1 << 20))
        await waited(lambda: timers.count(broker.ticks) >= 3, "the connection has ticked")
        assert reader not in timers
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
