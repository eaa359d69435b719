"""What a worker knows of the messages that it has in hand."""

from __future__ import annotations

from processor.delivery.hand import Hand
from processor.model import NO_HEADERS, Delivery


def taken(sequence: int, kept: str = "") -> Delivery:
    return Delivery("in.a", b"{}", NO_HEADERS, "IN", sequence, 0.0, kept=kept)


def test_the_tries_of_a_message_are_counted_from_1() -> None:
    """One that has failed twice is in its third."""
    hand = Hand({7: 2})
    assert (hand.attempt(taken(7)), hand.attempt(taken(8))) == (3, 1)


def test_nothing_is_left_of_a_message_that_is_settled() -> None:
    """Neither its tries, nor that its start was published."""
    hand = Hand({7: 2, 8: 1})
    hand.announced = {7, 9}
    hand.settled([taken(7), taken(6)])
    assert (hand.tries, hand.announced) == ({8: 1}, {9})


def test_the_first_that_is_left_is_of_the_input() -> None:
    """What the app's stream keeps has a place of its own."""
    hand = Hand({})
    assert hand.first_left is None
    hand.coming = [[taken(9), taken(8)], [taken(3, kept="p.a.due.r.0.1")]]
    assert hand.first_left == 8
