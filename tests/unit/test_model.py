"""The rule for a message's fate, and the small pure functions that everything agrees on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import CODES
from processor.model import (
    FINAL,
    Block,
    DeadLetter,
    Decision,
    Drop,
    Failure,
    Program,
    RetryPolicy,
    RunAgain,
    decide,
    key_from_token,
    key_token,
    partition_of,
)


def failure(code: str, retry_after_s: float | None = None) -> Failure:
    return Failure(code, "because", retry_after_s=retry_after_s)


def policy(attempts: int = 3, then: str = "dead_letter") -> RetryPolicy:
    return RetryPolicy(attempts, "fixed", 1500, 2, 60_000, then)


@pytest.mark.parametrize(
    ("why", "attempt", "rules", "decision"),
    [
        (failure("E304"), 1, policy(), RunAgain(1.5)),
        (failure("E304"), 2, policy(), RunAgain(1.5)),
        (failure("E304"), 3, policy(), DeadLetter(failure("E304"))),
        (failure("E304"), 1, policy(1), DeadLetter(failure("E304"))),
        (failure("E304", 2.5), 1, policy(), RunAgain(2.5)),
        (failure("E304", 0.0), 1, policy(), RunAgain(0.0)),
        (failure("E304", 2.5), 3, policy(), DeadLetter(failure("E304", 2.5))),
        (failure("E312"), 1, policy(), RunAgain(1.5)),
        (failure("E301"), 1, policy(), DeadLetter(failure("E301"))),
        (failure("E305"), 1, policy(then="block"), DeadLetter(failure("E305"))),
        (failure("E304"), 3, policy(then="drop"), Drop(failure("E304"))),
        (failure("E305"), 1, policy(then="drop"), DeadLetter(failure("E305"))),
        (failure("E304"), 2, policy(then="block"), RunAgain(1.5)),
        (failure("E304"), 3, policy(then="block"), Block(failure("E304"), 60.0)),
        (failure("E304", 7.0), 9, policy(then="block"), Block(failure("E304", 7.0), 7.0)),
    ],
)
def test_the_fate_of_a_message(why: Failure, attempt: int, rules: RetryPolicy, decision: Decision) -> None:
    """A failure is retried until its attempts are used up, and finality is respected."""
    assert decide(why, attempt, rules, 0.5) == decision


@given(
    st.sampled_from(sorted(CODES)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["dead_letter", "drop", "block"]),
)
def test_every_failure_ends(code: str, attempt: int, attempts: int, then: str) -> None:
    """`then` decides once the attempts are used up, and final ones are dead."""
    match decide(failure(code), attempt, policy(attempts, then), 0.5):
        case RunAgain():
            assert attempt < attempts
            assert code not in FINAL
        case Drop() | Block() as end:
            assert (attempt >= attempts, code in FINAL) == (True, False)
            assert type(end).__name__.lower() == then
        case DeadLetter(why):
            assert why.code == code
            assert code in FINAL or (attempt >= attempts and then == "dead_letter")


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
