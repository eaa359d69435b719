"""Reading what a stream holds failed after five seconds when some of it was removed meanwhile.

The reader had counted the messages at its start and waited for as many. Dead letters that somebody else
redrives, and positions that a running route replaces, are gone by the time their turn comes: `processor dlq`
and `processor context` failed, now and then, beside an app at work. Now the server says when nothing is left.
"""

from __future__ import annotations

from processor.embedded import EmbeddedServer
from processor.jetstream import Outgoing
from tests.running import connected


async def test_what_is_removed_while_it_is_read_is_left_out(nats_server: EmbeddedServer) -> None:
    """More than one request's worth, all but the first removed after it was seen: the reading ends."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "S", "subjects": ["s.*"]})
        await broker.publish(*(Outgoing(f"s.{number}", b"x") for number in range(1499)))
        await broker.publish_stored(Outgoing("s.1499", b"x"))  # behind all others
        found = []
        async for stored in broker.history("S", ["s.*"]):
            found.append(stored.sequence)
            if len(found) == 1:
                await broker.api("STREAM.PURGE.S", {"seq": 1501})
        assert found == list(range(1, len(found) + 1))
        assert len(found) < 1500
