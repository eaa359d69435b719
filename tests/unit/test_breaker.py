"""The rule of the circuit breaker, with a clock that stands still until it is told otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.delivery.breaker import LONGEST_PAUSES, LOOK_AGAIN_S, Breaker


def after(*deaths: tuple[float, int | None]) -> Breaker:
    """A breaker of 3 deaths in 10 s and a pause of 5 s, to which these happened."""
    breaker = Breaker(3, 10, 5)
    for now_s, message in deaths:
        breaker.died(now_s, message)
    return breaker


@pytest.mark.parametrize(
    ("deaths", "is_open"),
    [
        ([], False),
        ([(0, 1), (1, 1)], False),
        ([(0, 1), (1, 2)], False),
        ([(0, 1), (1, 1), (2, 2)], True),
        ([(0, 1), (1, 2), (2, 3)], True),
        ([(0, 1), (1, 1), (2, 1)], False),
        ([(0, 1)] * 50, False),
        ([(0, 1)] * 50 + [(1, 2)], True),
        ([(0, 1), (5, 2), (10, 3)], True),
        ([(0, 1), (5, 2), (11, 3)], False),
        ([(0, 1), (5, 2), (11, 3), (12, 3)], True),
        ([(0, None), (1, None), (2, None)], True),
        ([(0, None), (100, None), (200, None)], True),
    ],
)
def test_it_opens_for_deaths_in_a_row_over_more_than_one_message(
    deaths: list[tuple[float, int | None]], is_open: bool
) -> None:
    """Within the window, and not for one message's tries; what cannot be started at all always counts."""
    assert after(*deaths).is_open is is_open


def test_a_guest_that_lives_begins_the_row_anew() -> None:
    """One message in a thousand that kills its guest never opens it, however often it is tried."""
    breaker = Breaker(3, 10, 5)
    for second in range(100):
        for _ in range(20):
            assert breaker.died(second, message=second) is False
        assert breaker.lived() is False
    assert not breaker.is_open


def test_an_open_one_lets_nothing_through_until_its_pause_is_over() -> None:
    """The wait is what is left of the pause; then it stays open, and lets the next try through."""
    breaker = after((0, 1), (1, 2), (2, 3))
    assert [breaker.wait_s(now_s) for now_s in (2, 4, 7, 100)] == [5, 3, 0, 0]
    assert breaker.is_open


def test_a_try_that_lives_closes_it() -> None:
    """Everything is forgotten: the next row of deaths has its full length, the next pause its first one."""
    breaker = after((0, 1), (1, 2), (2, 3), (7, 3))
    assert breaker.lived() is True
    assert not breaker.is_open
    assert breaker.wait_s(8) == 0
    assert [breaker.died(9, 4), breaker.died(9, 5), breaker.died(9, 6)] == [False, False, True]
    assert breaker.wait_s(9) == 5


def test_a_try_that_dies_doubles_the_pause_up_to_ten_times() -> None:
    """Even if it is the message that died before."""
    breaker = after((0, 1), (1, 2), (2, 3))
    pauses = []
    now_s = 2.0
    for _ in range(6):
        now_s += breaker.wait_s(now_s)
        assert breaker.died(now_s, 3) is True
        pauses.append(breaker.wait_s(now_s))
    assert pauses == [10, 20, 40, 50, 50, 50]


def test_one_of_several_tries_and_the_others_wait_for_it() -> None:
    """A death of another, which was at work before, prolongs nothing; who has tried lets the next one try."""
    breaker = after((0, 1), (1, 2), (2, 3))
    assert breaker.died(3, 4) is False
    assert [breaker.wait_s(7, who) for who in "ab"] == [0, 0]
    breaker.tries("a")
    assert [breaker.wait_s(7, who) for who in "ab"] == [0, LOOK_AGAIN_S]
    breaker.tried("b")
    assert breaker.wait_s(7, "b") == LOOK_AGAIN_S
    breaker.tried("a")
    assert breaker.wait_s(7, "b") == 0
    breaker.tries("b")
    assert breaker.died(7, 5) is True
    assert [breaker.wait_s(8, who) for who in "ab"] == [9, 9]
    breaker.lived()
    assert [breaker.wait_s(8, who) for who in "ab"] == [0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.one_of(st.none(), st.integers(1, 3), st.just("lived")))),
    st.integers(2, 5),
)
def test_whatever_happens_it_tries_again(happenings: list[tuple[int, object]], deaths: int) -> None:
    """No history makes it wait longer than ten pauses, and one life always closes it."""
    breaker = Breaker(deaths, 10, 5)
    now_s = 0.0
    for passed_s, what in happenings:
        now_s += passed_s
        if what == "lived":
            breaker.lived()
            assert not breaker.is_open
        else:
            counts = breaker.wait_s(now_s) == 0
            opens = breaker.died(now_s, what)  # type: ignore[arg-type]
            assert opens is (breaker.is_open and counts)
        assert 0 <= breaker.wait_s(now_s) <= LONGEST_PAUSES * 5
