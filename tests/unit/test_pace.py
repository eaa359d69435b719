"""How much of a busy app `processor dev` shows."""

from __future__ import annotations

import math

from processor.cli.dev import Pace
from processor.cli.terminal import Shown


def shown(subject: str, number: int, kind: str = "") -> Shown:
    return Shown(subject, str(number).encode(), kind=kind)


def test_the_first_of_a_second_are_shown_and_the_others_counted() -> None:
    """Per topic; when its second is over the last one comes with the number of those that were left out."""
    pace = Pace(["stats.*", "events"])
    assert pace.next_s() is None
    admitted = [pace.admits(shown(f"stats.{n % 3}", n), 10.0 + n / 1000) for n in range(100)]
    assert admitted == [True] * 20 + [False] * 80
    assert pace.admits(shown("events", 1), 10.5)
    assert pace.next_s() == 11.0
    assert list(pace.ended(10.99)) == []
    [last] = pace.ended(11.0)
    assert (last.subject, last.payload, last.kind) == ("stats.0", b"99", "... 80 more, the last:")
    assert pace.next_s() == 11.5
    assert list(pace.ended(math.inf)) == []  # all events were shown


def test_what_comes_slowly_is_shown_whole() -> None:
    """The next second begins with the next message; a subject of no topic is a topic of its own."""
    pace = Pace([])
    for n in range(200):
        now_s = n / 15
        assert list(pace.ended(now_s)) == []
        assert pace.admits(shown("a", n), now_s)
    for n in range(21):
        pace.admits(shown("b", n, kind="event"), 100)
    list(pace.ended(100.5))
    [last] = pace.ended(101)
    assert last.kind == "... 1 more, the last: event"
