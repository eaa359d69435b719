"""What becomes of a message that failed alone, as it is submitted to be settled; by `Retrying` alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from processor.config import load
from processor.context.parked import ParkedMessage, ParkedMessages
from processor.context.position import Move
from processor.context.store import ContextStore
from processor.delivery.codec import codec_for
from processor.delivery.effects import Batch, Effects, EffectsBuilder
from processor.delivery.hand import Hand
from processor.delivery.retrying import Retrying
from processor.model import (
    NO_HEADERS,
    Block,
    DeadLetter,
    Decision,
    Delivery,
    Drop,
    Failure,
    Park,
    RunAgain,
    Wait,
)

NOW_S = 1000.0
AT = datetime(2030, 1, 1, tzinfo=UTC)
WHY = Failure("E304", "ValueError: no price")
ROUTE = """
app: app
routes:
  r: {input: {subject: "in.*"}, code: "class Runnable: pass", key: subject.2, partitions: 1, output: out.x}
"""


class World:
    """The retrying part of a worker, and what it has submitted."""

    def __init__(self, folder: Path) -> None:
        (folder / "app.yaml").write_text(ROUTE)
        route = load(folder / "app.yaml", {}).routes["r"]
        codec, letters = codec_for(route), ParkedMessages("app", "r", 100_000)
        store = ContextStore(cast(Any, None), "app", "r", 1, "me")
        store.held = self.held  # type: ignore[method-assign, assignment]
        self.submitted: list[Effects] = []
        self.settled_first = 0
        self.hand = Hand({})
        self.kept: list[ParkedMessage] = []
        self.has_more = False
        effects = EffectsBuilder(route, codec, {}, 100_000)
        self.retrying = Retrying(route, codec, store, effects, letters, cast(Any, self), self.hand)

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        assert key == "a"
        return self.kept[:limit], self.has_more

    async def submit(self, effects: Effects) -> None:
        self.submitted.append(effects)

    async def settled(self) -> None:
        self.settled_first += 1

    async def carry_out(self, decision: Decision, delivery: Delivery, attempt: int = 2) -> Effects:
        """The only effects that this submits."""
        move = Move(0 if delivery.kept else delivery.sequence)
        batch = Batch([delivery], partitions={delivery.sequence: 0}, moves={0: move})
        await self.retrying.carry_out(decision, batch, attempt)
        [effects] = self.submitted
        return effects


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    class At(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return AT

    monkeypatch.setattr("processor.delivery.retrying.time", SimpleNamespace(monotonic=lambda: NOW_S))
    monkeypatch.setattr("processor.delivery.retrying.datetime", At)
    return World(tmp_path)


def taken(sequence: int = 5, payload: bytes = b"{}", **more: Any) -> Delivery:
    return Delivery("in.a", payload, NO_HEADERS, "IN", sequence, 0.0, **more)


def held(sequence: int) -> Delivery:
    return taken(sequence, kept=f"p.app.held.r.0.a.{sequence}", kept_at=70 + sequence, dealt=0)


HUGE = taken(payload=b"x" * 99_990)


async def test_a_message_that_is_tried_at_once_leaves_nothing(world: World) -> None:
    """But that it was tried."""
    await world.retrying.carry_out(RunAgain(), Batch([taken()], partitions={5: 0}), 2)
    assert world.submitted == []
    assert world.hand.tries == {5: 2}


async def test_a_message_that_waits_is_open(world: World) -> None:
    """Until its time it is in memory, and its tries are in the position."""
    effects = await world.carry_out(Wait(1.5), taken())
    assert effects == Effects(moves={0: Move(5, opened={5: 2})})
    assert list(world.hand.waiting.due(NOW_S + 1.499)) == []
    assert list(world.hand.waiting.due(NOW_S + 1.5)) == ["a"]
    assert world.hand.waiting.take("a") == [taken()]
    assert world.hand.tries == {5: 2}


async def test_a_kept_message_that_waits_changes_nothing_stored(world: World) -> None:
    """It is in the app's stream as it was."""
    kept = taken(kept="p.app.due.r.0.x", kept_at=9)
    await world.retrying.carry_out(Wait(1.5), Batch([kept], partitions={5: 0}, moves={0: Move()}), 2)
    assert world.submitted == []
    assert world.hand.waiting.take("a") == [kept]


async def test_a_message_that_is_parked_is_sent_again_at_its_time(world: World) -> None:
    """The position goes on behind it."""
    effects = await world.carry_out(Park(30), taken())
    [later] = effects.stored
    assert later.subject == "p.app.later.r.0.5-2"
    assert later.headers["Nats-Schedule"] == "@at 2030-01-01T00:00:30.000Z"
    assert later.headers["x-delivery-count"] == "2"
    assert effects.moves == {0: Move(5)}
    assert effects.deliveries == [taken()]
    assert effects.ended == []
    assert not world.hand.waiting


async def test_a_kept_message_that_is_parked_is_replaced(world: World) -> None:
    """The one that it came from is taken away in the same commit."""
    effects = await world.carry_out(Park(30), taken(kept="p.app.due.r.0.x", kept_at=9))
    assert [(m.subject, bool(m.payload)) for m in effects.stored] == [
        ("p.app.later.r.0.5-2", True),
        ("p.app.due.r.0.x", False),
    ]


async def test_a_message_that_cannot_be_parked_waits(world: World) -> None:
    """As long as it would have been parked, in memory."""
    effects = await world.carry_out(Park(30), HUGE)
    assert effects == Effects(moves={0: Move(5, opened={5: 2})})
    assert list(world.hand.waiting.due(NOW_S + 30)) == ["a"]


async def test_a_message_that_blocks_its_key_is_held(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The position names the key with the tries, and a line says so once."""
    world.hand.unblocking = "a"
    effects = await world.carry_out(Block(WHY, 9), taken())
    [kept] = effects.stored
    assert kept.subject == "p.app.held.r.0.a.5"
    assert kept.headers["x-delivery-count"] == "2"
    assert effects.moves == {0: Move(5, blocked={"a": 2})}
    assert world.hand.waiting.is_blocked("a")
    assert world.hand.unblocking is None
    assert list(world.hand.waiting.due(NOW_S + 9)) == ["a"]
    assert list(world.hand.waiting.due(NOW_S + 8.9)) == []
    assert "its key is blocked until this message succeeds: E304" in caplog.text
    caplog.clear()
    await world.retrying.carry_out(Block(WHY, 9), Batch([held(6)], partitions={6: 0}, moves={0: Move()}), 3)
    assert caplog.text == ""
    assert world.submitted[1] == Effects(moves={0: Move(0, blocked={"a": 3})})


async def test_a_message_that_cannot_be_held_is_given_up(world: World) -> None:
    """Its key goes on, in the position as well."""
    effects = await world.carry_out(Block(WHY, 9), HUGE)
    [given_up] = effects.records[0].given_up
    assert (given_up.failure.code, given_up.id) == ("E307", "r.0.5")
    assert effects.moves == {0: Move(5, blocked={"a": None})}
    assert not world.hand.waiting.is_blocked("a")


@pytest.mark.parametrize("decision, id_", [(DeadLetter(WHY), "r.0.5"), (Drop(WHY), "")])
async def test_a_message_that_is_given_up_is_settled(world: World, decision: Decision, id_: str) -> None:
    """With its try counted, and kept as a dead letter or not at all."""
    world.hand.tries = {5: 1}
    effects = await world.carry_out(decision, taken())
    assert [m.subject for m in effects.stored] == (["p.app.dlq.r.0.5"] if id_ else [])
    [record] = effects.records
    [given_up] = record.given_up
    assert given_up == (taken(), WHY, 2, "a", id_, False)
    assert (record.messages, record.first, record.wall_s) == (1, 5, 0.0)
    assert effects.ended == [taken()]
    assert effects.moves == {0: Move(5)}


async def test_the_messages_of_a_blocked_key_are_tried_in_order(world: World) -> None:
    """The first alone; when all have succeeded the key goes on, once nothing more is kept."""
    world.kept = [ParkedMessage(held(n), 7, 70 + n) for n in (5, 6, 8)]
    world.hand.waiting.block("a", 0.0)
    world.hand.tries = {6: 9}
    tried: list[list[int]] = []

    async def process(part: Sequence[Delivery]) -> None:
        assert world.hand.unblocking == "a"
        tried.append([delivery.sequence for delivery in part])

    await world.retrying.try_blocked("a", 10, process)
    assert tried == [[5], [6, 8]]
    assert world.hand.tries == {5: 7, 6: 9, 8: 7}
    assert world.settled_first == 1
    assert world.hand.unblocking is None
    # Meanwhile more may have been kept: it is looked again, at once, and the key stays blocked.
    assert world.submitted == []
    assert list(world.hand.waiting.due(NOW_S)) == ["a"]
    world.kept = []
    await world.retrying.try_blocked("a", 10, process)
    assert world.submitted == [Effects(moves={0: Move(blocked={"a": None})})]
    assert not world.hand.waiting.is_blocked("a")


async def test_a_key_whose_first_message_fails_again_stays_blocked(world: World) -> None:
    """No later message of it is tried."""
    world.kept = [ParkedMessage(held(n), 7, 70 + n) for n in (5, 6)]
    world.hand.waiting.block("a", 0.0)
    tried: list[int] = []

    async def process(part: Sequence[Delivery]) -> None:
        tried.extend(delivery.sequence for delivery in part)
        await world.retrying.carry_out(
            Block(WHY, 9), Batch(list(part), partitions={5: 0}, moves={0: Move()}), 8
        )

    await world.retrying.try_blocked("a", 10, process)
    assert tried == [5]
    assert list(world.hand.waiting.due(NOW_S + 8)) == []
    assert world.hand.waiting.is_blocked("a")


async def test_a_key_of_which_more_is_kept_stays_blocked(world: World) -> None:
    """A page at a time: what is behind it is looked at next."""
    world.kept, world.has_more = [ParkedMessage(held(5), 7, 75)], True
    world.hand.waiting.block("a", 0.0)

    async def process(part: Sequence[Delivery]) -> None: ...

    await world.retrying.try_blocked("a", 1, process)
    assert world.submitted == []
    assert world.hand.waiting.is_blocked("a")
