"""What operators are told of a run comes from its record, and is told when the record is read."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from processor.delivery.observe import Observer
from processor.model import (
    NO_HEADERS,
    Block,
    DeadLetter,
    Decision,
    Delivery,
    Drop,
    Failed,
    Failure,
    GivenUp,
    LogLine,
    Outcome,
    Park,
    Ran,
    RunAgain,
    RunRecord,
    Wait,
)
from processor.telemetry import Telemetry

TAKEN = [Delivery("in.a", b"{}", NO_HEADERS, "IN", sequence, 0.0) for sequence in (7, 8)]
WHY = Failure("E304", "ValueError: no price", "line 3")


class Told:
    """An observer, and what it has told."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.observer = Observer("r", self.telemetry.route("r"))

    def __call__(self, name: str, *labels: str) -> float:
        return self.telemetry.numbers[f"processor_{name}"].get(("r", *labels), 0)

    def read(self, outcome: Outcome, failure: Failure | None = None, **more: object) -> None:
        record = RunRecord.of(TAKEN, outcome, failure)
        self.observer.read(replace(record, **more))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("processor", "processor.runnable"):  # whose levels another test may have set
        caplog.set_level(logging.DEBUG, name)


def test_a_run_is_counted_once_with_all_that_it_made(caplog: pytest.LogCaptureFixture) -> None:
    """Its messages, outputs and what it emitted, events, memory, and its own lines."""
    told = Told()
    lines = [LogLine("warning", "odd"), LogLine("info", "3 lines are lost", 3)]
    told.read(Ran(logs=lines, wall_s=0.25, memory_bytes=5), outputs=2, emits=1, events=4)
    assert [told(f"{what}_total") for what in ("processed_messages", "outputs", "events")] == [2, 3, 4]
    assert told("log_lines_dropped_total") == 3
    assert told("guest_memory_bytes") == 5
    assert [told(f"{what}_total") for what in ("retries", "failures", "dead_letters")] == [0, 0, 0]
    assert [(line.name, line.levelname, line.getMessage()) for line in caplog.records] == [
        ("processor.runnable", "WARNING", "odd"),
        ("processor.runnable", "INFO", "3 lines are lost"),
    ]


def test_what_was_settled_without_a_run_is_no_run() -> None:
    """A dead letter of a message that no guest has seen does not count as processed."""
    told = Told()
    told.read(Ran(), given_up=[GivenUp(TAKEN[0], WHY, 1, "k", "r.0.7")])
    assert told("processed_messages_total") == 0
    assert told("dead_letters_total", "E304") == 1


@pytest.mark.parametrize(
    ("decision", "is_retried"),
    [
        (RunAgain(), True),
        (Wait(1), True),
        (Park(9), True),
        (Block(WHY, 9), True),
        (DeadLetter(WHY), False),
        (Drop(WHY), False),
    ],
)
def test_a_message_that_failed_alone_is_a_failure(
    decision: Decision, is_retried: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted by its code, and as a retry where it is tried again; that it is given up comes later."""
    told = Told()
    told.read(Failed(WHY, wall_s=0.5), attempt=2, decision=decision)
    assert told("failures_total", "E304") == 1
    assert told("retries_total") == is_retried
    assert told("dead_letters_total", "E304") == told("dropped_messages_total", "E304") == 0
    [line] = caplog.records
    assert line.getMessage() == "attempt failed: E304 ValueError: no price"
    assert (line.__dict__["seq"], line.__dict__["attempt"]) == (7, 2)


def test_a_batch_that_is_split_has_not_failed() -> None:
    """Its run is counted; which of its messages failed shows when they run apart."""
    told = Told()
    told.read(Failed(WHY, wall_s=0.5))
    assert told("processed_messages_total") == 2
    assert told("failures_total", "E304") == told("guest_restarts_total", "E304") == 0


def test_a_guest_that_was_stopped_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """With the code of what it was stopped for."""
    told = Told()
    told.read(Failed(Failure("E312", "stopped after 2 s", lethal=True), wall_s=2.0))
    assert told("guest_restarts_total", "E312") == 1
    assert [line.getMessage() for line in caplog.records] == ["the guest was stopped: E312 stopped after 2 s"]


def test_what_was_given_up_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """Dead letters by their id; of what was dropped nothing is left to be named."""
    told = Told()
    long = Failure("E304", "x" * 5000)
    told.read(
        Ran(), given_up=[GivenUp(TAKEN[0], WHY, 3, "k" * 900, "r.0.7"), GivenUp(TAKEN[1], long, 1, "", "")]
    )
    assert (told("dead_letters_total", "E304"), told("dropped_messages_total", "E304")) == (1, 1)
    letter, dropped = caplog.records
    assert letter.getMessage() == "dead letter: E304 ValueError: no price"
    assert letter.__dict__ | {"seq": 7, "attempt": 3, "id": "r.0.7", "key": "k" * 200} == letter.__dict__
    assert letter.__dict__["traceback"] == "line 3"
    assert dropped.getMessage().startswith("dropped: E304 xxx")
    assert len(dropped.getMessage()) < 1100
    assert (dropped.__dict__["id"], dropped.__dict__["key"]) == (None, None)


def test_a_failure_that_is_the_answer_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted as a failure, and nothing is said to be dropped."""
    caplog.set_level(logging.INFO)
    told = Told()
    told.read(Ran(), given_up=[GivenUp(TAKEN[0], WHY, 1, "", "", is_answered=True)])
    assert (told("failures_total", "E304"), told("dropped_messages_total", "E304")) == (1, 0)
    [line] = caplog.records
    assert (line.levelname, line.getMessage()) == ("INFO", "failed: E304 ValueError: no price")
