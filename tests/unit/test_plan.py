"""What a run gets of the deliveries that were taken, and what becomes of the others, by the planner alone."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from processor.config import load
from processor.context.parked import ParkedMessages
from processor.context.position import Move
from processor.context.store import ContextStore
from processor.delivery.codec import Codec, codec_for
from processor.delivery.effects import Batch
from processor.delivery.hand import Hand
from processor.delivery.plan import Planner
from processor.model import NO_HEADERS, Delivery, partition_of

PARTITIONS = 4
ROUTE = """
app: app
routes:
  r:
    input: {subject: "in.*"}
    code: "class Runnable: pass"
    key: subject.2
    partitions: 4
    output: OUTPUT
"""
MINE, OTHER = ("a", "b", "c"), "d"  # each of a partition of its own


class Planning:
    """A planner that owns some partitions, with what it shares with the rest of its worker."""

    def __init__(
        self, folder: Path, output: str = "out.all", *, is_alone: bool = False, is_stateless: bool = False
    ) -> None:
        (folder / "app.yaml").write_text(ROUTE.replace("OUTPUT", output))
        route = replace(load(folder / "app.yaml", {}).routes["r"], is_stateless=is_stateless)
        owned = {partition_of(key, PARTITIONS) for key in MINE}
        assert partition_of(OTHER, PARTITIONS) not in owned
        self.store = ContextStore(cast(Any, None), "app", "r", PARTITIONS, "me", owned)
        self.hand = Hand({})
        self.codec: Codec = codec_for(route)
        letters = ParkedMessages("app", "r", 100_000)
        self.planner = Planner(route, self.codec, self.store, letters, self.hand, is_alone=is_alone)

    def plan(self, *deliveries: Delivery) -> Batch:
        return self.planner.plan(deliveries)


def taken(sequence: int, key: str, **more: Any) -> Delivery:
    return Delivery(f"in.{key}", b'{"i":%d}' % sequence, NO_HEADERS, "IN", sequence, 0.0, **more)


def held(sequence: int, key: str, kept_for: str) -> Delivery:
    partition = partition_of(kept_for, PARTITIONS)
    return taken(
        sequence, key, kept=f"p.app.held.r.{partition}.{kept_for}.{sequence}", kept_at=50, dealt=partition
    )


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    return Planning(tmp_path)


def test_a_stateless_route_has_one_group_and_counts_where_it_was_dealt(tmp_path: Path) -> None:
    """Several keys are one group, whatever partition their keys would have; nothing is dealt again."""
    planning = Planning(tmp_path, is_stateless=True)
    mine = sorted(planning.store.owned)
    other = next(number for number in range(PARTITIONS) if number not in mine)
    dealt = [(1, "a", mine[0]), (2, OTHER, mine[1]), (3, "c", mine[0]), (4, "a", other)]
    batch = planning.plan(*(taken(n, key, dealt=number) for n, key, number in dealt))
    assert groups(batch) == {"": [1, 2, 3]}
    assert batch.moves == {mine[0]: Move(3), mine[1]: Move(2)}
    assert batch.stored == []


def groups(batch: Batch) -> dict[str, list[int]]:
    """The sequences that each group has, by its key."""
    assert [len(group.documents) for group in batch.groups] == [len(each) for each in batch.members]
    return {g.key: [d.sequence for d in m] for g, m in zip(batch.groups, batch.members, strict=True)}


def moves(batch: Batch) -> dict[str, Move]:
    by_partition = {partition_of(key, PARTITIONS): key for key in (*MINE, OTHER)}
    return {by_partition[partition]: move for partition, move in batch.moves.items()}


def test_messages_of_a_key_are_one_group_in_their_order(planning: Planning) -> None:
    """Each position goes behind the last message of its partition."""
    batch = planning.plan(*(taken(n, key) for n, key in enumerate("abacb", 1)))
    assert groups(batch) == {"a": [1, 3], "b": [2, 5], "c": [4]}
    assert batch.groups[0].documents == [b'{"i":1}', b'{"i":3}']
    assert moves(batch) == {"a": Move(3), "b": Move(5), "c": Move(4)}
    assert [d.sequence for d in batch.deliveries] == [1, 2, 3, 4, 5]
    assert batch.partitions == {n: partition_of(key, PARTITIONS) for n, key in enumerate("abacb", 1)}


def test_a_position_never_goes_back(planning: Planning) -> None:
    """Of what came in another order the highest sequence counts."""
    assert moves(planning.plan(taken(9, "a"), taken(4, "a"))) == {"a": Move(9)}


def test_what_others_own_is_left_out(planning: Planning) -> None:
    """It is in no batch and moves no position; a batch of nothing else is nothing to do."""
    assert groups(planning.plan(taken(1, "a"), taken(2, OTHER))) == {"a": [1]}
    batch = planning.plan(taken(1, OTHER))
    assert not batch.moves
    assert not batch.deliveries


def test_what_is_settled_is_only_acknowledged(planning: Planning) -> None:
    """But for a message that the position has open, and for one that our own stream keeps."""
    position = planning.store._partitions[partition_of("a", PARTITIONS)].position
    position.apply(Move(7, opened={5: 1}))
    due = taken(3, "a", kept="p.app.due.r.0.x", kept_at=9)
    batch = planning.plan(*(taken(n, "a") for n in (5, 6, 7, 8)), due)
    assert [d.sequence for d in batch.done] == [6, 7]
    assert groups(batch) == {"a": [5, 8, 3]}


def test_a_message_that_was_open_is_closed(planning: Planning) -> None:
    """With the batch that settles it; what is kept is none of the position's."""
    planning.hand.tries = {5: 2, 6: 1}
    batch = planning.plan(taken(5, "a"), taken(6, "a", kept="p.app.due.r.0.x", kept_at=9), taken(7, "a"))
    assert moves(batch) == {"a": Move(7, closed={5})}


def test_what_only_is_kept_moves_nothing(planning: Planning) -> None:
    """Its commit has the position all the same, which is its fence."""
    assert moves(planning.plan(taken(6, "a", kept="p.app.due.r.0.x", kept_at=9))) == {"a": Move(0)}


def test_messages_behind_one_that_waits_wait_too(planning: Planning) -> None:
    """They are opened with the tries that they have had, and known as tried from then on; others run."""
    planning.hand.waiting.wait("a", taken(1, "a"), 99.0)
    planning.hand.tries = {1: 1, 3: 2}
    kept = taken(4, "a", kept="p.app.due.r.0.x", kept_at=9)
    batch = planning.plan(taken(2, "a"), taken(3, "a"), kept, taken(5, "b"))
    assert groups(batch) == {"b": [5]}
    assert [(key, d.sequence) for key, d in batch.followers] == [("a", 2), ("a", 3), ("a", 4)]
    assert moves(batch) == {"a": Move(3, opened={2: 0, 3: 2}), "b": Move(5)}
    assert [d.sequence for d in batch.deliveries] == [5]
    assert planning.hand.tries == {1: 1, 2: 0, 3: 2}


def test_messages_behind_a_blocked_key_are_kept(planning: Planning) -> None:
    """Each in the app's stream; one that is kept there already stays as it is."""
    planning.hand.waiting.block("a", 99.0)
    planning.hand.tries = {2: 3}
    batch = planning.plan(taken(2, "a"), held(3, "a", "a"), taken(4, "b"))
    assert groups(batch) == {"b": [4]}
    [kept] = batch.stored
    assert kept.subject == f"p.app.held.r.{partition_of('a', PARTITIONS)}.a.2"
    assert kept.headers["x-delivery-count"] == "3"
    assert moves(batch) == {"a": Move(2, closed={2}), "b": Move(4)}
    assert [d.sequence for d in batch.deliveries] == [2, 4]


def test_messages_of_the_key_that_is_being_tried_run(planning: Planning) -> None:
    """It is blocked until they have; another blocked key is not in their way."""
    planning.hand.waiting.block("a", 99.0)
    planning.hand.waiting.block("b", 99.0)
    planning.hand.unblocking = "a"
    batch = planning.plan(held(2, "a", "a"), taken(3, "b"))
    assert groups(batch) == {"a": [2]}
    assert len(batch.stored) == 1


def test_a_message_of_another_partition_is_given_to_that(planning: Planning) -> None:
    """It was dealt by another `key`, and it is settled here: its tries go with it."""
    planning.hand.tries = {2: 1}
    batch = planning.plan(taken(2, "b", dealt=partition_of("a", PARTITIONS)))
    [dealt] = batch.stored
    assert dealt.subject == f"p.app.in.r.{partition_of('b', PARTITIONS)}"
    assert moves(batch) == {"a": Move(2, closed={2})}
    assert [d.sequence for d in batch.deliveries] == [2]
    assert groups(batch) == {}


def test_a_message_that_was_kept_for_another_key_goes_to_its_own(planning: Planning) -> None:
    """Also where both are of one partition: a held message is found by the key in its subject."""
    delivery = held(3, "a", "b")._replace(dealt=partition_of("a", PARTITIONS))
    planning.hand.tries = {3: 2}
    batch = planning.plan(delivery)
    assert groups(batch) == {}
    [due] = batch.stored
    assert due.subject == f"p.app.due.r.{partition_of('a', PARTITIONS)}.3-50"
    assert due.headers["x-delivery-count"] == "2"


def test_what_cannot_be_kept_is_rejected(planning: Planning) -> None:
    """It is given up with E307 in place of being lost, and settled as the others are."""
    planning.hand.waiting.block("a", 99.0)
    big = b"x" * 99_990
    batch = planning.plan(
        taken(2, "a")._replace(payload=big), taken(3, "b", dealt=partition_of("a", 4))._replace(payload=big)
    )
    assert [(d.sequence, why.code) for d, why in batch.rejected] == [(2, "E307"), (3, "E307")]
    assert moves(batch) == {"a": Move(3)}
    assert batch.stored == []


@pytest.mark.parametrize("method", ["key", "read"])
def test_an_error_of_ours_hurts_one_message(
    planning: Planning, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is rejected with E365, the log has the traceback, and the others run."""
    honest = getattr(planning.codec, method)

    def fails(delivery: Delivery) -> Any:
        if delivery.sequence == 2:
            raise RuntimeError("ours")
        return honest(delivery)

    monkeypatch.setattr(planning.codec, method, fails)
    # Without a key it is of the partition of the empty one.
    place = partition_of("a" if method == "read" else "", PARTITIONS)
    with caplog.at_level(logging.ERROR):
        batch = planning.plan(taken(1, "a"), taken(2, "a", dealt=place), taken(3, "a"))
    assert [(d.sequence, why.code) for d, why in batch.rejected] == [(2, "E365")]
    assert groups(batch) == {"a": [1, 3]}
    assert "ours" in caplog.text


def test_a_group_has_one_subject_of_output(tmp_path: Path) -> None:
    """What the output's subject takes of the input's is the same for all messages of a group."""
    planning = Planning(tmp_path, "out.{subject.1}")
    other = taken(2, "a")._replace(subject="other.a")
    batch = planning.plan(taken(1, "a"), other, taken(3, "a"))
    assert [[d.sequence for d in members] for members in batch.members] == [[1], [2], [3]]
    assert [group.key for group in batch.groups] == ["a", "a", "a"]


def test_each_message_is_a_group_where_it_runs_alone(tmp_path: Path) -> None:
    """In order, also of one key."""
    batch = Planning(tmp_path, is_alone=True).plan(taken(1, "a"), taken(2, "a"))
    assert [[d.sequence for d in members] for members in batch.members] == [[1], [2]]
