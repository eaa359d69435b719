"""The fuzzer of the facades, for as long as a test may take; `tests/sandbox/fuzz.py` goes on for longer."""

from __future__ import annotations

import pytest

from processor.model import Failed, Failure
from tests.sandbox.fuzz import TARGETS, Counts, fuzz, is_crash


@pytest.mark.timeout(300)
async def test_no_hostile_hook_crashes_a_guest() -> None:
    """Whatever hooks do while C calls them, a guest runs on, raises, or is stopped for its time or memory."""
    counts = Counts()
    await fuzz(range(2), 200, TARGETS, counts, False)
    assert counts.crashes == []
    assert counts.ended["ran"] > len(TARGETS)
    assert counts.calls > 1_500
    assert counts.meddled > 500


@pytest.mark.parametrize(
    ("code", "text", "is_found"),
    [
        ("E304", "ValueError: no", False),
        ("E311", "more than 3 s of CPU time", False),
        ("E313", "the Runnable used more memory than its limit", False),
        ("E313", "the guest process crashed, as native code does that is refused memory (SIGSEGV)", True),
        ("E314", "the guest process crashed (SIGABRT)", True),
        ("E316", "the Runnable made a system call that the jail forbids", True),
    ],
)
def test_a_crash_is_told_from_a_refusal(code: str, text: str, is_found: bool) -> None:
    """A crash is a finding in whichever words the host has it; a limit and an exception are not."""
    assert is_crash(Failed(Failure(code, text))) is is_found
