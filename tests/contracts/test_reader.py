"""A reader whose consumer is replaced while messages wait: nothing is let go, on every kind of storage."""

from __future__ import annotations

import pytest

from processor.jetstream import Broker, Outgoing, Reader
from tests.contracts.conftest import Storage
from tests.running import connected

COUNT = 20


async def new_reader(broker: Broker, created: str, retention: str) -> Reader:
    reader = Reader(
        broker,
        "IN",
        ["in.*"],
        created=created,
        retention=retention,
        name="r",
        start_sequence=1,
        prefetch=10,
    )
    await reader.open()
    return reader


@pytest.mark.parametrize("retention", ["interest", "workqueue"])
async def test_a_message_that_waits_outlives_every_change_of_consumer(
    storage: Storage, retention: str
) -> None:
    """Readers come and go, most of them before they settle anything; each message is read by the last one."""
    async with connected(storage.urls) as broker:
        await storage.create_input(broker, retention)
        info = await broker.stream("IN")
        assert info is not None
        first = await new_reader(broker, info["created"], retention)
        for i in range(COUNT):
            await broker.publish_stored(Outgoing("in.a", b"%d" % i))
        await first.close()
        for _ in range(3):
            await (await new_reader(broker, info["created"], retention)).close()
        last = await new_reader(broker, info["created"], retention)
        taken: list[int] = []
        while len(taken) < COUNT:
            deliveries = await last.take(COUNT, 1 << 20)
            taken += [int(d.payload) for d in deliveries]
            await last.ack(deliveries)
        assert taken == list(range(COUNT))
        await last.close()
