"""What is due for a worker: each message once, in order, and never more in memory than has room."""

from __future__ import annotations

import functools

import pytest

from processor.context.parked import ParkedMessage
from processor.delivery.due import Due
from processor.model import NO_HEADERS, Delivery

ALL = 1 << 30


@functools.cache
def payload(size: int) -> bytes:
    return b"x" * size


def kept(place: int, *, sequence: int | None = None, size: int = 1) -> ParkedMessage:
    own = place if sequence is None else sequence
    return ParkedMessage(
        Delivery("in.a", payload(size), NO_HEADERS, "IN", own, 0.0, kept=f"due.{place}"), 0, place
    )


class Stream:
    """What the app's stream holds, read in pages of 100; `reading` is called within each."""

    def __init__(self) -> None:
        self.messages: list[ParkedMessage] = []
        self.pages = 0
        self.reading = lambda: None

    async def page(self, after: int) -> tuple[list[ParkedMessage], int]:
        self.pages += 1
        found = [message for message in self.messages if message.sequence > after][:100]
        self.reading()
        return found, found[-1].sequence if found else after


async def taken(due: Due, limit: int = ALL) -> list[int]:
    places: list[int] = []
    while due and len(places) < limit:
        places += [message.sequence for message in await due.take(50, ALL)]
    return places


async def test_what_was_there_before_is_read_in_pages_and_then_handed_over() -> None:
    """Nothing that was read is taken a second time, and at rest nothing is read."""
    stream = Stream()
    stream.messages = [kept(place) for place in range(1, 251)]
    due = Due(stream.page)
    due.accept(kept(250))  # it is in the stream as well
    assert await taken(due) == list(range(1, 251))
    assert stream.pages == 4
    due.accept(kept(250))
    due.accept(kept(251))
    assert await taken(due) == [251]
    assert not due
    assert stream.pages == 4


async def test_what_comes_while_a_page_is_read_comes_after_it() -> None:
    """It is in the next page, not between the messages of this one, and is not forgotten."""
    stream = Stream()
    stream.messages = [kept(place) for place in range(1, 51)]
    due = Due(stream.page)

    def arrive() -> None:
        if len(stream.messages) == 50:
            stream.messages.append(kept(51))
            due.accept(stream.messages[-1])

    stream.reading = arrive
    assert await taken(due) == list(range(1, 52))


async def test_what_comes_behind_the_end_of_the_last_page_is_read() -> None:
    """The page that found nothing more was asked for before it came."""
    stream = Stream()
    due = Due(stream.page)

    def arrive() -> None:
        if stream.pages == 1:
            stream.messages.append(kept(1))
            due.accept(stream.messages[-1])

    stream.reading = arrive
    assert await taken(due) == [1]


@pytest.mark.parametrize("size", [1, 100_000])
async def test_more_than_has_room_stays_in_the_stream(size: int) -> None:
    """However many are handed over, only so many wait here; none is lost or comes twice."""
    stream = Stream()
    due = Due(stream.page)
    assert await taken(due) == []
    for place in range(1, 5001):
        stream.messages.append(kept(place, size=size))
        due.accept(stream.messages[-1])
    assert len(due._waiting) <= 2000
    assert sum(len(message.delivery.payload) for message in due._waiting) <= (8 << 20) + size
    assert await taken(due) == list(range(1, 5001))


async def test_a_look_finds_what_nobody_handed_over() -> None:
    """And it says so to who waits."""
    stream = Stream()
    due = Due(stream.page)
    assert await taken(due) == []
    stream.messages.append(kept(7))
    due.look()
    assert due.arrived.is_set()
    assert await taken(due) == [7]


async def test_messages_of_one_sequence_are_taken_apart() -> None:
    """Two streams may have given theirs the same: one batch could not tell them apart."""
    stream = Stream()
    stream.messages = [kept(1, sequence=5), kept(2, sequence=6), kept(3, sequence=5)]
    due = Due(stream.page)
    assert [message.sequence for message in await due.take(50, ALL)] == [1, 2]
    assert [message.sequence for message in await due.take(50, ALL)] == [3]


async def test_a_batch_keeps_to_its_bytes() -> None:
    """But for a message that is larger by itself."""
    stream = Stream()
    stream.messages = [kept(place, size=60) for place in (1, 2, 3)]
    due = Due(stream.page)
    assert [message.sequence for message in await due.take(50, 120)] == [1, 2]
    assert [message.sequence for message in await due.take(50, 10)] == [3]
