"""What the audit gets of one worker's runs: with their effects, after them, or beside all commits.

What must stay true:
- The entries of a run are committed with its effects. Where it has none they are in a later commit of the
  worker, as dropped; where the worker can commit no more, they are left for whoever owns the partition next.
- An entry is handed on once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from processor.audit import AuditEntry, Fate
from processor.capability.monitor import Monitor
from processor.delivery.effects import Batch, Effects, run_details
from processor.delivery.settle import Settler
from processor.delivery.store import Store
from processor.errors import BrokerError
from processor.jetstream import ApiError
from processor.model import Failure, Outcome, Ran
from processor.route import Route

log = logging.getLogger("processor")

_LOOK_S = 60.0  # between two looks at late messages, which are kept for days
_LEAVE_S = 2.0

Audit = list[tuple[int, AuditEntry]]  # entries, each with the partition whose chain it is for


class Auditor:
    """Hands the entries of one worker's runs on."""

    def __init__(self, route: Route, store: Store, settler: Settler, monitor: Monitor) -> None:
        self._route = route
        self._store = store
        self._settler = settler
        self._monitor = monitor

    def of(self, batch: Batch, outcome: Outcome, effects: Effects | Failure) -> Audit:
        """The entries of a run, to be committed with its effects if it has them. Each run has to be asked for
        once its effects are known.
        """
        level = self._route.audit.level
        if level == "off" or not batch.groups:
            return []
        if isinstance(outcome, Ran) and outcome.heap:
            self._monitor.used(outcome.heap)
        if level == "runs":
            code = effects.code if isinstance(effects, Failure) else ""
            self._monitor.note("run", "error" if code else "allow", code, run_details(outcome, effects))
        return _with_fate("committed", [(batch.home, entry) for entry in self._monitor.end()])

    def drop(self, audit: Audit, why: Failure) -> None:
        """Let a later commit have the entries of a run that leaves nothing else behind."""
        for _, entry in audit:
            if entry.event == "run":
                entry.decision, entry.code = "error", why.code
        self._settler.keep(_with_fate("dropped", audit))

    async def look(self) -> None:
        """Every so often, let the audit have what others left beside the chains of our partitions."""
        told = ""
        while self._route.audit.is_on:
            await asyncio.sleep(_LOOK_S)
            try:
                look = await self._store.look()
            except BrokerError as err:
                if str(err) != told:
                    log.error("%s", err, extra={"route": self._route.name, "code": err.code})
                told = str(err)
            else:
                self._settler.keep(look.entries, look.marks)

    async def leave(self, *, is_fenced: bool) -> None:
        """Store the entries that we can commit no more for whoever owns their partitions next."""
        left = [*self._settler.left(), *((self._monitor.home, entry) for entry in self._monitor.end())]
        if not left:
            return
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._store.leave(_with_fate("fenced" if is_fenced else "unknown", left))
        except (TimeoutError, ApiError, BrokerError) as err:
            why = str(err) or f"the server did not answer within {_LEAVE_S:g} s"
            where = {"route": self._route.name}
            log.error("%d entries of the audit could not be stored: %s", len(left), why, extra=where)


def _with_fate(fate: Fate, audit: Sequence[tuple[int, AuditEntry]]) -> Audit:
    """The same entries, with what became of their run."""
    for _, entry in audit:
        entry.fate = fate
    return list(audit)
