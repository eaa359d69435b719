"""The rule for a message's fate, and the small pure functions that everything agrees on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import CODES
from processor.model import (
    FINAL,
    Ack,
    DeadLetter,
    Decision,
    Failure,
    Program,
    Retry,
    decide,
    key_from_token,
    key_token,
    partition_of,
)


def failure(code: str, retry_after_s: float | None = None) -> Failure:
    return Failure(code, "because", retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("why", "attempt", "attempts", "decision"),
    [
        (None, 1, 3, Ack()),
        (failure("E304"), 1, 3, Retry(0.0)),
        (failure("E304"), 2, 3, Retry(0.0)),
        (failure("E304"), 3, 3, DeadLetter(failure("E304"))),
        (failure("E304"), 1, 1, DeadLetter(failure("E304"))),
        (failure("E304", 2.5), 1, 3, Retry(2.5)),
        (failure("E304", 2.5), 3, 3, DeadLetter(failure("E304", 2.5))),
        (failure("E312"), 1, 3, Retry(0.0)),
        (failure("E301"), 1, 3, DeadLetter(failure("E301"))),
        (failure("E305"), 1, 3, DeadLetter(failure("E305"))),
    ],
)
def test_the_fate_of_a_message(why: Failure | None, attempt: int, attempts: int, decision: Decision) -> None:
    """Success is acknowledged, failure retried until its attempts are used up, and finality is respected."""
    assert decide(why, attempt, attempts) == decision


@given(st.sampled_from(sorted(CODES)), st.integers(1, 20), st.integers(1, 20))
def test_every_failure_ends(code: str, attempt: int, attempts: int) -> None:
    """No failure is acknowledged, none is retried beyond its attempts, and final ones never."""
    match decide(failure(code), attempt, attempts):
        case Ack():
            pytest.fail("a failure was acknowledged")
        case Retry():
            assert attempt < attempts
            assert code not in FINAL
        case DeadLetter(why):
            assert why.code == code


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
