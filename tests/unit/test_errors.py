"""The table of errors: what each code tells a user, and what the parts of the program make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from processor.cli import main
from processor.cli.terminal import EXIT_CONFIG
from processor.errors import ERRORS, ErrorCode, Fault
from processor.model import DeadLetter, Failure, Group, Limits, Program, RetryPolicy, decide
from processor.sandbox import wire

# A new remedy begins with one of these, or with another verb that is added here.
VERBS = {
    "Add", "Allow", "Ask", "Bind", "Bring", "Change", "Check", "Choose", "Compare", "Correct", "Create",
    "Define", "Delete", "Do", "Drop", "Flatten", "Follow", "Free", "Give", "Grant", "Import", "Install",
    "Keep", "Leave", "Log", "Look", "Lower", "Make", "Move", "Publish", "Put", "Raise", "Read", "Reload",
    "Remove", "Rename", "Replace", "Report", "Reset", "Restart", "Restore", "Return", "Run", "Send",
    "Set", "Shorten", "Split", "Start", "Stop", "Use", "Wait", "Write",
}  # fmt: skip
EACH = pytest.mark.parametrize("row", ERRORS.values(), ids=ERRORS)
REQUEST = wire.RunRequest([Group("", [b"1"])], [], [], stream=False)


@EACH
def test_each_code_says_what_to_do(row: ErrorCode) -> None:
    """A remedy is a sentence that begins with a verb; a meaning is a part of one, for others go around it."""
    assert row.remedy.split(maxsplit=1)[0].rstrip(",") in VERBS
    assert row.remedy.endswith(".")
    assert "\n" not in row.remedy
    assert not row.meaning.endswith(".")


def test_an_error_of_the_command_line_names_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line says where the documentation has the code, and which verb has it without a browser."""
    assert main(["run", str(tmp_path / "no.yaml")]) == EXIT_CONFIG
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "reference/errors/#e101 has more, and so has: processor explain E101"


def test_several_faults_name_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each code once, in order; as JSON each fault has a page of its own."""
    (tmp_path / "app.yaml").write_text("app: a\nroute: {}\ndrain_s: no\n")
    assert main(["check", str(tmp_path / "app.yaml")]) == EXIT_CONFIG
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "reference/errors/ has more, and so has: processor explain E103 E104 E105"
    assert main(["check", str(tmp_path / "app.yaml"), "--format", "json"]) == EXIT_CONFIG
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert all(fault["page"] == f"reference/errors/#{fault['code'].lower()}" for fault in faults)


def test_a_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Its meaning, what to do and its page, in capitals or not; what is no code is refused."""
    assert main(["explain", "e305", "--format", "human"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"E305 {ERRORS['E305'].meaning}",
        f"  {ERRORS['E305'].remedy}",
        "  reference/errors/#e305",
    ]
    assert main(["explain", "E999"]) == EXIT_CONFIG
    assert "'E999' is not an error code" in " ".join(capsys.readouterr().err.split())


@EACH
def test_what_cannot_change_is_not_tried_again(row: ErrorCode) -> None:
    """A final code is a dead letter after one try; the others are tried again."""
    fate = decide(Failure(row.code, "why"), 1, RetryPolicy(attempts=3), 0.5)
    assert isinstance(fate, DeadLetter) == row.is_final


@EACH
def test_a_guest_says_its_own_codes_only(row: ErrorCode) -> None:
    """What a guest says with a code that is not its own is a breach of the protocol, at each door."""
    failed = wire.write_failed(1, Failure(row.code, "why"), [])
    assert is_taken(lambda: wire.read_failed(arrived(failed), REQUEST, Limits())) == row.ends_run
    loaded = wire.write_loaded(1, [Fault("f", 1, 1, row.code, "why")])
    assert is_taken(lambda: wire.read_loaded(arrived(loaded), Program("", "f"))) == row.faults_source
    ran = wire.write_ran(1, replace(wire.Yield.of(1), rejected=[(0, 0, row.code, "why")]), {}, [])
    assert is_taken(lambda: wire.read_ran(arrived(ran), REQUEST, Limits())) == row.rejects_message


@EACH
def test_a_refused_call_has_a_code_of_refusals(row: ErrorCode) -> None:
    """A guest hears of a refusal by its code; any other code becomes E317, for it is the host's business."""
    header = arrived(wire.write_refusal(1, 1, row.code, "why")).header
    code = row.code if row.refuses_call else "E317"
    assert header == {"answer": 1, "refused": "why", "code": code}


def test_a_guest_decides_nothing_that_is_for_the_host() -> None:
    """A guest gives up a message by `Reject` alone, and an execution of a node by what the model of the node
    refuses; it says nothing of files, servers, jails and requests.
    """
    assert {row.code for row in ERRORS.values() if row.is_final and row.ends_run} == {"E305", "E709"}
    doors = {row.code for row in ERRORS.values() if row.ends_run or row.faults_source or row.rejects_message}
    assert {code for code in doors if code[1] not in "23"} == {"E114", "E709"}
    assert not doors & {"E302", "E303", "E314", "E315", "E316", "E321", "E366", "E367"}


def test_a_call_that_never_left_was_refused() -> None:
    """What is said of a request that was not sent is a refusal of its call."""
    assert {row.code for row in ERRORS.values() if row.is_unsent} < wire.REFUSAL_CODES


def arrived(data: bytes) -> wire.Frame:
    (frame,) = wire.Splitter(1 << 20).feed(data)
    return frame


def is_taken(read: Callable[[], object]) -> bool:
    try:
        read()
    except wire.Violation:
        return False
    return True
