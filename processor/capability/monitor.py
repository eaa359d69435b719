"""The monitor of a route: what its guests may do is decided here, before it is done.

Every capability call passes `permit`, and so does each redirect and each secret of a call; emits pass it
before they are committed. The rules are those of the route (`processor/policy`); without a policy file
nothing is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from processor.errors import About, ProcessorError
from processor.policy import Ask, Rules, Verdict

log = logging.getLogger("processor")

_TOLD_MAX = 1000  # denials that are remembered, so as to be logged once

Decided = Callable[[str, str], None]
Show = Callable[[str], str]


class Permit(Protocol):
    """Returns if something may be done, and raises ProcessorError where it may not."""

    def __call__(self, ask: Ask, show: Show = str) -> None:
        """`show` takes out of a sentence what nobody may read."""


def allow_all(ask: Ask, show: Show = str) -> None:
    """The permit of those who have no policy."""


class Monitor:
    """Decides for the guests of one route."""

    def __init__(self, route: str, rules: Rules, decided: Decided | None = None) -> None:
        """`decided` hears of each decision: the kind that was asked for; allow, deny, expired or shadow."""
        self._route = route
        self._rules = rules
        self._decided = decided or (lambda kind, decision: None)
        self._told: set[Ask] = set()

    def see(self, seen: Mapping[str, int]) -> None:
        """Count the time of lines that expire from when they were first seen, by digest, in microseconds."""
        self._rules = self._rules.with_seen(seen)

    def permit(self, ask: Ask, show: Show = str) -> None:
        """Return if it may be done. Raises ProcessorError E330 or E331 with the lines that would allow it.

        `show` takes out of a sentence what nobody may read: a server can put a secret into a redirect.
        """
        if not self._rules.policies:
            return
        verdict = self._rules.decide(self._route, ask, time.time_ns() // 1000)
        if verdict.is_allowed:
            self._decided(ask.kind, "allow")
            return
        decision = "shadow" if verdict.is_shadow else "expired" if verdict.code == "E331" else "deny"
        self._decided(ask.kind, decision)
        verdict = replace(verdict, what=show(verdict.what), remedy=show(verdict.remedy))
        self._tell(ask, verdict)
        if not verdict.is_shadow:
            ends_s = None if verdict.expires_us is None else verdict.expires_us / 1e6 - time.time()
            about = About(f"{ask.kind}.{ask.method}", show(ask.target), verdict.rule, ends_s)
            raise ProcessorError(verdict.code, verdict.what, remedy=verdict.remedy, about=about)

    def _tell(self, ask: Ask, verdict: Verdict) -> None:
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
            extra={"route": self._route, "code": verdict.code},
        )
