"""What people and processors do to an app, in its audit: the chain `=ctl`.

An act of a person has two entries: one that it was asked for, stored before anything is done, and one of what
became of it. What a processor does (it starts a route, takes another policy) has one, soon after.

What must stay true: where the audit is on, nothing that a person asks is done without its first entry. An
entry without its second means that nobody knows what was done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from processor.audit import CONTROL, AuditEntry
from processor.config import Config
from processor.context.chains import Chain
from processor.context.history import me
from processor.errors import ProcessorError
from processor.jetstream import Broker

log = logging.getLogger("processor")

# How long an act that was cut off may take to say so.
_LAST_WORD_S = 5.0
# A processor that starts a thousand routes says that in a few records.
_GATHER_S = 0.2
_IDS_MAX = 100
_NOTES_MAX = 100_000
_NOTES_AT_ONCE = 200


Result = Literal["done", "failed", "missed"]
_RESULTS: tuple[Result, ...] = ("done", "failed", "missed")


@dataclass(slots=True)
class Act:
    """What becomes of something that a person asked for."""

    result: Result = "done"  # missed: there was nothing to do it to
    data: dict[str, Any] = field(default_factory=dict)  # what is worth knowing of it, a few short values

    def sum_up(self, ended: Mapping[str, str]) -> None:
        """Say what became of several things, by their ids: each was done, missed, or it failed."""
        ends = [*ended.values()]
        self.data |= {result: ends.count(result) for result in _RESULTS if result in ends}
        self.data["ids"] = [*ended][:_IDS_MAX]
        self.result = next((result for result in _RESULTS if result in ends), "missed")


class Journal:
    """The chain of what is done to one app; with the audit off, nothing."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self.config = config  # replaced at a reload
        self._chain = Chain(broker, config.app, CONTROL, config.audit.copy_ttl)
        self._notes: list[AuditEntry] = []
        self._noted = asyncio.Event()
        self._is_stored = asyncio.Event()
        self._is_stored.set()

    @property
    def is_on(self) -> bool:
        """Whether anything is noted."""
        return self.config.audit_level != "off"

    @asynccontextmanager
    async def act(
        self, verb: str, route: str, *, by: str = "", reason: str = "", data: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Act]:
        """Note that somebody asked for `verb`, and at the end of the block what became of it.

        `by` is who: this user on this host, where nobody is named. Raises what the broker raises where
        that cannot be stored, before anything is done.
        """
        act = Act(data=dict(data or {}))
        if not self.is_on:
            yield act
            return
        id = secrets.token_hex(8)

        def entry(result: str, code: str = "") -> AuditEntry:
            details = {"verb": verb, "reason": reason, "result": result, "data": act.data}
            return AuditEntry(
                "control",
                "error" if code else "allow",
                moment_us=time.time_ns() // 1000,
                route=route,
                actor=f"by:{by or me()}",
                operation="call",
                target=f"{verb}:{route}",
                intent=id,
                code=code,
                details=details,
            )

        await self._chain.append([entry("asked")])
        ended = entry("failed", "E605")  # cut off, or by an error without a code
        try:
            yield act
            ended = entry(act.result)
        except ProcessorError as err:
            ended = entry("failed", err.code)
            raise
        finally:
            try:
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._chain.append([ended])
            except TimeoutError:
                log.warning(
                    "what became of %s of route %s is not in the audit: the server does not answer",
                    verb,
                    route,
                )

    def note(self, entry: AuditEntry) -> None:
        """Have an entry of what this processor did stored soon, by `run`."""
        if not self.is_on:
            return
        if len(self._notes) == _NOTES_MAX:
            what = f"{entry.event} {entry.operation} of {entry.route or entry.target}"
            log.warning("%s is not in the audit: %d entries wait for the server", what, _NOTES_MAX)
            return
        entry.moment_us = time.time_ns() // 1000
        self._notes.append(entry)
        self._is_stored.clear()
        self._noted.set()

    async def run(self) -> None:
        """Store what is noted, until cancelled. Raises what the broker raises; then nothing is lost."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(_GATHER_S)
            while self._notes:
                some = self._notes[:_NOTES_AT_ONCE]
                await self._chain.append(some)
                del self._notes[: len(some)]
            self._noted.clear()
            self._is_stored.set()

    async def settle(self) -> None:
        """Return when all that was noted is stored, or a server that does not answer was waited for."""
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._is_stored.wait()
        except TimeoutError:
            log.warning("%d entries are not in the audit: the server does not answer", len(self._notes))
