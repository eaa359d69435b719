"""Late messages: intents without an entry, and entries of an owner who was fenced, come into the chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.audit import GENESIS, AuditEntry, AuditRecord, document_of
from processor.context.late import Intent, entry_payload
from processor.context.position import InputStream, Move, Position
from processor.context.store import ContextStore
from processor.context.subjects import RouteSubjects, SubjectParts
from processor.embedded import EmbeddedServer
from processor.errors import Fenced
from processor.jetstream import Broker, Outgoing
from processor.route import RouteAudit
from tests.integration.test_route_by_hand import STREAM
from tests.running import connected

AUDIT = RouteAudit("calls")
OWN = RouteSubjects("shop", "count")
SOURCE = InputStream("IN", "2026-01-31T08:00:00Z", 100)


@asynccontextmanager
async def app(server: EmbeddedServer) -> AsyncIterator[Broker]:
    async with connected(server.url) as broker:
        await broker.create_stream(STREAM)
        yield broker


async def claimed(broker: Broker, owner: str) -> ContextStore:
    store = ContextStore(broker, "shop", "count", 2, owner, audit=AUDIT)
    await store.claim(SOURCE, 0)
    return store


async def chain(broker: Broker, partition: int = 1) -> list[dict[str, Any]]:
    """The entries of a partition; its position has their head."""
    head, found = GENESIS, list[dict[str, Any]]()
    subjects = [OWN.audit(partition), OWN.position(partition)]
    async for stored in broker.history("P_shop", subjects):
        if SubjectParts.of(stored.subject).kind == "pos":
            assert Position.read(stored).chain == head
            continue
        record = AuditRecord.decode(stored.payload)
        record.check_follows(head)
        head = record.head
        found += map(document_of, record.lines)
    return found


def intent(target: str) -> Intent:
    return Intent("http", "post", target, "ab" * 16, "run1", 1_800_000_000_000_000)


def entry(target: str, of: Intent | None = None) -> AuditEntry:
    return AuditEntry("http", fate="committed", operation="post", target=target, intent=of.id if of else "")


async def mark(broker: Broker, partition: int = 1) -> int:
    stored = await broker.last_from_leader("P_shop", OWN.position(partition))
    assert stored is not None
    return Position.read(stored).looked


async def test_an_intent_without_an_entry_is_unresolved_at_the_next_claim(
    nats_server: EmbeddedServer,
) -> None:
    """Once, however often the partition is claimed; one that has its entry is not."""
    async with app(nats_server) as broker:
        first = await claimed(broker, "first")
        lost, made = intent("https://a/lost"), intent("https://a/made")
        await first.announce(1, lost)
        await first.announce(1, made)
        await first.commit((), {}, {1: Move(5)}, entries={1: [entry("https://a/made", made)]})
        second = await claimed(broker, "second")
        assert second.claimed_entries == 1
        await claimed(broker, "third")
        found = await chain(broker)
    assert [(e["e"], e["fate"], e["of"]) for e in found] == [
        ("http", "committed", made.id), ("unresolved", "unknown", lost.id),
    ]  # fmt: skip
    said = found[1]
    assert [said[key] for key in ("op", "on", "req", "run", "t", "actor", "route")] == [
        "post", "https://a/lost", "ab" * 16, "run1", 1_800_000_000_000_000, "processor:first", "count",
    ]  # fmt: skip


async def test_what_a_fenced_owner_leaves_is_chained_by_the_next(nats_server: EmbeddedServer) -> None:
    """Its commit is refused, so two owners never fork the chain; its entry comes into it as fenced, once."""
    async with app(nats_server) as broker:
        zombie = await claimed(broker, "zombie")
        owner = await claimed(broker, "owner")
        call = intent("https://a/zombie")
        await zombie.announce(1, call)
        made = entry("https://a/zombie", call)
        with pytest.raises(Fenced):
            await zombie.commit((), {}, {1: Move(5)}, entries={1: [made]})
        await owner.commit((), {}, {1: Move(6)}, entries={1: [entry("https://a/own")]})
        look = await owner.look()
        assert [each.event for _, each in look.entries] == ["unresolved"]  # nothing is known of it yet
        await owner.commit((), {}, {1: Move()}, entries={1: [e for _, e in look.entries]}, marks=look.marks)
        made.fate = "fenced"
        await zombie.leave([(1, made), (0, entry("https://a/other"))])
        look = await owner.look()
        by_partition = {number: [each] for number, each in look.entries}
        await owner.commit((), {}, {0: Move(), 1: Move()}, entries=by_partition, marks=look.marks)
        assert not (await owner.look()).entries
        assert (await claimed(broker, "third")).claimed_entries == 0
        found, other = await chain(broker), await chain(broker, 0)
    assert [(e["e"], e["fate"], e["on"]) for e in found] == [
        ("http", "committed", "https://a/own"),
        ("unresolved", "unknown", "https://a/zombie"),
        ("http", "fenced", "https://a/zombie"),
    ]
    assert found[1]["of"] == found[2]["of"] == call.id
    assert [(e["fate"], e["on"]) for e in other] == [("fenced", "https://a/other")]


async def test_the_mark_stops_before_a_call_in_hand(nats_server: EmbeddedServer) -> None:
    """A look never passes an intent of the present owner whose entry may still come; what lies behind it is
    handled once.
    """
    async with app(nats_server) as broker:
        await claimed(broker, "before")
        owner = await claimed(broker, "owner")
        done, running = intent("https://a/done"), intent("https://a/running")
        await owner.announce(1, done)
        await owner.commit((), {}, {1: Move(5)}, entries={1: [entry("https://a/done", done)]})
        await owner.announce(1, running)
        payload = entry_payload(entry("https://a/left"))
        await broker.publish_stored(Outgoing(OWN.late(1), payload, {}))
        look = await owner.look()
        assert [each.target for _, each in look.entries] == ["https://a/left"]
        await owner.commit((), {}, {1: Move()}, entries={1: [e for _, e in look.entries]}, marks=look.marks)
        late = [s.sequence async for s in broker.history("P_shop", [OWN.late(1)])]
        assert await mark(broker) == late[0]
        assert not (await owner.look()).entries
        await owner.commit((), {}, {1: Move(6)}, entries={1: [entry("https://a/running", running)]})
        look = await owner.look()
        assert (look.entries, look.marks) == ([], {1: late[2]})
        await owner.commit((), {}, {1: Move()}, marks=look.marks)
        assert await mark(broker) == late[2]
        assert (await claimed(broker, "next")).claimed_entries == 0


async def test_odd_late_messages_hurt_nothing(nats_server: EmbeddedServer) -> None:
    """What is no intent and no entry is passed by, whoever wrote it."""
    odd = [
        b"", b"?", b"[]", b"{}", b'{"k":"intent"}', b'{"k":"intent","id":5}', b'{"k":"other","id":"x"}',
        b'{"k":"entry","id":"x"}', b'{"k":"entry","id":"x","e":"whim","d":"allow"}',
        b'{"k":"entry","id":"x","e":"http","d":"allow","bytes":[1,"2"]}',
        b'{"k":"intent","id":"y","owner":"o","epoch":1,"t":"soon","on":5}',
    ]  # fmt: skip
    async with app(nats_server) as broker:
        await claimed(broker, "first")
        for payload in odd:
            await broker.publish_stored(Outgoing(OWN.late(1), payload, {}))
        await broker.publish_stored(Outgoing(OWN.late("x"), odd[-1], {}))
        await claimed(broker, "second")
        found = await chain(broker)
    assert [(e["e"], e["of"], e.get("on"), e.get("t")) for e in found] == [("unresolved", "y", None, None)]


async def test_more_entries_than_a_message_holds_are_several_records(nats_server: EmbeddedServer) -> None:
    """All of them in the one commit, in order, and the position behind them."""
    async with app(nats_server) as broker:
        store = await claimed(broker, "owner")
        many = [entry(f"https://a/{n}/{'x' * 900}") for n in range(1500)]
        await store.commit((), {}, {1: Move(5)}, entries={1: many})
        records = [s async for s in broker.history("P_shop", [OWN.audit(1)])]
        found = await chain(broker)
    assert len(records) > 1
    assert [e["n"] for e in found] == list(range(1, 1501))
    assert [e["on"].split("/")[3] for e in found] == [str(n) for n in range(1500)]
