"""The rule for a message's fate, and the small pure functions that everything agrees on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import ERRORS
from processor.model import (
    SHORT_WAIT_S,
    Block,
    DeadLetter,
    Decision,
    Drop,
    Failure,
    Park,
    Program,
    RetryPolicy,
    RunAgain,
    Wait,
    decide,
    key_from_token,
    key_token,
    partition_of,
)


def failure(code: str, retry_after_s: float | None = None) -> Failure:
    return Failure(code, "because", retry_after_s=retry_after_s)


def policy(attempts: int = 3, then: str = "dead_letter", base_ms: float = 1500) -> RetryPolicy:
    return RetryPolicy(attempts, "fixed", base_ms, 2, 60_000, then)


LONG = failure("E304", 2.5)  # longer than what is waited for in memory


@pytest.mark.parametrize(
    ("why", "attempt", "rules", "decision"),
    [
        (failure("E304"), 1, policy(), Wait(1.5)),
        (failure("E304"), 2, policy(), Wait(1.5)),
        (failure("E304"), 3, policy(), DeadLetter(failure("E304"))),
        (failure("E304"), 4, policy(), DeadLetter(failure("E304"))),
        (failure("E304"), 1, policy(1), DeadLetter(failure("E304"))),
        (failure("E304"), 1, policy(base_ms=2000), Wait(2.0)),
        (failure("E304"), 1, policy(base_ms=2001), Park(2.001)),
        (failure("E304"), 1, policy(base_ms=0), RunAgain()),
        (failure("E304"), 3, policy(base_ms=0), DeadLetter(failure("E304"))),
        (LONG, 1, policy(), Park(2.5)),
        (failure("E304", 0.5), 1, policy(base_ms=9000), Wait(0.5)),
        (failure("E304", 0.0), 1, policy(), RunAgain()),
        (LONG, 3, policy(), DeadLetter(LONG)),
        (failure("E312"), 1, policy(), Wait(1.5)),
        (failure("E301"), 1, policy(), DeadLetter(failure("E301"))),
        (failure("E305"), 1, policy(then="block"), DeadLetter(failure("E305"))),
        (failure("E304"), 2, policy(then="drop"), Wait(1.5)),
        (failure("E304"), 3, policy(then="drop"), Drop(failure("E304"))),
        (failure("E305"), 1, policy(then="drop"), DeadLetter(failure("E305"))),
        (failure("E304"), 2, policy(then="block"), Wait(1.5)),
        (LONG, 2, policy(then="block"), Block(LONG, 2.5)),
        (failure("E304", 0.0), 2, policy(then="block"), RunAgain()),
        (failure("E304"), 3, policy(then="block"), Block(failure("E304"), 60.0)),
        (failure("E304", 7.0), 9, policy(then="block"), Block(failure("E304", 7.0), 7.0)),
        (failure("E304", 0.0), 9, policy(then="block"), Block(failure("E304", 0.0), 0.0)),
        (failure("E304"), 1, RetryPolicy(1, "fixed", 0, 2, 0, "block"), Block(failure("E304"), 0.05)),
    ],
)
def test_the_fate_of_a_message(why: Failure, attempt: int, rules: RetryPolicy, decision: Decision) -> None:
    """A failure is retried until its attempts are used up, and finality is respected."""
    assert decide(why, attempt, rules, 0.5) == decision


@pytest.mark.parametrize(
    ("why", "attempt", "rules", "decision"),
    [
        (failure("E304"), 1, policy(), Block(failure("E304"), 1.5)),
        (LONG, 1, policy(), Block(LONG, 2.5)),
        (failure("E304", 0.0), 1, policy(), RunAgain()),
        (failure("E304"), 3, policy(), DeadLetter(failure("E304"))),
        (failure("E304"), 3, policy(then="block"), Block(failure("E304"), 60.0)),
        (failure("E305"), 1, policy(then="block"), DeadLetter(failure("E305"))),
    ],
)
def test_a_message_that_holds_its_key_goes_on_holding_it(
    why: Failure, attempt: int, rules: RetryPolicy, decision: Decision
) -> None:
    """However short its wait is, and whatever comes after its attempts, the key is free when it has ended."""
    assert decide(why, attempt, rules, 0.5, is_held=True) == decision


@pytest.mark.parametrize(
    ("why", "attempt", "rules", "decision"),
    [
        (failure("E304"), 3, policy(then="block"), Wait(60.0)),
        (LONG, 1, policy(then="block"), Wait(2.5)),
        (LONG, 1, policy(), Park(2.5)),
        (failure("E304"), 1, policy(), Wait(1.5)),
    ],
)
def test_the_only_key_of_a_route_is_not_moved_out_of_its_own_way(
    why: Failure, attempt: int, rules: RetryPolicy, decision: Decision
) -> None:
    """Where a key would be blocked and there is no other, its message waits in memory, however long."""
    assert decide(why, attempt, rules, 0.5, has_one_key=True) == decision


@pytest.mark.parametrize(
    ("why", "is_held", "decision"),
    [
        (failure("E304", 0.0), False, Wait(0.0)),
        (failure("E304", -1.0), False, Wait(-1.0)),
        (failure("E304", 0.0), True, Block(failure("E304", 0.0), 0.0)),
        (LONG, False, Park(2.5)),
        (failure("E301"), False, DeadLetter(failure("E301"))),
    ],
)
def test_nothing_is_tried_at_once_while_the_route_stops(
    why: Failure, is_held: bool, decision: Decision
) -> None:
    """The try is left to the next start, which is told of this one."""
    assert decide(why, 1, policy(), 0.5, is_held=is_held, is_stopping=True) == decision


@given(
    st.sampled_from(sorted(ERRORS)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["dead_letter", "drop", "block"]),
    st.floats(0, 100),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_failure_ends(
    code: str, attempt: int, attempts: int, then: str, asked_s: float, held: bool, ends: bool, one_key: bool
) -> None:
    """`then` decides once the attempts are used up, and final ones are dead."""
    rules = policy(attempts, then)
    decision = decide(
        failure(code, asked_s), attempt, rules, 0.5, is_held=held, is_stopping=ends, has_one_key=one_key
    )
    is_last = attempt >= attempts
    match decision:
        case RunAgain():
            assert (is_last, ends, asked_s) == (False, False, 0)
        case Wait(after_s):
            assert after_s == asked_s
            assert one_key or (not is_last and not held and after_s <= SHORT_WAIT_S)
            assert not is_last or then == "block"
        case Park(after_s):
            assert (after_s, is_last, held, then == "block") == (asked_s, False, False, False)
            assert after_s > SHORT_WAIT_S
        case Block(why, after_s):
            assert (why.code, after_s, one_key) == (code, asked_s, False)
            assert held or then == "block"
        case Drop(why):
            assert (why.code, is_last, then) == (code, True, "drop")
        case DeadLetter(why):
            assert why.code == code
            assert ERRORS[code].is_final or (is_last and then == "dead_letter")
    assert (ERRORS[code].is_final) <= isinstance(decision, DeadLetter)


@pytest.mark.parametrize(
    ("strategy", "none", "half", "most"),
    [
        ("exponential", [2, 4, 8, 10], [2, 4, 8, 10], [2, 4, 8, 10]),
        ("exponential_full_jitter", [0, 0, 0, 0], [1, 2, 4, 5], [2, 4, 8, 10]),
        ("exponential_equal_jitter", [1, 2, 4, 5], [1.5, 3, 6, 7.5], [2, 4, 8, 10]),
        ("linear", [2, 4, 6, 8], [2, 4, 6, 8], [2, 4, 6, 8]),
        ("linear_full_jitter", [0, 0, 0, 0], [1, 2, 3, 4], [2, 4, 6, 8]),
        ("linear_equal_jitter", [1, 2, 3, 4], [1.5, 3, 4.5, 6], [2, 4, 6, 8]),
        ("fixed", [2, 2, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]),
        ("fixed_full_jitter", [0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]),
        ("fixed_equal_jitter", [1, 1, 1, 1], [1.5, 1.5, 1.5, 1.5], [2, 2, 2, 2]),
    ],
)
def test_the_waits_of_every_strategy(
    strategy: str, none: list[float], half: list[float], most: list[float]
) -> None:
    """After tries 1 to 4, base 2 s, factor 2, at most 10 s: with no luck, half of it, and all of it."""
    rules = RetryPolicy(9, strategy, 2000, 2, 10_000)
    for luck, waits in ((0.0, none), (0.5, half), (1.0, most)):
        assert [rules.wait_s(attempt, luck) for attempt in (1, 2, 3, 4)] == waits


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True), st.floats(1, 1000))
def test_no_wait_is_longer_than_the_longest(attempt: int, luck: float, factor: float) -> None:
    """Neither a million tries nor a large factor makes a wait that is not a number, or exceeds max_ms."""
    assert 0 <= RetryPolicy(5, "exponential_full_jitter", 200, factor, 60_000).wait_s(attempt, luck) <= 60


@given(st.text())
def test_a_key_survives_as_a_subject_token(key: str) -> None:
    """Whatever a key is, its token is made of `[A-Za-z0-9_=-]` and gives the key back."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return
    token = key_token(key)
    assert token
    assert all(c.isascii() and (c.isalnum() or c in "-_=") for c in token)
    assert key_from_token(token) == key


@given(st.text(alphabet="abc=", max_size=6), st.text(alphabet="abc=", max_size=6))
def test_different_keys_have_different_tokens(a: str, b: str) -> None:
    """Two keys never share a token."""
    assert (key_token(a) == key_token(b)) == (a == b)


@pytest.mark.parametrize(
    ("key", "digest"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968), ("ключ", None)]
)
def test_partitions_are_fnv_1a(key: str, digest: int | None) -> None:
    """The published test vectors of FNV-1a (32 bit), so that others find the same partition."""
    if digest is None:
        assert 0 <= partition_of(key, 64) < 64
    else:
        assert partition_of(key, 1 << 32) == digest


def test_a_program_is_named_by_its_source() -> None:
    """The same source has the same id, wherever it lies; another source has another."""
    assert Program("x = 1", "a.py").id == Program("x = 1", "b.py").id
    assert Program("x = 1", "a.py").id != Program("x = 2", "a.py").id
