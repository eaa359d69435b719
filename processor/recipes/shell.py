"""What a shell step has come to: the result of its program, in the words that a step in Python has.

A program that ends well says what it is by the JSON object that it writes to stdout: all of it, or its last
line that is one, so that a script may print before. Everything it wrote is taken for what strangers wrote.
"""

from __future__ import annotations

import signal
from typing import Any

import orjson

from processor.delivery.codec import failed_result
from processor.graphs.progress import Message
from processor.model import Failure
from processor.sandbox.blackboard import strict
from processor.sandbox.shell import ShellOutcome

NO_JSON = "non-json stdout"
_RETURNED_BYTES = 2000  # of what is kept of a step that failed: an execution takes 2048 of it
_REASON_CHARS = 500


def result_of(outcome: ShellOutcome, step: str = "") -> Message:
    """The result of an execution: `outputs`, or an `error` with what the step `returned` nevertheless.

    It failed with the code of `outcome.failure` where there is one; else, with E716, for an exit code other
    than 0, without a JSON object in stdout, or with a status other than "ok" or "success".
    """
    place = f"step {step}: " if step else ""
    if outcome.failure is not None:
        failure = Failure(outcome.failure.code, f"{place}{outcome.failure.text}")
        reason = outcome.failure.text[:_REASON_CHARS]
        return {**failed_result(failure), "returned": {"status": "error", "reason": reason}}
    said = _last_object(outcome.stdout)
    if outcome.code != 0:
        returned, why = _unsuccessful(outcome, said)
    elif said is None:
        returned = {"status": "error", "reason": NO_JSON}
        why = NO_JSON
    elif (status := said.get("status")) in ("ok", "success"):
        return {"outputs": said, "sets": []}
    else:
        returned, why = said, str(said.get("reason") or f"it returned the status {status!r}")
    failure = Failure("E716", f"{place}{why[:_REASON_CHARS]}")
    return {**failed_result(failure), "returned": returned}


def _last_object(stdout: bytes) -> dict[str, Any] | None:
    for text in (stdout, *reversed(stdout.splitlines())):
        if text.strip().startswith(b"{") and (found := _object(text)) is not None:
            return found
    return None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(text)
        return strict("stdout", found) if isinstance(found, dict) else None
    except ValueError:
        return None


def _unsuccessful(outcome: ShellOutcome, said: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """What is kept of a program that did not end well, and the sentence about it."""
    code, stderr = outcome.code or 0, outcome.stderr.decode("utf-8", "replace")
    how = f"it ended with exit code {code}" if code > 0 else f"it was ended by {_signal(-code)}"
    returned: dict[str, Any] = {"status": "error", "returncode": code, "stderr": stderr[-_RETURNED_BYTES:]}
    reason = said.get("reason") if said else None
    if isinstance(reason, str) and reason:
        returned["reason"] = reason[:_REASON_CHARS]
    while returned["stderr"] and len(orjson.dumps(returned)) > _RETURNED_BYTES:
        returned["stderr"] = returned["stderr"][len(returned["stderr"]) // 2 + 1 :]
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = returned.get("reason") or (lines[-1].strip() if lines else "")
    return returned, f"{how}: {last}" if last else how


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
