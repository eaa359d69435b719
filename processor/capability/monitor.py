"""The reference monitor: whatever a guest asks of the outside is decided here, before it is done.

A route has one `Governor` in a process: it holds the rules, replaces them when they change, and logs denials.
Each lane has a `Monitor` of it, and the lane's guests are spawned with `Monitor.perform`. Every capability
call passes there, and so does each redirect and each secret of a call (`permit`); emits pass `permit` before
they are committed. Without a policy file nothing is asked.

Where the route is audited, a monitor notes what a run asks: an entry for each call, each redirect and each
denial. The worker takes them when the run has ended, and they are committed with what it led to.

What must stay true:
- A run keeps the rules that it has begun with, whatever becomes of them meanwhile.
- A call that was begun has an entry, however it ends; one that `audit.intent` covers is written down before.
- An entry has no payload, header, query string or value of a secret: hashes, sizes and names.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from processor.audit import AuditEntry, Decision, Event
from processor.capability.budgets import BudgetListener, Budgets, Tab
from processor.capability.connections import Connections
from processor.capability.heap import offer_of
from processor.capability.permit import Show
from processor.capability.row import Capability
from processor.capability.streams import OpenStreams, StreamEntry
from processor.context.late import Intent
from processor.context.ledger import BudgetLedger
from processor.errors import ERRORS, About, BrokerError, ProcessorError
from processor.jetstream import ApiError
from processor.model import HeapOp
from processor.policy import ALLOWED, NO_POLICY, Ask, Rules, Verdict
from processor.route import NO_AUDIT, Route, RouteAudit
from processor.sandbox.offer import HeapOffer, Signature

log = logging.getLogger("processor")

REMARKS = 100  # that a Runnable adds to the audit in one run
_TOLD_MAX = 1000  # denials that are remembered, so as to be logged once

Decided = Callable[[str, str], None]
Observe = Callable[[str, float], None]
Announce = Callable[[int, Intent], Awaitable[None]]

# What changes something outside, by kind: a second call of these is not the same as one.
_UNSAFE: Mapping[str, Sequence[str]] = {
    "http": ("post", "put", "patch", "delete"),
    "file": ("write", "delete"),
    "tool": ("execute",),
    "infer": ("chat",),
}
# The entry of the call that this task is making.
_CALL: ContextVar[AuditEntry | None] = ContextVar("call", default=None)
_NO_DETAILS: Mapping[str, Any] = MappingProxyType({})
_CONFIGURED = ("E325", "E326")  # denials of the configuration, and not of a policy


@dataclass(frozen=True, slots=True)
class Mandate:
    """What a governor is told of its route: its name, the rules for its guests, what of them is noted, and
    who keeps its budgets.
    """

    route: str = ""
    rules: Rules = NO_POLICY
    program: str = ""  # its id
    audit: RouteAudit = NO_AUDIT
    ledger: BudgetLedger | None = None  # without one, of its own and in memory
    holder: str = ""  # of leases: a name that nobody else has
    hears: BudgetListener | None = None  # what becomes of budgets
    is_waited_for: bool = False  # whether a route waits for a budget whose line says so

    @classmethod
    def of(cls, route: Route) -> Mandate:
        """That of a route as it is configured."""
        return cls(route.name, route.policy, route.program.id, route.audit)


NO_MANDATE = Mandate()


class Governor:
    """Rules over the guests of one route in one process. `secrets` has the marks that these know secrets by,
    and `signatures` what they are told that they may call.
    """

    def __init__(
        self,
        rows: Mapping[str, Capability],
        connections: Connections,
        mandate: Mandate,
        observe: Observe,
        decided: Decided,
        tool_took: Callable[[float], None],
    ) -> None:
        """`observe` hears of each call: what came of it, and seconds. `decided` hears of each decision: the
        kind that was asked for; allow, deny, expired or shadow. `tool_took` hears of each call of a tool.
        """
        self.secrets: Mapping[str, str] = connections.vault.marks
        self.signatures: Sequence[Signature] = [row.signature for row in rows.values()]
        self.rows = rows
        self.connections = connections
        self.route = mandate.route
        self.actor = f"program:{mandate.program}"
        self.audit = mandate.audit
        self._marks = [(mark.encode(), f"secret.{name}".encode()) for name, mark in self.secrets.items()]
        self.replace(mandate.rules)
        self.observe = observe
        self.decided = decided
        self.tool_took = tool_took
        self.budgets = Budgets(
            mandate.route,
            mandate.rules,
            mandate.ledger,
            mandate.holder,
            mandate.hears,
            is_waited_for=mandate.is_waited_for,
        )
        self._told: set[Ask] = set()

    @property
    def heap(self) -> HeapOffer:
        """What guests are told of whose objects they may use."""
        return offer_of(self.route, self.rules, self.connections.reach.heap)

    def lane(self, number: int = 0) -> Monitor:
        """The monitor of one lane, whose guests do one run at a time."""
        return Monitor(self, number)

    def see(self, seen: Mapping[str, int]) -> None:
        """Count the time of lines that expire from when they were first seen, by digest, in microseconds."""
        self.replace(self.rules.with_seen(seen))

    def replace(self, rules: Rules) -> None:
        """Let other rules hold, from the next run of each lane on."""
        self.rules, self.policy = rules, rules.id

    def unmarked(self, text: bytes) -> bytes:
        """Bytes of a guest with names of secrets in place of their marks, which no other process knows."""
        for mark, name in self._marks:
            text = text.replace(mark, name)
        return text

    def tell(self, ask: Ask, verdict: Verdict) -> None:
        """Log a denial, once for each ask: a Runnable may ask the same for every message."""
        if ask in self._told or len(self._told) >= _TOLD_MAX:
            return
        self._told.add(ask)
        log.warning(
            "%s%s %s. %s",
            "would be denied, were the policy not in shadow mode: " if verdict.is_shadow else "",
            verdict.code,
            verdict.what,
            verdict.remedy,
            extra={"route": self.route, "code": verdict.code},
        )

    async def close(self) -> None:
        """Close the connections. Idempotent; a later call makes new ones."""
        await self.connections.close()


class _Decided(NamedTuple):
    """What was decided about an ask, and the error that says so where it is denied."""

    verdict: Verdict
    decision: Decision = "allow"
    refusal: ProcessorError | None = None


_UNASKED = _Decided(ALLOWED)


class RunScope(NamedTuple):
    """What a monitor is told of a run: the partition whose chain gets its entries, the first and the last
    sequence of its messages, and how a call is written down before it is made.
    """

    home: int
    batch: tuple[int, int]
    announce: Announce


class Monitor:
    """Decides for the guests of one lane, and notes what they ask, run by run."""

    def __init__(self, governor: Governor, number: int) -> None:
        self._governor = governor
        self._number = number
        self._rules, self._policy = governor.rules, governor.policy
        self._tab = Tab(governor.budgets)
        self._streams = OpenStreams()
        self._connections = governor.connections.under(self.permit, self.verdict).on(self._tab, self._streams)
        self._connections.remark = self.remark
        self._connections.describe = self.describe
        self._connections.defer = self.defer
        self._remarks = 0
        self._scope: RunScope | None = None
        self._run = ""
        self._entries: list[AuditEntry] = []
        self._deferred: dict[int, AuditEntry] = {}  # of answers that are still coming, by identity

    def begin(self, scope: RunScope | None = None) -> None:
        """A run begins: until the next one the rules of this moment hold. Without `scope` it is no one's, and
        leaves no entries.
        """
        self._rules, self._policy = self._governor.rules, self._governor.policy
        self._scope, self._run, self._entries, self._remarks = scope, "", [], 0
        self._tab.begin()

    @property
    def home(self) -> int:
        """The partition whose chain gets the entries of the run."""
        return self._scope.home if self._scope is not None else 0

    def end(self) -> list[AuditEntry]:
        """The entries of the run, in the order in which what they are about has ended; they have no fate."""
        for usage in self._governor.budgets.noted() if self._is_noted else ():
            self.note("budget", "allow", "", usage)
        entries, self._entries = self._entries, []
        return entries

    def note(self, event: Event, decision: Decision, code: str, details: Mapping[str, Any]) -> None:
        """Note something of the run that nobody was asked for."""
        self._entries.append(self._made(event, decision, code, details))

    def used(self, ops: Sequence[HeapOp]) -> None:
        """Note what a run did to objects. That it might is then no entry of its own."""
        self._entries = [each for each in self._entries if (each.event, each.decision) != ("heap", "allow")]
        rules: dict[tuple[str, str], str] = {}
        for op in ops:
            if (op.method, op.type) not in rules:
                verdict = self.verdict(Ask("heap", op.method, op.type))
                rules[op.method, op.type] = verdict.rule or ("default" if self._rules.policies else "config")
            entry = self._made("heap", "allow", details={"name": op.handle})
            entry.operation, entry.target, entry.rule = op.method, op.type, rules[op.method, op.type]
            self._entries.append(entry)

    def remark(self, entry: AuditEntry) -> bool:
        """Note what a capability says itself of what it was asked; False where nothing is noted.

        Raises ProcessorError E338 for more of a Runnable's own than REMARKS in a run.
        """
        if not self._is_noted:
            return False
        if entry.event == "user":
            if self._remarks >= REMARKS:
                what = f"a run adds at most {REMARKS} entries of its own"
                raise ProcessorError("E338", what, place="audit")
            self._remarks += 1
        made = self._made(entry.event, entry.decision, entry.code, entry.details)
        made.operation, made.target, made.rule = entry.operation, entry.target, entry.rule
        self._entries.append(made)
        return True

    def describe(self, details: Mapping[str, Any]) -> None:
        """Add to the entry of the call that this task is making what only its performer knows."""
        if (entry := _CALL.get()) is not None:
            entry.details = {**entry.details, **details}

    def defer(self, status: int) -> StreamEntry:
        """Leave the entry of the call that this task is making open until its answer, a stream, has ended."""
        entry = _CALL.get()
        if entry is None:
            return StreamEntry(status)
        self._deferred[id(entry)] = entry
        return StreamEntry(status, partial(self._ended, entry, time.perf_counter_ns()))

    def _ended(self, entry: AuditEntry, opened_ns: int, said: StreamEntry) -> None:
        del self._deferred[id(entry)]
        entry.status, entry.answer_digest = said.status, said.digest
        entry.sizes = (entry.sizes[0] if entry.sizes else 0, said.size)
        if said.code:
            entry.decision, entry.code = "deny" if said.code == "E332" else "error", said.code
        entry.details = {**entry.details, **said.details}
        entry.took_us += (time.perf_counter_ns() - opened_ns) // 1000
        self._entries.append(entry)

    async def finish(self) -> None:
        """The run is over: close the streams that it left open."""
        await self._streams.close_all()

    async def perform(self, name: str, args: Mapping[str, Any]) -> Any:
        """The answer to one call of a guest: a JSON value, or one with bytes beside it.

        Raises ProcessorError with a code that a call may be refused with, whose sentence the guest's code
        sees as an exception.
        """
        governor = self._governor
        started, result = time.monotonic(), "2xx"
        row = governor.rows.get(name)
        try:
            if row is None:
                raise ProcessorError("E317", f"there is no capability {name[:40]!r}")
            arguments = row.read(args)
            arguments.update(row.added(self._connections, arguments))
            ask = row.ask(arguments)
            if ask is not None and self._is_noted:
                answer = await self._noted(row, ask, arguments)
            else:
                if ask is not None:
                    if (refusal := self._decide_call(row, ask, arguments).refusal) is not None:
                        raise refusal
                    await self._tab.reserve(row.cost(arguments), ask)
                answer = await row.perform(self._connections, arguments)
                self._tab.charge(row.answer_cost(answer))
            result = row.result(answer)
            return answer
        except ProcessorError as err:
            result = err.code
            raise
        finally:
            took_s = time.monotonic() - started
            if row is None or row.is_counted:
                governor.observe(result, took_s)
            if row is not None and row.event == "tool":
                governor.tool_took(took_s)

    def verdict(self, ask: Ask) -> Verdict:
        """What the rules of the run say, of which nobody hears."""
        return self._rules.decide(self._governor.route, ask, time.time_ns() // 1000)

    def permit(self, ask: Ask, show: Show = str) -> None:
        """Return if it may be done. Raises ProcessorError E330 or E331 with the lines that would allow it."""
        call = _CALL.get()
        decided = self._decide(ask, show)
        # On the way of a call its secrets are named in its entry, and each redirect has its own.
        is_named = call is not None and ask.kind == "secret"
        is_new = decided.decision != "allow" or (call is not None and not is_named)
        if is_new and self._is_noted:
            self._entries.append(self._entry(ask, decided, show))
        if decided.refusal is not None:
            raise decided.refusal
        if call is not None and is_named and ask.target not in call.secrets:
            call.secrets = (*call.secrets, ask.target)

    async def _noted(self, row: Capability, ask: Ask, arguments: Mapping[str, Any]) -> Any:
        """The answer to a call, of which there is an entry whatever comes of it."""
        show = row.show(arguments)
        decided = self._decide_call(row, ask, arguments)
        entry = self._entry(ask, decided, show, row.event)
        started_ns = time.perf_counter_ns()
        try:
            if decided.refusal is not None:
                raise decided.refusal
            request = self._governor.unmarked(row.sent(arguments))
            entry.request_digest = _digest(request)
            await self._tab.reserve(row.cost(arguments), ask)
            await self._announced(row, ask, entry)
            _CALL.set(entry)
            answer = await row.perform(self._connections, arguments)
            self._tab.charge(row.answer_cost(answer))
            entry.sizes = (len(request), 0)
            if id(entry) in self._deferred:
                return answer
            status, body = row.received(answer)
            entry.status, entry.answer_digest = status, _digest(b"%d\n" % status, body)
            entry.sizes = (len(request), len(body))
            if (code := row.result(answer)) in ERRORS:
                entry.decision, entry.code = "error", code
            return answer
        except ProcessorError as err:
            if decided.refusal is None:
                is_denied = err.code in _CONFIGURED or err.code == "E332"
                entry.decision, entry.code = "deny" if is_denied else "error", err.code
                entry.rule = "config" if err.code in _CONFIGURED else entry.rule
                if err.code == "E332" and err.about is not None:
                    entry.rule = err.about.rule
            raise
        except BaseException:  # nobody waits for the answer any more
            entry.decision, entry.code = "error", "E314"
            raise
        finally:
            _CALL.set(None)
            entry.took_us = (time.perf_counter_ns() - started_ns) // 1000
            if id(entry) not in self._deferred:
                self._entries.append(entry)

    async def _announced(self, row: Capability, ask: Ask, entry: AuditEntry) -> None:
        """Write the call down, where it is one of those that are before they are made."""
        covered = self._governor.audit.intent
        is_covered = covered == "all" or (covered == "unsafe" and ask.method in _UNSAFE.get(ask.kind, ()))
        if self._scope is None or not row.is_outside or not is_covered:
            return
        intent = Intent(
            entry.event, entry.operation, entry.target, entry.request_digest, entry.run, entry.moment_us
        )
        entry.intent = intent.id
        try:
            await self._scope.announce(self._scope.home, intent)
        except (ApiError, BrokerError) as err:
            why = f"it cannot be written down before it is made, as audit.intent asks: {err}"
            raise ProcessorError("E317", why, place=row.name) from err

    @property
    def _is_noted(self) -> bool:
        return self._scope is not None and self._governor.audit.is_on

    def _entry(self, ask: Ask, decided: _Decided, show: Show, event: Event | None = None) -> AuditEntry:
        """The entry about something that was asked for and decided, as far as it is known then."""
        entry = self._made(event or cast(Event, ask.kind), decided.decision, decided.verdict.code)
        target = show(ask.target).encode("utf-8", "surrogateescape")
        entry.operation = ask.method
        entry.target = self._governor.unmarked(target).decode("utf-8", "replace")
        entry.rule = decided.verdict.rule or ("default" if self._rules.policies else "config")
        return entry

    def _made(
        self, event: Event, decision: Decision, code: str = "", details: Mapping[str, Any] = _NO_DETAILS
    ) -> AuditEntry:
        """An entry of this run."""
        scope, governor = self._scope, self._governor
        assert scope is not None
        self._run = self._run or secrets.token_hex(8)
        return AuditEntry(
            event,
            decision,
            moment_us=time.time_ns() // 1000,
            route=governor.route,
            run=self._run,
            batch=scope.batch,
            actor=governor.actor,
            policy=self._policy,
            code=code,
            details=details,
        )

    def _decide_call(self, row: Capability, ask: Ask, arguments: Mapping[str, Any]) -> _Decided:
        """What the rules of this run say of a call, and its row where they allow it."""
        return self._decide(ask, row.show(arguments), partial(row.narrow, arguments))

    def _decide(
        self, ask: Ask, show: Show, narrow: Callable[[Verdict], Verdict] = lambda verdict: verdict
    ) -> _Decided:
        """What the rules of this run say; it is counted, and a denial logged."""
        governor = self._governor
        verdict = self.verdict(ask) if self._rules.policies else ALLOWED
        if verdict.is_allowed or verdict.is_shadow:
            narrowed = narrow(verdict)
            verdict = verdict if narrowed.is_allowed else narrowed
        if verdict.is_allowed:
            if not self._rules.policies:
                return _UNASKED
            governor.decided(ask.kind, "allow")
            return _Decided(verdict)
        decision = "shadow" if verdict.is_shadow else "expired" if verdict.code == "E331" else "deny"
        governor.decided(ask.kind, decision)
        verdict = replace(verdict, what=show(verdict.what), remedy=show(verdict.remedy))
        governor.tell(ask, verdict)
        if verdict.is_shadow:
            return _Decided(verdict, "shadow")
        ends_s = None if verdict.expires_us is None else verdict.expires_us / 1e6 - time.time()
        about = About(f"{ask.kind}.{ask.method}", show(ask.target), verdict.rule, ends_s)
        refusal = ProcessorError(verdict.code, verdict.what, remedy=verdict.remedy, about=about)
        return _Decided(verdict, "deny", refusal)


def _digest(*parts: bytes) -> str:
    """The first 16 bytes of the SHA-256 of these bytes, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
