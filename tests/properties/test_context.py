"""Contexts and positions against a plain dictionary: what is committed, and nothing else, is read back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processor.context.placement import INLINE_MAX_BYTES
from processor.context.position import InputStream, Move
from processor.context.reading import read
from processor.context.store import ContextStore
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, Fenced
from processor.jetstream import Broker, Outgoing
from processor.model import ContextChange
from tests.running import connected

SOURCE = InputStream("IN", "2026-01-01T00:00:00Z")
Model = dict[str, dict[str, bytes]]


@asynccontextmanager
async def stream_of(app: str, server: EmbeddedServer) -> AsyncIterator[Broker]:
    """A client of a server that has the stream of an app."""
    async with connected(server.url) as broker:
        await broker.create_stream(
            {
                "name": f"P_{app}",
                "subjects": [f"p.{app}.>"],
                "allow_atomic": True,
                "allow_rollup_hdrs": True,
                "allow_msg_ttl": True,
                "allow_direct": True,
                "storage": "memory",
            }
        )
        yield broker


def change_of(before: dict[str, bytes], after: dict[str, bytes]) -> ContextChange:
    """What a guest reports when a context goes from `before` to `after`."""
    size = sum(len(k) + len(v) for k, v in after.items())
    was_large = sum(len(k) + len(v) for k, v in before.items()) > INLINE_MAX_BYTES
    if size <= INLINE_MAX_BYTES:
        return ContextChange(after, True, size)
    if not was_large:
        return ContextChange({**dict.fromkeys(before.keys() - after.keys()), **after}, False, size)
    changed: dict[str, bytes | None] = {k: v for k, v in after.items() if before.get(k) != v}
    changed |= dict.fromkeys(before.keys() - after.keys())
    return ContextChange(changed, False, size)


keys = st.sampled_from(["", "AAPL", "a.b c", "*", "ключ", "x" * 80])
names = st.sampled_from(["n", "total", "", "with.dot", "ü", "long-" * 40, " ü\n" * 50])
values = st.one_of(
    st.integers(-(2**53), 2**53).map(orjson.dumps),
    st.text(max_size=20).map(orjson.dumps),
    st.sampled_from([900, 3000, 9000]).map(lambda size: b'"%b"' % (b"x" * size)),
)
contexts = st.dictionaries(names, values, max_size=5)
steps = st.lists(
    st.tuples(st.sampled_from(["commit", "crash", "forget"]), st.dictionaries(keys, contexts, max_size=4)),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, partitions=st.sampled_from([1, 3, 64]))
def test_committed_contexts_are_what_a_successor_reads(
    steps: list[tuple[str, Model]], partitions: int, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """Any commits, with restarts and evictions between them: what is read is what was committed last."""

    async def scenario() -> None:
        app = f"a{next(numbers)}"
        async with stream_of(app, nats_server) as broker:
            model: Model = {}
            store = ContextStore(broker, app, "r", partitions, "me")
            sequence = await store.claim(SOURCE, 0) - 1
            assert sequence == 0
            for action, updates in steps:
                if action == "crash":
                    store = ContextStore(broker, app, "r", partitions, "me")
                    await store.claim(SOURCE, 0)
                elif action == "forget":
                    store.forget(list(model))
                loaded = await store.load(updates)
                assert loaded == {key: model.get(key, {}) for key in updates}
                sequence += 1
                changes = {key: change_of(model.get(key, {}), after) for key, after in updates.items()}
                moves = {store.partition(key): Move(sequence) for key in updates} or {0: Move(sequence)}
                await store.commit([Outgoing(f"p.{app}.out.x", b"1")], changes, moves)
                model.update({key: dict(items) for key, items in updates.items()})
            successor = ContextStore(broker, app, "r", partitions, "you")
            await successor.claim(SOURCE, 0)
            assert await successor.load(model) == model
            shown = {key: items async for key, items in read(broker, app, "r")}
            assert {k: v for k, v in shown.items() if v} == {k: v for k, v in model.items() if v}
            if steps:
                with pytest.raises(Fenced):
                    await store.commit([], {}, {p: Move(sequence + 1) for p in range(partitions)})

    run_async(scenario())


numbers = iter(range(1_000_000))


async def test_a_successor_starts_behind_the_last_commit(nats_server: EmbeddedServer) -> None:
    """The first sequence that may not be done is behind the lowest position; others are known as done."""
    async with stream_of("app", nats_server) as broker:
        store = ContextStore(broker, "app", "r", 4, "me")
        assert await store.claim(SOURCE, 100) == 101
        await store.commit([], {}, {0: Move(110), 2: Move(120)})
        successor = ContextStore(broker, "app", "r", 4, "you")
        assert await successor.claim(SOURCE, 0) == 101
        assert successor.is_done(2, 120)
        assert not successor.is_done(2, 121)
        assert not successor.is_done(1, 101)
        await successor.commit([], {}, {1: Move(120)})
        await successor.release()
        third = ContextStore(broker, "app", "r", 4, "they")
        assert await third.claim(SOURCE, 0) == 121


async def test_a_position_that_others_left_ahead_moves_nobody_else(nats_server: EmbeddedServer) -> None:
    """Partitions come from owners who had come differently far: each goes on from where it was."""
    async with stream_of("app", nats_server) as broker:
        behind = ContextStore(broker, "app", "r", 2, "a", [0])
        await behind.claim(SOURCE, 0)
        await behind.commit([], {}, {0: Move(100)})
        ahead = ContextStore(broker, "app", "r", 2, "b", [1])
        await ahead.claim(SOURCE, 0)
        await ahead.commit([], {}, {1: Move(50_000)})
        both = ContextStore(broker, "app", "r", 2, "c")
        assert await both.claim(SOURCE, 0) == 101
        await both.commit([], {}, {0: Move(110)})
        await both.release()
        successor = ContextStore(broker, "app", "r", 2, "d")
        assert await successor.claim(SOURCE, 0) == 111
        assert successor.is_done(1, 50_000)


async def test_open_messages_are_read_again_with_their_tries(nats_server: EmbeddedServer) -> None:
    """The next owner begins at the oldest that waits, knows what is done behind it, and who is blocked."""
    async with stream_of("app", nats_server) as broker:
        first = ContextStore(broker, "app", "r", 2, "a")
        await first.claim(SOURCE, 0)
        await first.commit([], {}, {0: Move(9, opened={4: 2, 6: 0}, blocked={"k": 3}), 1: Move(20)})
        await first.commit([], {}, {0: Move(12, closed={4})})
        second = ContextStore(broker, "app", "r", 2, "b")
        assert await second.claim(SOURCE, 0) == 6
        assert [second.is_done(0, sequence) for sequence in (4, 6, 7, 12, 13)] == [
            True, False, True, True, False,
        ]  # fmt: skip
        assert (second.tries, second.blocked, second.fruitless_claims(0)) == ({6: 0}, {"k": 3}, 0)
        third = ContextStore(broker, "app", "r", 2, "c")
        await third.claim(SOURCE, 0)
        assert (third.fruitless_claims(0), third.fruitless_claims(1)) == (1, 1)
        await third.commit([], {}, {0: Move(closed={6}, blocked={"k": None})})
        fourth = ContextStore(broker, "app", "r", 2, "d")
        assert await fourth.claim(SOURCE, 0) == 13
        assert (fourth.tries, fourth.blocked, fourth.fruitless_claims(0)) == ({}, {}, 0)


async def test_partitions_without_messages_follow_from_afar(nats_server: EmbeddedServer) -> None:
    """Once the stream is 10,000 messages further, a commit takes idle partitions along."""
    async with stream_of("app", nats_server) as broker:
        store = ContextStore(broker, "app", "r", 4, "me")
        await store.claim(SOURCE, 0)
        await store.commit([], {}, {0: Move(9_000)})
        await store.commit([], {}, {0: Move(20_001)})
        successor = ContextStore(broker, "app", "r", 4, "you")
        assert await successor.claim(SOURCE, 0) == 20_002


async def test_a_successor_announces_what_each_lane_may_not_have(nats_server: EmbeddedServer) -> None:
    """The live messages of every lane's last commit, once: what a lane committed before that, it has sent."""
    live = {name: Outgoing(f"live.{name}", name.encode()) for name in ("old", "new", "other")}
    async with stream_of("app", nats_server) as broker:
        whole = ContextStore(broker, "app", "r", 4, "me")
        await whole.claim(SOURCE, 0)
        lanes = [whole.part(number, [number, number + 2], lambda _: None) for number in range(2)]
        await lanes[0].commit([], {}, {0: Move(1)}, live=[live["old"]])
        await lanes[1].commit([], {}, {1: Move(2)}, live=[live["other"]])
        await lanes[0].commit([], {}, {2: Move(3)}, live=[live["new"]])
        part = ContextStore(broker, "app", "r", 4, "her", [0, 1])
        await part.claim(SOURCE, 0)
        assert [message.payload for message in part.unannounced] == [b"other"]
        rest = ContextStore(broker, "app", "r", 4, "him", [2, 3])
        await rest.claim(SOURCE, 0)
        assert [message.payload for message in rest.unannounced] == [b"new"]
        again = ContextStore(broker, "app", "r", 4, "it")
        await again.claim(SOURCE, 0)
        assert again.unannounced == []


async def test_of_two_owners_only_the_later_can_commit(nats_server: EmbeddedServer) -> None:
    """Claiming bumps the fence: whatever the earlier owner still sends is refused as a whole."""
    async with stream_of("app", nats_server) as broker:
        zombie = ContextStore(broker, "app", "r", 1, "zombie")
        await zombie.claim(SOURCE, 0)
        owner = ContextStore(broker, "app", "r", 1, "owner")
        await owner.claim(SOURCE, 0)
        change = {"": ContextChange({"n": b"666"}, True, 4)}
        with pytest.raises(Fenced, match="E405 another processor has claimed partitions of route r"):
            await zombie.commit([Outgoing("p.app.out.x", b"ghost")], change, {0: Move(5)})
        await owner.commit(
            [Outgoing("p.app.out.x", b"real")], {"": ContextChange({"n": b"1"}, True, 2)}, {0: Move(5)}
        )
        outputs = [s.payload async for s in broker.history("P_app", ["p.app.out.>"])]
        assert outputs == [b"real"]
        assert [items async for _, items in read(broker, "app", "r")] == [{"n": b"1"}]


async def test_positions_of_another_stream_are_refused(nats_server: EmbeddedServer) -> None:
    """A stream that was deleted and made again counts anew: its numbers are not the old ones."""
    async with stream_of("app", nats_server) as broker:
        await ContextStore(broker, "app", "r", 1, "me").claim(SOURCE, 0)
        with pytest.raises(BrokerError, match=r"E407 .* created at 2026-01-01T00:00:00Z"):
            await ContextStore(broker, "app", "r", 1, "me").claim(
                InputStream("IN", "2026-02-02T00:00:00Z"), 0
            )
        with pytest.raises(BrokerError, match="E410 route r was created with 1 partitions and now has 2"):
            await ContextStore(broker, "app", "r", 2, "me").claim(SOURCE, 0)


async def test_a_commit_whose_answer_was_lost_is_recognised(nats_server: EmbeddedServer) -> None:
    """The batch was stored, its answer never came: the position says so, and nothing is stored twice."""
    from processor.jetstream import Unknown

    class Forgetful(Broker):
        """A broker that loses the first answer to a commit."""

        lost = 0

        async def commit(self, messages: Any, *, batch: str = "") -> int:
            stored = await super().commit(messages, batch=batch)
            if self.lost == 0:
                self.lost = stored
                raise Unknown("the answer is lost")
            return stored

    async with stream_of("app", nats_server) as plain:
        broker = await Forgetful.connect({"servers": [nats_server.url]}, name="test", wait=False)
        try:
            store = ContextStore(broker, "app", "r", 2, "me")
            broker.lost = -1
            await store.claim(SOURCE, 0)
            broker.lost = 0
            await store.commit([Outgoing("p.app.out.x", b"once")], {}, {0: Move(7), 1: Move(8)})
            assert broker.lost > 0
            await store.commit([Outgoing("p.app.out.x", b"next")], {}, {0: Move(9), 1: Move(9)})
            outputs = [s.payload async for s in plain.history("P_app", ["p.app.out.>"])]
            assert outputs == [b"once", b"next"]
        finally:
            await broker.close()
