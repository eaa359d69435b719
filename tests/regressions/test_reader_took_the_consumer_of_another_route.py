"""Route `a` took the consumers of route `a-b` for its own, as their names begin alike, and removed them."""

from __future__ import annotations

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Reader
from tests.running import connected


async def reader(broker: Broker, created: str, name: str, subject: str) -> Reader:
    made = Reader(
        broker,
        "IN",
        [subject],
        created=created,
        retention="workqueue",
        name=name,
        start_sequence=1,
        prefetch=10,
    )
    await made.open()
    return made


async def test_a_reader_leaves_the_consumers_of_others_alone(nats_server: EmbeddedServer) -> None:
    """Two routes read subjects of their own of one work queue, whichever comes first."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": "workqueue"})
        info = await broker.stream("IN")
        assert info is not None
        longer = await reader(broker, info["created"], "P_app-a-b", "in.b")
        shorter = await reader(broker, info["created"], "P_app-a", "in.a")
        names = {
            consumer["config"]["metadata"]["processor.reader"] for consumer in await broker.consumers("IN")
        }
        assert names == {"P_app-a", "P_app-a-b"}
        await broker.publish_stored(Outgoing("in.b", b"1"))
        assert [d.payload for d in await longer.take(1, 1 << 20)] == [b"1"]
        for each in (longer, shorter):
            await each.close()
