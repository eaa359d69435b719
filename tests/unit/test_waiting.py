"""Which keys wait, by a clock that the test turns."""

from __future__ import annotations

from processor.delivery.waiting import HELD_MAX, Waiting
from processor.model import NO_HEADERS, Delivery


def message(sequence: int) -> Delivery:
    return Delivery("in.a", b"", NO_HEADERS, "IN", sequence, 0.0)


def test_a_key_waits_until_its_time_and_keeps_its_order() -> None:
    """Not a moment early; those behind the first message come with it, in order."""
    waiting = Waiting()
    assert not waiting
    waiting.wait("a", message(1), until_s=10.0)
    waiting.follow("a", message(2))
    waiting.wait("b", message(3), until_s=5.0)
    assert (waiting.waits("a"), waiting.waits("c"), len(waiting), waiting.next_s()) == (True, False, 3, 5.0)
    assert list(waiting.due(4.999)) == []
    assert list(waiting.due(10.0)) == ["b", "a"]
    assert [d.sequence for d in waiting.take("a")] == [1, 2]
    assert (waiting.waits("a"), len(waiting)) == (False, 1)


def test_a_blocked_key_holds_nothing_in_memory() -> None:
    """It is due at its time, again and again, until it is unblocked."""
    waiting = Waiting()
    waiting.block("a", until_s=7.0)
    assert (waiting.is_blocked("a"), waiting.waits("a"), len(waiting)) == (True, False, 0)
    assert list(waiting.due(7.0)) == ["a"]
    waiting.block("a", until_s=9.0)
    assert (list(waiting.due(8.0)), waiting.next_s(), waiting.blocked) == ([], 9.0, 1)
    waiting.unblock("a")
    assert (bool(waiting), waiting.next_s()) == (False, None)


def test_memory_is_bounded() -> None:
    """With so many messages held, the caller is told to take nothing new."""
    waiting = Waiting()
    waiting.wait("a", message(1), until_s=1.0)
    for sequence in range(2, HELD_MAX + 1):
        assert not waiting.is_full
        waiting.follow("a", message(sequence))
    assert waiting.is_full
    assert len(waiting.take("a")) == HELD_MAX
    assert not waiting.is_full
