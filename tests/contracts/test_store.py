"""The contract of a store, the same on a server and in memory: what was committed is what a successor has."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processor.context.parked import ParkedMessage, ParkedMessages, gone
from processor.context.position import InputStream, Move
from processor.context.store import ContextStore
from processor.delivery.memory import MAX_PAYLOAD, Memory, MemoryStore
from processor.delivery.store import Store
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, Fenced
from processor.jetstream import Broker
from processor.model import NO_CONTEXT, ContextChange, Delivery, RawHeaders, partition_of
from tests.conftest import waited
from tests.running import connected

SOURCE = InputStream("IN", "2026-01-01T00:00:00Z", ends_at=1000)
PARTITIONS = 4
PARKED = ParkedMessages("app", "r", MAX_PAYLOAD)


class Server:
    """Stores of route `r` on a server."""

    def __init__(self, broker: Broker, app: str = "app") -> None:
        self._broker = broker
        self._app = app

    def store(self, owner: str, owned: Iterable[int] | None = None, of: int = PARTITIONS) -> ContextStore:
        return ContextStore(self._broker, self._app, "r", of, owner, owned)

    async def kept_outside(self) -> list[str]:
        """The subjects of contexts outside of positions, as far as they are not removed."""
        stored = await self._broker.last_of(f"P_{self._app}", [f"p.{self._app}.ctx.>"])
        return [each.subject for each in stored if each.payload]

    async def until_due(self, store: Store, count: int) -> list[ParkedMessage]:
        """What is due, as soon as it is so many."""

        async def enough() -> list[ParkedMessage] | None:
            found, _ = await store.due(0)
            return found if len(found) >= count else None

        found: list[ParkedMessage] = await waited(enough, f"{count} messages are due")
        return found


class InMemory:
    """Stores of route `r` in one memory."""

    def __init__(self) -> None:
        self.memory = Memory("app")

    def store(self, owner: str, owned: Iterable[int] | None = None, of: int = PARTITIONS) -> MemoryStore:
        return MemoryStore(self.memory, "r", of, owner, owned)

    async def until_due(self, store: Store, count: int) -> list[ParkedMessage]:
        assert self.memory.next_s is not None
        self.memory.fire(self.memory.next_s)
        found, _ = await store.due(0)
        assert len(found) == count
        return found


Place = Server | InMemory


async def create_app(broker: Broker, app: str) -> None:
    switches = ("allow_atomic", "allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules", "allow_direct")
    config = {"name": f"P_{app}", "subjects": [f"p.{app}.>"], "storage": "memory"}
    await broker.create_stream({**config, **dict.fromkeys(switches, True)})


@asynccontextmanager
async def on_server(server: EmbeddedServer) -> AsyncIterator[Server]:
    async with connected(server.url) as broker:
        await create_app(broker, "app")
        yield Server(broker)


@asynccontextmanager
async def in_memory() -> AsyncIterator[InMemory]:
    yield InMemory()


@pytest.fixture(params=["server", "memory"])
def placed(request: pytest.FixtureRequest) -> Any:
    """Opens the place where the stores of a test are."""
    if request.param == "memory":
        return in_memory()
    return on_server(request.getfixturevalue("nats_server"))


def delivery(sequence: int, key: str = "k") -> Delivery:
    headers = RawHeaders.of({"Trace": f"t{sequence}"})
    return Delivery(f"in.{key}", b"%d" % sequence, headers, "IN", sequence, 1.5)


def whole(**items: object) -> ContextChange:
    encoded = {name: orjson.dumps(value) for name, value in items.items()}
    return ContextChange(encoded, True, sum(len(n) + len(v) for n, v in encoded.items()))


def key_of(partition: int) -> str:
    """A key of that partition."""
    return next(k for k in map(str, itertools.count()) if partition_of(k, PARTITIONS) == partition)


async def test_what_was_committed_is_what_a_successor_has(placed: Any) -> None:
    """Contexts, position, tries of what is open, blocked keys; and where the input is to be read from."""
    async with placed as place:
        store = place.store("me")
        assert await store.claim(SOURCE, 10) == 11
        assert store.watermark == 10
        a, b = key_of(0), key_of(1)
        moves = {0: Move(14, opened={12: 1, 13: 0}, blocked={a: 2}), 1: Move(15)}
        await store.commit([], {a: whole(n=1, gone=2), b: whole(n=3)}, moves)
        await store.commit([], {a: whole(n=4)}, {0: Move(16, closed={13}, opened={12: 2})})
        assert (store.watermark, store.created) == (16, SOURCE.created)
        after = place.store("you")
        assert await after.claim(SOURCE, 0) == 11
        assert after.watermark == 10
        assert (after.tries, after.blocked) == ({12: 2}, {a: 2})
        assert await after.load([a, b, "none"]) == {a: {"n": b"4"}, b: {"n": b"3"}, "none": {}}
        done = {(p, s) for p in range(PARTITIONS) for s in (10, 12, 13, 15, 16, 17) if after.is_done(p, s)}
        assert done == {
            (0, 10),
            (0, 13),
            (0, 15),
            (0, 16),
            (1, 10),
            (1, 12),
            (1, 13),
            (1, 15),
            (2, 10),
            (3, 10),
        }
        await after.commit([], {}, {0: Move(17, closed={12}, blocked={a: None})})
        await after.release()
        third = place.store("they")
        assert await third.claim(SOURCE, 0) == 18
        assert (third.tries, third.blocked) == ({}, {})


async def test_who_was_overtaken_commits_nothing(placed: Any) -> None:
    """A successor fences the one before it, but only in the partitions that it has claimed."""
    async with placed as place:
        store = place.store("me")
        await store.claim(SOURCE, 0)
        successor = place.store("you", [0, 1])
        await successor.claim(SOURCE, 0)
        key = key_of(0)
        with pytest.raises(Fenced) as fenced:
            await store.commit([PARKED.held(delivery(1, key), 0, key, 1)], {key: whole(n=1)}, {0: Move(1)})
        assert fenced.value.code == "E405"
        assert await successor.load([key]) == {key: {}}
        assert await successor.held(key, 10) == ([], False)
        assert not successor.is_done(0, 1)
        await store.commit([], {}, {2: Move(5)})
        assert successor.owned == {0: None, 1: None}.keys() or list(successor.owned) == [0, 1]


async def test_claims_without_a_commit_are_counted(placed: Any) -> None:
    """What ends its process each time is found by that; only who comes after another one counts."""
    async with placed as place:
        for owner, count in (("a", 0), ("b", 1), ("c", 2)):
            store = place.store(owner)
            await store.claim(SOURCE, 0)
            assert store.fruitless_claims(1) == count
        assert store.epochs == dict.fromkeys(range(PARTITIONS), 3)
        await store.commit([], {}, {1: Move(1)})
        store = place.store("d")
        await store.claim(SOURCE, 0)
        assert (store.fruitless_claims(1), store.fruitless_claims(2)) == (0, 3)
        again = place.store("d")
        await again.claim(SOURCE, 0)
        assert (again.fruitless_claims(1), again.fruitless_claims(2)) == (0, 3)
        await again.release()
        again = place.store("d")
        await again.claim(SOURCE, 0)
        assert (again.fruitless_claims(1), again.fruitless_claims(2)) == (0, 0)


async def test_a_position_counts_in_its_own_stream_and_number_of_partitions(placed: Any) -> None:
    """Neither another input nor another number of partitions can go on from it."""
    async with placed as place:
        await place.store("me").claim(SOURCE, 0)
        other = InputStream("IN", "2027-01-01T00:00:00Z", ends_at=1000)
        with pytest.raises(BrokerError) as wrong:
            await place.store("you").claim(other, 0)
        assert wrong.value.code == "E407"
        with pytest.raises(BrokerError) as wrong:
            await place.store("you", of=2).claim(SOURCE, 0)
        assert wrong.value.code == "E410"


async def test_a_context_changes_item_by_item_or_as_a_whole(placed: Any) -> None:
    """None takes an item away; a whole change leaves nothing of what was there."""
    async with placed as place:
        store = place.store("me")
        await store.claim(SOURCE, 0)
        large = b'"%b"' % (b"x" * 5000)
        steps = [
            (whole(a=1, b=2), {"a": b"1", "b": b"2"}),
            (ContextChange({"a": large, "b": b"2"}, False, 5005), {"a": large, "b": b"2"}),
            (ContextChange({"b": None, "c": b"3"}, False, 5005), {"a": large, "c": b"3"}),
            (whole(d=4), {"d": b"4"}),
            (whole(), {}),
        ]
        for sequence, (change, expected) in enumerate(steps, 1):
            await store.load(["k"])
            await store.commit([], {"k": change}, {store.partition("k"): Move(sequence)})
            assert store.bytes_held == change.size
            store.forget(["k"])
            assert store.bytes_held == 0
            assert await store.load(["k"]) == {"k": expected}
            assert store.bytes_held == sum(len(n) + len(v) for n, v in expected.items())


async def test_a_context_that_is_gone_leaves_nothing(placed: Any) -> None:
    """Wherever it was kept, the commit that ends it removes it, and what comes after begins anew."""
    async with placed as place:
        store = place.store("me")
        await store.claim(SOURCE, 0)
        large = b'"%b"' % (b"x" * 5000)
        kept = {
            "in its position": [whole(a=1)],
            "one message": [whole(a="x" * 4000), whole(a="y" * 4000)],
            "by item": [ContextChange({"a": large, "b": b"2"}, False, 5005)],
        }
        for sequence, (key, changes) in enumerate(kept.items(), 1):
            number = store.partition(key)
            await store.load([key])
            for change in changes:
                await store.commit([], {key: change}, {number: Move(sequence)})
            assert store.scattered({key: NO_CONTEXT}) <= 2
            await store.commit([], {key: NO_CONTEXT}, {number: Move(sequence)})
            assert store.bytes_held == 0
            store.forget([key])
            assert await store.load([key]) == {key: {}}
            await store.commit([], {key: whole(again=1)}, {number: Move(sequence)})
            store.forget([key])
            assert await store.load([key]) == {key: {"again": b"1"}}
            await store.commit([], {key: NO_CONTEXT}, {number: Move(sequence)})
        after = place.store("you")
        await after.claim(SOURCE, 0)
        assert await after.load(kept) == {key: {} for key in kept}
        if isinstance(place, Server):
            assert await place.kept_outside() == []


async def test_held_messages_wait_in_order_until_they_are_taken_away(placed: Any) -> None:
    """Those of one key, at most so many, and whether there are more; what is gone cannot be taken twice."""
    async with placed as place:
        store = place.store("me")
        await store.claim(SOURCE, 0)
        key, other = key_of(0), key_of(1)
        held = [PARKED.held(delivery(n, key), 0, key, n) for n in (7, 8, 9)]
        others = [PARKED.held(delivery(10, other), 1, other, 0)]
        await store.commit([*held, *others], {}, {0: Move(9), 1: Move(10)})
        found, has_more = await store.held(key, 2)
        assert [(k.delivery.sequence, k.tries, k.delivery.payload) for k in found] == [
            (7, 7, b"7"),
            (8, 8, b"8"),
        ]
        assert [dict(k.delivery.headers) for k in found] == [{"Trace": "t7"}, {"Trace": "t8"}]
        assert (found[0].delivery.subject, found[0].delivery.stream, found[0].delivery.timestamp_s) == (
            f"in.{key}",
            "IN",
            1.5,
        )
        assert has_more
        await store.commit([gone(found[0].delivery)], {}, {0: Move()})
        found_again, has_more = await store.held(key, 2)
        assert [k.delivery.sequence for k in found_again] == [8, 9]
        assert not has_more
        with pytest.raises(Fenced):
            await store.commit([gone(found[0].delivery)], {}, {0: Move()})


async def test_a_retry_is_due_when_its_time_has_come(placed: Any) -> None:
    """It is kept until then, is found behind the places that were looked at, and by its owner only."""
    async with placed as place:
        store, others = place.store("me", [0, 1]), place.store("you", [2, 3])
        await store.claim(SOURCE, 0)
        await others.claim(SOURCE, 0)
        now = datetime.now(UTC)
        much_later = PARKED.later(delivery(2, key_of(0)), 0, 1, now + timedelta(hours=1))
        await store.commit([much_later], {}, {0: Move(2)})
        assert await store.due(0) == ([], 0)
        soon = PARKED.later(delivery(3, key_of(0)), 0, 2, now + timedelta(seconds=0.1))
        await store.commit([soon], {}, {0: Move(3)})
        [due] = await place.until_due(store, 1)
        assert (due.delivery.sequence, due.tries, due.delivery.payload, due.delivery.dealt) == (3, 2, b"3", 0)
        assert dict(due.delivery.headers) == {"Trace": "t3"}
        found, seen = await others.due(0)
        assert (found, seen) == ([], due.sequence)
        assert await store.due(due.sequence) == ([], due.sequence)
        await store.commit([gone(due.delivery)], {}, {0: Move()})
        assert (await store.due(0))[0] == []
        with pytest.raises(Fenced):
            await store.commit([gone(due.delivery)], {}, {0: Move()})


async def test_what_is_sent_later_from_memory_is_sent_once_and_by_its_time() -> None:
    """Not in the order of the commits; and what was sent has no schedule left that could send it again."""
    place = InMemory()
    store = place.store("me")
    await store.claim(SOURCE, 0)
    now = datetime.now(UTC)
    hours = [PARKED.later(delivery(n), 0, 1, now + timedelta(hours=n)) for n in (3, 1, 2, 4)]
    await store.commit(hours, {}, {0: Move(4)})
    assert place.memory.fire(now.timestamp()) == 0
    assert place.memory.fire(now.timestamp() + 3.5 * 3600) == 3
    found, seen = await store.due(0)
    assert [kept.delivery.sequence for kept in found] == [1, 2, 3]
    assert seen == found[-1].sequence
    assert not any("Nats-Schedule" in stored.headers for stored in place.memory.waiting("p.app.due.>"))
    assert place.memory.next_s == pytest.approx(now.timestamp() + 4 * 3600, abs=0.01)


async def test_a_partition_goes_on_without_messages_of_its_own_but_not_past_what_is_left(placed: Any) -> None:
    """On release all are where the input is read, up to the first message that is still in hand."""
    async with placed as place:
        store = place.store("me")
        await store.claim(SOURCE, 0)
        await store.commit([], {}, {0: Move(50)}, first_left=21)
        assert store.watermark == 20
        await store.release()
        after = place.store("you")
        assert await after.claim(SOURCE, 0) == 21
        assert after.is_done(0, 50)
        assert not after.is_done(1, 21)


counts = st.integers(0, 3)
steps = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "commit", "restart", "release", "forget"]),
        st.dictionaries(
            st.sampled_from("abcdef"), st.dictionaries(st.sampled_from("xyz"), counts), max_size=3
        ),
        st.dictionaries(st.integers(1, 12), counts, max_size=3),
        st.sets(st.integers(1, 12), max_size=3),
        st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.none(), counts), max_size=2),
    ),
    max_size=10,
)
numbers: Iterator[int] = itertools.count()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_memory_and_server_cannot_be_told_apart(
    steps: list[Any], nats_server: EmbeddedServer, run_async: Any
) -> None:
    """After any commits, restarts and releases, all that a worker can ask of both is the same."""

    async def scenario() -> None:
        app = f"a{next(numbers)}"
        async with connected(nats_server.url) as broker:
            await create_app(broker, app)
            places = (Server(broker, app), InMemory())
            both: list[Store] = [place.store("me") for place in places]
            starts = {await store.claim(SOURCE, 0) for store in both}  # type: ignore[attr-defined]
            for sequence, (action, contexts, opened, closed, blocked) in enumerate(steps, 1):
                if action in ("restart", "release"):
                    if action == "release":
                        for store in both:
                            await store.release()
                    both = [place.store(f"owner-{sequence}") for place in places]
                    starts = {await store.claim(SOURCE, 0) for store in both}  # type: ignore[attr-defined]
                changes = {key: whole(**items) for key, items in contexts.items()}
                keys = {*contexts, *blocked} or {"a"}
                for store in both:
                    if action == "forget":
                        store.forget("abcdef")
                    await store.load(contexts)
                    moves: dict[int, Move] = {}
                    for key in sorted(keys):
                        move = moves.setdefault(store.partition(key), Move(sequence))
                        move.add(Move(sequence, blocked={key: blocked[key]} if key in blocked else {}))
                    next(iter(moves.values())).add(Move(opened=dict(opened), closed=set(closed)))
                    await store.commit([], changes, moves, first_left=sequence + 1 if sequence % 2 else None)
                server, memory = map(seen, both)
                assert server == memory
                assert await both[0].load("abcdef") == await both[1].load("abcdef")
                assert len(starts) == 1

    run_async(scenario())


def seen(store: Store) -> dict[str, Any]:
    """What a worker can know of a store."""
    return {
        "owned": list(store.owned),
        "epochs": store.epochs,
        "tries": store.tries,
        "blocked": store.blocked,
        "watermark": store.watermark,
        "bytes": store.bytes_held,
        "claims": [store.fruitless_claims(number) for number in store.owned],
        "done": {(p, s) for p in store.owned for s in range(15) if store.is_done(p, s)},
        "places": [store.place(delivery(1), key) for key in "abcdef"],
        "counted": [store.counted_by(number) for number in range(PARTITIONS + 2)],
    }
