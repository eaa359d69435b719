"""A commit that was stored late ended its route with an unexpected error.

A server busy with the commits of a thousand routes did not answer one in time. At the first look the position
was not there yet; at the second, for what a limit might have kept of the commit, all of it was. What was left
to store was nothing at all, and to commit that is impossible.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from processor.context.position import InputStream, Move
from processor.context.store import ContextStore
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Stored, Unknown

SOURCE = InputStream("IN", "2026-01-01T00:00:00Z")


class Late(Broker):
    """A broker whose next commit is not answered, and reaches the stream after so many looks for it."""

    looks = -1
    held: tuple[Sequence[Outgoing], str] | None = None

    async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
        if self.looks >= 0 and self.held is None:
            self.held = (messages, batch)
            raise Unknown("no answer in time")
        return await super().commit(messages, batch=batch)

    async def last_from_leader(self, stream: str, subject: str) -> Stored | None:
        found = await super().last_from_leader(stream, subject)
        self.looks -= 1
        if self.looks == 0 and self.held is not None:
            messages, batch = self.held
            await super().commit(messages, batch=batch)
        return found


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_commit_that_is_stored_between_two_looks_is_done(
    nats_server: EmbeddedServer, count: int
) -> None:
    """It is found to be ours, nothing of it is stored twice, and the next commit follows it."""
    broker = await Late.connect({"servers": [nats_server.url]}, name="test", wait=False)
    try:
        await broker.create_stream(
            {
                "name": "P_app",
                "subjects": ["p.app.>"],
                "allow_atomic": True,
                "allow_rollup_hdrs": True,
                "allow_msg_ttl": True,
                "allow_direct": True,
                "storage": "memory",
            }
        )
        store = ContextStore(broker, "app", "r", 1, "me")
        await store.claim(SOURCE, 0)
        for sequence in (1, 2):
            broker.looks, broker.held = 1, None
            outputs = [Outgoing(f"p.app.out.{sequence}.{number}", b"{}") for number in range(count)]
            await store.commit(outputs, {}, {0: Move(sequence)})
            assert broker.looks <= 0
        subjects = [s.subject async for s in broker.history("P_app", ["p.app.out.>"])]
        assert subjects == [f"p.app.out.{sequence}.{n}" for sequence in (1, 2) for n in range(count)]
        successor = ContextStore(broker, "app", "r", 1, "you")
        broker.looks = -1
        assert await successor.claim(SOURCE, 0) == 3
    finally:
        await broker.close()
