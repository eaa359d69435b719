"""The reference monitor: whatever a guest asks of the outside is decided here, before it is done.

A route has one `Governor` in a process: it holds the rules, replaces them when they change, and logs denials.
Each lane has a `Monitor` of it, and the lane's guests are spawned with `Monitor.perform`. Every capability
call passes there, and so does each redirect and each secret of a call (`permit`); emits pass `permit` before
they are committed. Without a policy file nothing is asked.

What must stay true: a run keeps the rules that it has begun with, whatever becomes of them meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from processor.capability.connections import Connections
from processor.capability.heap import offer_of
from processor.capability.permit import Show
from processor.capability.row import Capability
from processor.errors import About, ProcessorError
from processor.policy import NO_POLICY, Ask, Rules, Verdict
from processor.route import Route
from processor.sandbox.offer import HeapOffer, Signature

log = logging.getLogger("processor")

_TOLD_MAX = 1000  # denials that are remembered, so as to be logged once

Decided = Callable[[str, str], None]
Observe = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Mandate:
    """What a governor is told of its route: its name, and the rules for its guests."""

    route: str = ""
    rules: Rules = NO_POLICY

    @classmethod
    def of(cls, route: Route) -> Mandate:
        """That of a route as it is configured."""
        return cls(route.name, route.policy)


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
    ) -> None:
        """`observe` hears of each call: what came of it, and seconds. `decided` hears of each decision: the
        kind that was asked for; allow, deny, expired or shadow.
        """
        self.secrets: Mapping[str, str] = connections.vault.marks
        self.signatures: Sequence[Signature] = [row.signature for row in rows.values()]
        self.rows = rows
        self.connections = connections
        self.route = mandate.route
        self.rules = mandate.rules
        self.observe = observe
        self.decided = decided
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
        self.rules = self.rules.with_seen(seen)

    def replace(self, rules: Rules) -> None:
        """Let other rules hold, from the next run of each lane on."""
        self.rules = rules

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


class Monitor:
    """Decides for the guests of one lane."""

    def __init__(self, governor: Governor, number: int) -> None:
        self._governor = governor
        self._number = number
        self._rules = governor.rules
        self._connections = governor.connections.under(self.permit, self.verdict)

    def begin(self) -> None:
        """A run begins: until the next one the rules of this moment hold."""
        self._rules = self._governor.rules

    async def perform(self, name: str, args: Mapping[str, Any]) -> Any:
        """The answer to one call of a guest: a JSON value, or one with bytes beside it.

        Raises ProcessorError with E317, E323, E325, E326, E330 or E331, whose sentence the guest's code sees
        as an exception.
        """
        governor = self._governor
        started, result = time.monotonic(), "2xx"
        try:
            row = governor.rows.get(name)
            if row is None:
                raise ProcessorError("E317", f"there is no capability {name[:40]!r}")
            arguments = row.read(args)
            if (ask := row.ask(arguments)) is not None:
                self.permit(ask)
            answer = await row.perform(self._connections, arguments)
            result = row.result(answer)
            return answer
        except ProcessorError as err:
            result = err.code
            raise
        finally:
            governor.observe(result, time.monotonic() - started)

    def verdict(self, ask: Ask) -> Verdict:
        """What the rules of the run say, of which nobody hears."""
        return self._rules.decide(self._governor.route, ask, time.time_ns() // 1000)

    def permit(self, ask: Ask, show: Show = str) -> None:
        """Return if it may be done. Raises ProcessorError E330 or E331 with the lines that would allow it."""
        if not self._rules.policies:
            return
        governor = self._governor
        verdict = self.verdict(ask)
        if verdict.is_allowed:
            governor.decided(ask.kind, "allow")
            return
        decision = "shadow" if verdict.is_shadow else "expired" if verdict.code == "E331" else "deny"
        governor.decided(ask.kind, decision)
        verdict = replace(verdict, what=show(verdict.what), remedy=show(verdict.remedy))
        governor.tell(ask, verdict)
        if not verdict.is_shadow:
            ends_s = None if verdict.expires_us is None else verdict.expires_us / 1e6 - time.time()
            about = About(f"{ask.kind}.{ask.method}", show(ask.target), verdict.rule, ends_s)
            raise ProcessorError(verdict.code, verdict.what, remedy=verdict.remedy, about=about)
