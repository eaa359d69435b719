"""What several runs leave behind, put together for one commit, and a batch that failed is split in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from processor.context.position import Move
from processor.delivery.effects import Batch, Effects
from processor.jetstream import Outgoing
from processor.model import NO_HEADERS, ContextChange, Delivery, Group

changes = st.builds(
    ContextChange,
    st.dictionaries(st.sampled_from("xyz"), st.sampled_from([b"1", b"2"]), max_size=3),
    st.booleans(),
    st.sampled_from([10, 5000]),
)
runs = st.builds(
    Effects,
    stored=st.lists(st.just(Outgoing("out", b"1")), max_size=3),
    kept=st.dictionaries(st.sampled_from("pq"), st.just(Outgoing("p", b"1")), max_size=2),
    contexts=st.dictionaries(st.sampled_from("abc"), changes),
    moves=st.dictionaries(st.integers(0, 3), st.builds(Move, st.integers(0, 9))),
    scattered=st.integers(0, 3),
    is_recorded=st.booleans(),
)


def test_effects_of_later_runs_win_where_they_must() -> None:
    """Contexts: a whole one replaces, items merge. Positions: the highest counts. Messages: all, in order."""
    first = Effects(
        contexts={"a": ContextChange({"x": b"1", "y": b"1"}, False, 5000), "b": ContextChange({}, True, 0)},
        moves={0: Move(5), 1: Move(6, opened={6: 1})},
    )
    later = Effects(
        contexts={"a": ContextChange({"x": None, "z": b"2"}, False, 5001)},
        moves={0: Move(9), 1: Move(4, closed={6})},
    )
    first.add(later)
    assert first.contexts["a"] == ContextChange({"x": None, "y": b"1", "z": b"2"}, False, 5001)
    assert first.moves == {0: Move(9), 1: Move(6, closed={6})}
    first.add(Effects(contexts={"a": ContextChange({"w": b"3"}, True, 2)}))
    assert first.contexts["a"] == ContextChange({"w": b"3"}, True, 2)


def test_everything_that_a_commit_will_hold_is_counted() -> None:
    """Positions, contexts by item where they are large, what removes items, and records."""
    changes = {"a": ContextChange({"x": b"1", "y": None}, False, 5000), "b": ContextChange({}, True, 0)}
    effects = Effects(contexts=changes, moves={0: Move(1)})
    assert effects.size == 1 + 3 + 1
    effects.add(
        Effects(contexts={"c": ContextChange({"x": b"1"}, True, 5000)}, scattered=7, is_recorded=True)
    )
    assert effects.size == 1 + 3 + 1 + 2 + 7 + 3


@given(runs, runs)
def test_what_two_runs_need_together_is_never_underestimated(first: Effects, later: Effects) -> None:
    """It is counted before they are joined, where it decides whether they may be."""
    together = first.size_with(later)
    first.add(later)
    assert first.size <= together


def test_a_context_that_came_whole_stays_whole() -> None:
    """What a later run of the same commit changes in it is laid over it; what that removed is not in it."""
    effects = Effects(contexts={"a": ContextChange({"x": b"1", "y": b"1"}, True, 5000)})
    effects.add(Effects(contexts={"a": ContextChange({"x": None, "z": b"2"}, False, 5001)}))
    assert effects.contexts["a"] == ContextChange({"y": b"1", "z": b"2"}, True, 5001)


def planned(keys: str) -> Batch:
    """A batch of one message for each letter, grouped by key; a dot is a message that no group has."""
    taken = [Delivery(key, b"", NO_HEADERS, "IN", number, 0.0) for number, key in enumerate(keys, 1)]
    batch = Batch(taken)
    for key in dict.fromkeys(keys.replace(".", "")):
        batch.groups.append(Group(key, []))
        batch.members.append([delivery for delivery in taken if delivery.subject == key])
    return batch


def parts(batch: Batch, failed: int | None, partitions: int = 64) -> list[str]:
    split = batch.split(batch.deliveries, failed, lambda delivery: ord(delivery.subject) % partitions)
    return ["".join(delivery.subject for delivery in part) for part in split]


def test_a_batch_is_split_around_the_group_that_failed() -> None:
    """What ran before the group is one batch, the group the next, and what lies behind it the last."""
    assert parts(planned("abcdef"), 3) == ["abc", "d", "ef"]
    assert parts(planned("abcabc"), 1) == ["aa", "bb", "cc"]
    assert parts(planned("abcdef"), 5) == ["abcde", "f"]


def test_a_batch_that_fails_early_has_the_rest_halved() -> None:
    """Where many messages fail, what lies behind each of them is not run as a whole again and again."""
    assert parts(planned("abcdefghi"), 0) == ["a", "bcde", "fghi"]


def test_a_batch_is_halved_where_no_smaller_part_is_known() -> None:
    """A failure of nobody's, and one of the only group, say nothing about which message it is."""
    assert parts(planned("abcd"), None) == ["ab", "cd"]
    assert parts(planned("aaaa"), 0) == ["aa", "aa"]


@given(st.text(st.sampled_from("abcdefg."), min_size=2, max_size=30), st.integers(1, 4), st.data())
def test_parts_of_a_batch_only_go_on(keys: str, partitions: int, data: st.DataObject) -> None:
    """Every message is in one part that is smaller than the batch, and none of a partition comes after a
    later one: its position would have passed it.
    """
    batch = planned(keys)
    groups = st.integers(0, len(batch.groups) - 1) if batch.groups else st.none()
    split = batch.split(
        batch.deliveries, data.draw(groups), lambda delivery: ord(delivery.subject) % partitions
    )
    assert sorted(d.sequence for part in split for d in part) == [d.sequence for d in batch.deliveries]
    assert all(0 < len(part) < len(keys) for part in split)
    for partition in range(partitions):
        order = [d.sequence for part in split for d in part if ord(d.subject) % partitions == partition]
        assert order == sorted(order)
