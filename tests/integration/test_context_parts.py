"""The parts of a context store alone, on a real server: sure commits, and changes from outside."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from processor.context.committer import Committer
from processor.context.position import InputStream, Move, Position
from processor.context.store import ContextStore
from processor.context.subjects import RouteSubjects
from processor.context.visit import Visit
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, Edited
from processor.jetstream import EXPECTED, KEPT, Broker, Outgoing, Unknown, WrongLastSequence
from processor.model import ContextChange
from tests.properties.test_context import SOURCE, stream_of

OWN = RouteSubjects("app", "r")
# What an edit must leave as it is: all fields of a record, and those of a later build.
RECORD: dict[str, Any] = {
    "v": 1, "stream": "IN", "created": "2026-01-01T00:00:00Z", "of": 1, "seq": 41, "epoch": 7, "owner": "me",
    "cid": "c", "lane": 2, "claims": 3, "open": {"39": 2}, "blocked": {"k": 4}, "ctx": {"k": {"n": 1}},
    "live": [["live.x", {"A": "b"}, "1"]], "windows": {"open": [1, 2]},
}  # fmt: skip


def position(commit_id: str, fence: int, sequence: int = 0) -> Outgoing:
    body = Position(SOURCE, 1, sequence, commit_id=commit_id).encoded()
    return Outgoing(OWN.position(0), body, {**KEPT, EXPECTED: str(fence)})


async def outputs(broker: Broker) -> list[bytes]:
    return [s.payload async for s in broker.history("P_app", ["p.app.out.>"])]


async def record(broker: Broker) -> dict[str, Any]:
    [stored] = await broker.last_of("P_app", [OWN.position(0)])
    return dict(orjson.loads(stored.payload))


async def test_a_committed_batch_has_the_sequence_of_its_position(nats_server: EmbeddedServer) -> None:
    """And one that expects it goes behind it; nobody is told of a refusal."""
    told: list[str | None] = []
    async with stream_of("app", nats_server) as broker:
        committer = Committer(broker, "P_app", told.append)
        first = await committer.commit([Outgoing("p.app.out.x", b"1"), position("a", 0)], "a", 0)
        assert first == 2
        assert await committer.commit([Outgoing("p.app.out.x", b"2"), position("b", 2)], "b", 2) == 4
        assert await outputs(broker) == [b"1", b"2"]
    assert told == []


async def test_a_batch_behind_another_position_is_not_stored(nats_server: EmbeddedServer) -> None:
    """The answer is None, and nothing of the batch is there."""
    async with stream_of("app", nats_server) as broker:
        committer = Committer(broker, "P_app", lambda _: None)
        await committer.commit([position("other", 0)], "other", 0)
        assert await committer.commit([Outgoing("p.app.out.x", b"1"), position("a", 0)], "a", 0) is None
        assert await outputs(broker) == []
        assert (await record(broker))["cid"] == "other"


@pytest.mark.parametrize("is_overtaken", [False, True])
async def test_a_batch_without_an_answer_is_looked_for(
    nats_server: EmbeddedServer, *, is_overtaken: bool
) -> None:
    """Stored once, whatever was lost; where somebody else came in between it is not sent again."""

    class Mute(Broker):
        """Loses the answer to its first commit, and stores it or another in its place."""

        calls = 0

        async def commit(self, messages: Any, *, batch: str = "") -> int:
            self.calls += 1
            if self.calls > 1:
                return await super().commit(messages, batch=batch)
            await super().commit([position("other", 0)] if is_overtaken else messages, batch=batch)
            raise Unknown("lost")

    async with stream_of("app", nats_server) as plain:
        broker = await Mute.connect({"servers": [nats_server.url]}, name="test", wait=False)
        try:
            committer = Committer(broker, "P_app", lambda _: None)
            stored = await committer.commit([Outgoing("p.app.out.x", b"1"), position("a", 0)], "a", 0)
        finally:
            await broker.close()
        assert stored == (None if is_overtaken else 2)
        assert await outputs(plain) == ([] if is_overtaken else [b"1"])


async def test_an_edit_leaves_what_it_does_not_change(nats_server: EmbeddedServer) -> None:
    """Contexts, epoch and the commit's name change, and an owner's wish to wait ends; all else stays."""
    async with stream_of("app", nats_server) as broker:
        await broker.publish_stored(Outgoing(OWN.position(0), orjson.dumps({**RECORD, "holds": True}), KEPT))
        visit = await Visit.of(broker, "app", "r", 1, ["k", "new"])
        assert (visit.contexts, visit.is_held, visit.epochs) == ({"k": {"n": b"1"}, "new": {}}, True, {0: 7})
        change = {"k": ContextChange({"n": b"2"}, True, 2), "new": ContextChange({"m": b"3"}, True, 2)}
        await broker.commit(visit.rewrite(change, "edit"))
        contexts = {"k": {"n": 2}, "new": {"m": 3}}
        assert await record(broker) == {**RECORD, "epoch": 8, "cid": "edit", "ctx": contexts}
        assert visit.epochs == {0: 8}


async def test_of_an_edit_and_a_commit_the_later_is_refused(nats_server: EmbeddedServer) -> None:
    """The owner learns that it was an edit, and which partitions it had in hand."""
    async with stream_of("app", nats_server) as broker:
        owner = ContextStore(broker, "app", "r", 1, "me")
        await owner.claim(SOURCE, 0)
        late, visit = [await Visit.of(broker, "app", "r", 1, ["k"]) for _ in range(2)]
        change = {"k": ContextChange({"n": b"2"}, True, 2)}
        await broker.commit(visit.rewrite(change, "edit"))
        with pytest.raises(WrongLastSequence):
            await broker.commit(late.rewrite({"k": None}, "late"))
        with pytest.raises(Edited) as raised:
            await owner.commit([], {}, {0: Move(5)})
        assert set(raised.value.partitions) == {0}
        assert (await record(broker))["ctx"] == {"k": {"n": 2}}


async def test_a_visit_needs_positions_that_can_be_changed(nats_server: EmbeddedServer) -> None:
    """E401 before the route has run, E410 for other partitions, E412 in a reset, E421 for an odd record."""
    async with stream_of("app", nats_server) as broker:
        with pytest.raises(BrokerError, match="E401 partition 0 of route r has no position in P_app"):
            await Visit.of(broker, "app", "r", 1, ["k"])
        for body, partitions, complaint in (
            (RECORD, 2, "E410 route r was created with 1 partitions and now has 2"),
            ({**RECORD, "resetting": 4}, 1, "E412 a reset of route r is not finished"),
            ({**RECORD, "v": 2}, 1, "E410 the position of route r has version 2"),
            ({**RECORD, "open": 5}, 1, "E421 .*its open is no object"),
        ):
            await broker.publish_stored(Outgoing(OWN.position(0), orjson.dumps(body), KEPT))
            with pytest.raises(BrokerError, match=complaint):
                await Visit.of(broker, "app", "r", partitions, ["k", "l"])


async def test_what_nobody_of_ours_wrote_beside_positions_is_passed_over(nats_server: EmbeddedServer) -> None:
    """A subject that names no partition stops nobody."""
    async with stream_of("app", nats_server) as broker:
        await broker.publish_stored(Outgoing("p.app.pos.r.x", b"?", KEPT))
        owner = ContextStore(broker, "app", "r", 1, "me")
        assert await owner.claim(InputStream("IN", "2026-01-01T00:00:00Z"), 0) == 1
        await owner.commit([], {"k": ContextChange({"n": b"1"}, True, 2)}, {0: Move(1)})
        assert (await Visit.of(broker, "app", "r", 1, ["k"])).contexts == {"k": {"n": b"1"}}
