"""The fuzzer of the facades, for as long as a test may take; `tests/sandbox/fuzz.py` goes on for longer."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from processor.model import Failed, Failure
from tests.sandbox import fuzz as driver
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


def test_a_run_is_done_again_without_a_guest() -> None:
    """A run that crashed a guest is done again in a process that shows what an assertion says."""
    done = subprocess.run(
        [sys.executable, driver.__file__, "--here", "--seed", "3", "--seeds", "1", "--target", "events"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert re.fullmatch(
        r"--target events --seed 3: [6-9]\d calls, [1-9]\d* hooks that meddled\n", done.stdout
    )
