"""What operators are told of runs: metrics and log lines, all of them from the record of the run.

A worker reads each record to this once. A run whose effects are put together again, because they do not fit
one commit, is told once, too: it has a record when it is committed or has failed.
"""

from __future__ import annotations

import logging

from processor.context.parked import REASON_CHARS
from processor.model import DeadLetter, Drop, Failure, GivenUp, LogLine, RunRecord
from processor.telemetry import RUNNABLE_LOG, RouteTelemetry

log = logging.getLogger("processor")
user_log = logging.getLogger(RUNNABLE_LOG)

_KEY_CHARS = 200  # of a key in a line of the log
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Observer:
    """Tells operators of the runs of one worker."""

    def __init__(self, route: str, telemetry: RouteTelemetry) -> None:
        self._route = route
        self._telemetry = telemetry

    def read(self, record: RunRecord) -> None:
        """Count what happened in a run, and log what its Runnable and we have to say of it."""
        telemetry, failure = self._telemetry, record.failure
        if record.wall_s:
            telemetry.processed(record.messages, record.wall_s)
        for line in record.logs:
            self._log_line(line)
        if record.memory_bytes:
            telemetry.guest_memory(record.memory_bytes)
        if failure is not None and failure.lethal:
            self.stopped(failure)
        if record.decision is not None:
            self._judged(record)
        telemetry.outputs(record.outputs + record.emits)
        telemetry.events(record.events)
        for given_up in record.given_up:
            self._given_up(given_up)
        for sequence, why in record.unsent:
            log.warning("not sent: %s", why, extra={"route": self._route, "seq": sequence})

    def stopped(self, why: Failure, level: int = logging.INFO) -> None:
        """A guest was stopped."""
        self._telemetry.guest_restarted(why.code)
        where = {"route": self._route, "code": why.code}
        log.log(level, "the guest was stopped: %s %s", why.code, why.text, extra=where)

    def _log_line(self, line: LogLine) -> None:
        if line.dropped:
            self._telemetry.log_lines_dropped(line.dropped)
        user_log.log(_LEVELS.get(line.level, logging.INFO), "%s", line.text, extra={"route": self._route})

    def _judged(self, record: RunRecord) -> None:
        failure = record.failure
        assert failure is not None
        self._telemetry.failed(failure.code)
        if not isinstance(record.decision, DeadLetter | Drop):
            self._telemetry.retried()
        where = {"route": self._route, "seq": record.first, "attempt": record.attempt, "code": failure.code}
        log.debug("attempt failed: %s %s", failure.code, failure.text, extra=where)

    def _given_up(self, given_up: GivenUp) -> None:
        failure, level, what = given_up.failure, logging.WARNING, "dropped"
        if given_up.id:
            what = "dead letter"
            self._telemetry.dead_lettered(failure.code)
        elif given_up.is_answered:
            level, what = logging.INFO, "failed"
            if not failure.lethal:  # that was counted when its guest ended
                self._telemetry.failed(failure.code)
        else:
            self._telemetry.dropped(failure.code)
        log.log(
            level,
            "%s: %s %s",
            what,
            failure.code,
            failure.text[:REASON_CHARS],
            extra={
                "route": self._route,
                "seq": given_up.delivery.sequence,
                "key": given_up.key[:_KEY_CHARS] or None,
                "attempt": given_up.attempt,
                "code": failure.code,
                "id": given_up.id or None,
                "traceback": failure.traceback,
            },
        )
