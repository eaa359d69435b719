"""The result of a shell step: which part of its output counts, and what is said of one that failed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from processor.delivery.codec import read_result
from processor.model import Failure
from processor.recipes.shell import result_of
from processor.sandbox.shell import ShellOutcome


def ended(stdout: bytes = b"", stderr: bytes = b"", code: int = 0) -> ShellOutcome:
    return ShellOutcome(code, stdout, stderr, 0.01, None)


@pytest.mark.parametrize(
    ("stdout", "outputs"),
    [
        (b'{"status":"ok","lines":3}\n', {"status": "ok", "lines": 3}),
        (b'{\n  "status": "success",\n  "n": [1, 2.5]\n}\n', {"status": "success", "n": [1, 2.5]}),
        (b'counting...\n{"status":"error"}\n{"status":"ok"}\nbye\n', {"status": "ok"}),
        (b'{"status":"ok"}', {"status": "ok"}),
        (b'  {"status":"ok"}\r\n', {"status": "ok"}),
        (b'\xff\xfe\n{"status":"ok","a":"\xc3\xa9"}\n', {"status": "ok", "a": "é"}),
    ],
)
def test_the_last_object_of_stdout_is_the_result(stdout: bytes, outputs: dict[str, Any]) -> None:
    """All of stdout where that is an object, else its last line that is one."""
    result = result_of(ended(stdout))
    assert result == {"outputs": outputs, "sets": []}
    assert read_result(orjson.dumps(result)) == result


@pytest.mark.parametrize(
    "stdout",
    [b"", b"\n\n", b"done", b"3", b"[1]", b'"ok"', b'{"status":"ok"', b'{"status":"ok","x":NaN}', b"{\xff",
     b'{"status":"ok","x":' + b"[" * 200 + b"]" * 200 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object_is_an_error(stdout: bytes) -> None:
    """Nothing, a number, a list, half an object, a NaN, or nesting without end: non-json stdout."""
    result = result_of(ended(stdout), "count")
    assert result["returned"] == {"status": "error", "reason": "non-json stdout"}
    assert (result["error"]["code"], result["error"]["text"]) == ("E716", "step count: non-json stdout")
    assert result["final"] is False


@pytest.mark.parametrize(
    ("stdout", "why"),
    [
        (b'{"status":"error","reason":"missing file"}', "missing file"),
        (b'{"status":"late"}', "it returned the status 'late'"),
        (b'{"lines":3}', "it returned the status None"),
        (b'{"status":["ok"]}', "it returned the status ['ok']"),
    ],
)
def test_a_status_that_is_not_good_is_an_error(stdout: bytes, why: str) -> None:
    """The step's own reason is the error's text, and what it returned is kept."""
    result = result_of(ended(stdout))
    assert (result["error"]["code"], result["error"]["text"]) == ("E716", why)
    assert result["returned"] == orjson.loads(stdout)


def test_an_exit_code_is_an_error_whatever_stdout_says() -> None:
    """The exit code and the end of stderr are kept; the sentence has the last line, or the step's reason."""
    result = result_of(ended(b'{"status":"ok"}', b"one\nno such file\n\n", 7), "count")
    assert result["returned"] == {"status": "error", "returncode": 7, "stderr": "one\nno such file\n\n"}
    assert result["error"]["text"] == "step count: it ended with exit code 7: no such file"
    told = result_of(ended(b'{"status":"error","reason":"missing file"}', b"", 1))
    assert told["returned"] == {"status": "error", "returncode": 1, "stderr": "", "reason": "missing file"}
    assert told["error"]["text"] == "it ended with exit code 1: missing file"
    killed = result_of(ended(code=-9))
    assert killed["returned"] == {"status": "error", "returncode": -9, "stderr": ""}
    assert killed["error"]["text"] == "it was ended by SIGKILL"
    assert result_of(ended(code=-40))["error"]["text"] == "it was ended by signal 40"


@pytest.mark.parametrize("noise", [b"\x1b\x00", b"\xff", "é".encode(), b"x"])
def test_what_is_kept_of_a_failure_fits_into_an_execution(noise: bytes) -> None:
    """However much it said, and of whatever: what is kept stays below the bound, and is its end."""
    result = result_of(ended(stderr=noise * (1 << 20) + b"the end", code=1))
    assert len(orjson.dumps(result["returned"])) <= 2048
    assert result["returned"]["stderr"].endswith("the end")
    assert len(result["error"]["text"]) < 600
    assert "returned" in read_result(orjson.dumps({"error": result["error"], "returned": result["returned"]}))


def test_a_step_without_an_exit_code_failed_with_its_own_code() -> None:
    """Time, flood, no jail and no program keep their codes; the last two are not tried again."""
    late = result_of(ShellOutcome(None, b"", b"", 1.0, Failure("E312", "it ran too long")), "count")
    assert (late["error"]["code"], late["error"]["text"]) == ("E312", "step count: it ran too long")
    assert late["returned"] == {"status": "error", "reason": "it ran too long"}
    assert late["final"] is False
    assert result_of(ShellOutcome(None, b"", b"", 1.0, Failure("E721", "no program")))["final"] is True
