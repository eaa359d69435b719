"""Effects become real in the order of `Settler.settle`, one commit after the other, and are told then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from processor.audit import AuditEntry
from processor.context.store import Move
from processor.delivery.effects import COMMIT_BUDGET, Effects
from processor.delivery.hand import Hand
from processor.delivery.settle import Settler
from processor.errors import BrokerError
from processor.jetstream import Again, Outgoing, Unknown
from processor.model import NO_HEADERS, ContextChange, Delivery, Ran, RunRecord
from processor.telemetry import Telemetry
from tests.conftest import waited

ROUTE = cast(
    Any, SimpleNamespace(name="r", mode="batch", partitions=4, batch=SimpleNamespace(max_messages=1000))
)


def delivery(sequence: int, kept: str = "") -> Delivery:
    return Delivery("in.a", b"{}", NO_HEADERS, "IN", sequence, 0.0, kept=kept)


def record(sequence: int) -> RunRecord:
    return RunRecord.of([delivery(sequence)], Ran())


class World:
    """Server, stream and store of one settler, which write down what they are asked for."""

    def __init__(self, tries: dict[int, int] | None = None) -> None:
        self.said: list[str] = []
        self.records: list[RunRecord] = []
        self.troubles: list[Exception] = []  # of messages that are published to foreign streams
        self.commit_may_go_on = asyncio.Event()
        self.commit_may_go_on.set()
        self.chained: list[tuple[dict[int, Sequence[AuditEntry]], dict[int, int]]] = []
        self.first_left: list[int | None] = []
        self.created, self.watermark, self.bytes_held = "", 7, 0
        self.blocked: list[str | None] = []
        self.hand = Hand(tries or {})
        self.telemetry = Telemetry()
        here = cast(Any, self)
        self.settler = Settler(
            ROUTE, here, here, here, self.telemetry.route("r"), self.hand, self.blocked.append, self.observe
        )

    async def connected(self) -> None: ...

    async def publish_stored(self, message: Outgoing) -> int:
        if self.troubles:
            raise self.troubles.pop(0)
        self.said.append(f"foreign {message.subject}")
        return 1

    async def commit(
        self,
        stored: Sequence[Outgoing],
        contexts: Mapping[str, ContextChange],
        moves: Mapping[int, Move],
        *,
        live: Sequence[Outgoing],
        first_left: int | None,
        entries: Mapping[int, Sequence[AuditEntry]],
        marks: Mapping[int, int],
    ) -> int:
        await self.commit_may_go_on.wait()
        self.first_left.append(first_left)
        self.chained.append((dict(entries), dict(marks)))
        words = [*(m.subject for m in stored), *contexts, *moves, *(f"live {m.subject}" for m in live)]
        self.said.append(f"commit {' '.join(map(str, words))}")
        return len(stored)

    async def publish(self, *messages: Outgoing) -> None:
        self.said += [f"live {m.subject}" for m in messages]

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.said += [f"ack {d.sequence}" for d in deliveries]

    def observe(self, record: RunRecord) -> None:
        self.said.append(f"tell {record.first}")

    def numbers(self, name: str) -> float:
        return self.telemetry.numbers[f"processor_{name}"][("r",)]

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[Settler]:
        task = asyncio.create_task(self.settler.run())
        try:
            yield self.settler
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def full(sequence: int) -> Effects:
    """Effects that have something for each step."""
    return Effects(
        deliveries=[delivery(sequence), delivery(90 + sequence, kept="p.a.due.r.0.1")],
        ended=[delivery(sequence)],
        foreign=[Outgoing("f", b"")],
        stored=[Outgoing("s", b"")],
        live=[Outgoing("l", b"")],
        markers=[Outgoing("m", b"")],
        contexts={"k": ContextChange({}, True, 0)},
        moves={0: Move(sequence)},
        records=[record(sequence)],
    )


async def test_each_step_comes_behind_the_one_before() -> None:
    """Foreign streams, the commit of everything, live listeners, the input's own messages, and the record."""
    world = World(tries={5: 2, 95: 1, 6: 1})
    world.hand.announced = {5, 6}
    await world.settler.settle(full(5))
    assert world.said == ["foreign f", "commit s k 0 live m", "live l", "ack 5", "tell 5"]
    assert world.hand.tries == {6: 1}
    assert world.hand.announced == {6}
    assert world.numbers("committed_messages_total") == 1


@pytest.mark.parametrize("step", ["publish_stored", "commit", "publish", "ack"])
async def test_nothing_comes_of_a_step_that_did_not_succeed(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is behind it in the order is not begun, and above all nothing is told."""
    world = World()

    async def fails(*args: Any, **more: Any) -> None:
        raise RuntimeError(step)

    monkeypatch.setattr(world, step, fails)
    with pytest.raises(RuntimeError, match=step):
        await world.settler.settle(full(5))
    done = ["foreign f", "commit s k 0 live m", "live l", "ack 5"]
    assert world.said == done[: ["publish_stored", "commit", "publish", "ack"].index(step)]


async def test_listeners_that_cannot_be_reached_hold_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed is acknowledged and told, whether or not its live messages were sent."""
    world = World()

    async def is_gone(*messages: Outgoing) -> None:
        raise Unknown("no connection")

    monkeypatch.setattr(world, "publish", is_gone)
    await world.settler.settle(full(5))
    assert world.said == ["foreign f", "commit s k 0 live m", "ack 5", "tell 5"]


async def test_a_foreign_stream_is_asked_until_it_takes_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed before it does; a refusal is named for as long as it lasts."""
    monkeypatch.setattr("processor.delivery.settle._REFUSED_PAUSE_S", 0.001)
    world = World()
    world.troubles = [Unknown("lost"), Again("busy"), BrokerError("E401", "there is no stream")]
    await world.settler.settle(full(5))
    assert world.said[:2] == ["foreign f", "commit s k 0 live m"]
    [why, end] = world.blocked
    assert "there is no stream" in str(why)
    assert end is None


async def test_runs_that_end_during_a_commit_are_one_commit_behind_it() -> None:
    """In the order in which they were submitted; then everything is settled, and not before."""
    world = World()
    world.commit_may_go_on.clear()
    async with world.settling() as settler:
        for sequence in (1, 2, 3):
            await settler.submit(
                Effects(
                    deliveries=[delivery(sequence)],
                    stored=[Outgoing(f"s{sequence}", b"")],
                    contexts={f"k{sequence}": ContextChange({}, True, 0)},
                    moves={0: Move(sequence)},
                    records=[record(sequence)],
                )
            )
        settled = asyncio.create_task(settler.settled())
        await asyncio.wait({settled}, timeout=0)
        assert (settler.is_settling, settled.done()) == (True, False)
        assert [settler.is_unsettled(key) for key in ("k1", "k2", "k3", "k4")] == [True, True, True, False]
        assert settler.submitted == 7  # the store's own mark is beyond these
        world.commit_may_go_on.set()
        await settled
        assert not settler.is_settling
        assert not settler.is_unsettled("k3")
    assert world.said == [
        *("commit s1 k1 0", "ack 1", "tell 1"),
        *("commit s2 s3 k2 k3 0", "ack 2", "ack 3", "tell 2", "tell 3"),
    ]


async def test_nothing_is_settled_while_its_commit_is_under_way() -> None:
    """Whoever waits for that waits for the commit, and then for what else must be so."""
    world = World()
    world.commit_may_go_on.clear()
    is_so = False
    async with world.settling() as settler:
        await settler.submit(Effects(deliveries=[delivery(8)], moves={0: Move(8)}))
        settled = asyncio.create_task(settler.settled())
        resting = asyncio.create_task(settler.settled_and(lambda: is_so))
        await asyncio.wait({settled}, timeout=0)
        assert not settled.done()
        world.commit_may_go_on.set()
        await settled
        await asyncio.wait({resting}, timeout=0)
        assert not resting.done()
        is_so = True
        await settler.submit(Effects(deliveries=[delivery(9)], moves={0: Move(9)}))
        await resting
    assert world.said == ["commit 0", "ack 8", "commit 0", "ack 9"]


async def test_what_does_not_fit_beside_the_rest_waits_for_the_commit() -> None:
    """A commit never has more than the server takes."""
    world = World()
    world.commit_may_go_on.clear()
    many = [Outgoing("s", b"")] * (COMMIT_BUDGET - 1)
    async with world.settling() as settler:
        await settler.submit(Effects(deliveries=[delivery(8)], moves={0: Move(8)}))
        await settler.submit(Effects(deliveries=[delivery(9)], stored=many, moves={0: Move(9)}))
        more = Effects(deliveries=[delivery(10)], stored=[Outgoing("t", b"")], moves={0: Move(10)})
        submitting = asyncio.create_task(settler.submit(more))
        await asyncio.wait({submitting}, timeout=0)
        assert not submitting.done()
        assert settler.submitted == 10
        world.commit_may_go_on.set()
        await submitting
        await settler.settled()
    assert [word.count(" s") for word in world.said if word.startswith("commit")] == [0, COMMIT_BUDGET - 1, 0]


async def test_a_commit_says_what_is_left_to_be_processed() -> None:
    """The lowest sequence of the input in hand; what is kept has its own place and does not count."""
    world = World()
    async with world.settling() as settler:
        world.hand.coming = [[delivery(12), delivery(11)], [delivery(3, kept="p.a.due.r.0.1")]]
        await settler.submit(Effects(moves={0: Move(9)}))
        await settler.settled()
        world.hand.coming = []
        await settler.submit(Effects(moves={0: Move(12)}))
        await settler.settled()
    assert world.first_left == [11, None]


async def test_runs_are_as_large_as_half_a_commit_holds() -> None:
    """It is learnt from what messages leave behind, also from what was too much, and forgotten slowly."""
    world = World()
    room = COMMIT_BUDGET - ROUTE.partitions
    assert world.settler.run_limit == room // 2
    ten = Effects(deliveries=[delivery(1)], stored=[Outgoing("s", b"")] * 10, moves={0: Move(1)})
    world.settler.weigh(ten)
    assert world.settler.run_limit == room // 20
    async with world.settling() as settler:
        await settler.submit(Effects(deliveries=[delivery(1)], moves={0: Move(1)}))
    assert world.settler.run_limit == int(room / 9.8 / 2)


def denial(target: str) -> AuditEntry:
    return AuditEntry("http", "deny", "dropped", target=target)


async def test_what_the_audit_gets_of_a_run_without_effects_is_in_the_next_commit() -> None:
    """Before what that commit has of its own; its partition moves nowhere by it."""
    world = World()
    dropped, made = denial("a"), denial("b")
    async with world.settling() as settler:
        settler.keep([(3, dropped)])
        await settler.submit(replace(full(5), audit=[(0, made)]))
        await settler.settled()
        assert world.chained == [({3: [dropped], 0: [made]}, {})]
        assert "commit s k 3 0 live m" in world.said
        await settler.drained()  # nothing is left that needs a commit of its own
        assert len(world.chained) == 1
        settler.close()
    assert world.numbers("audit_entries_total") == 2


async def test_what_the_audit_gets_is_committed_without_anything_else_to_commit() -> None:
    """In a moment by itself, and at once where the worker ends; a mark comes with the last of its entries."""
    world = World()
    many = [(1, denial(str(number))) for number in range(100 * COMMIT_BUDGET + 50)]
    async with world.settling() as settler:
        settler.keep([(2, denial("x"))])
        await waited(lambda: len(world.chained) == 1, "a commit of its own")
        settler.keep(many, {4: 70})
        assert [entry for _, entry in settler.left()] == [entry for _, entry in many]
        await settler.drained()
        assert not settler.left()
        settler.close()
    _, *parts = world.chained
    assert len(parts) > 1
    assert [entry for entries, _ in parts for entry in entries.get(1, ())] == [entry for _, entry in many]
    assert [marks for _, marks in parts] == [*({} for _ in parts[1:]), {4: 70}]


def test_entries_count_as_the_messages_that_hold_them() -> None:
    """A record for each chain and hundred entries, and the position of a chain that nothing else moves."""
    plain = Effects(moves={0: Move(5)})
    entries = [(partition, denial("a")) for partition in (0, 3, 3)]
    assert replace(plain, audit=entries).size == plain.size + 3
    assert plain.size_with(Effects(audit=entries * 40, marks={5: 1})) == plain.size + 4
    assert replace(full(5), audit=entries).weight == full(5).weight
