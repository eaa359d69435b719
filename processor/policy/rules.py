"""What the lines of policies say about one ask.

`Rules` are the files of one route: data, which decide without a clock, a socket or a file.

What must stay true:
- A matching deny wins, whatever allows; the order of lines never matters. Of several files each must allow.
- What a denial suggests, pasted into the file, allows exactly that ask and nothing else.
- A line expires from when the app first saw it, not from when a process started.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from processor.policy.budgets import Budget
from processor.policy.kinds import KINDS, Ask, quoted, readings

_KNOWN_MAX = 4096  # asks whose lines are remembered
_KNOWN_CHARS = 500  # of the target of one


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy says about an ask; of a denial also in words, with the lines that would allow it."""

    is_allowed: bool
    code: str = ""  # E330 not allowed, E331 expired
    rule: str = ""  # the line that decided, `policy.toml:12`; empty where none did
    expires_us: int | None = None
    what: str = ""
    remedy: str = ""
    is_shadow: bool = False  # denied by a policy that only watches: it is done all the same
    max_tokens: int | None = None  # of a model's answer, at most


ALLOWED = Verdict(True)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy."""

    place: str
    kind: str
    resource: str
    methods: frozenset[str]
    is_matched: Callable[[str], bool] = field(compare=False, repr=False)
    routes: tuple[str, ...] = ()
    is_deny: bool = False
    expires_minutes: int | None = None
    expires_at_us: int | None = None
    max_tokens: int | None = None  # of a model's answer, at most

    @property
    def digest(self) -> str:
        """Tells the line from every other one, wherever in its file it stands."""
        said = [self.kind, self.resource, sorted(self.methods), sorted(self.routes), self.is_deny]
        said += [self.expires_minutes, self.expires_at_us]
        said += [] if self.max_tokens is None else [self.max_tokens]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def is_for(self, route: str) -> bool:
        """Whether the line is for this route."""
        return not self.routes or any(fnmatchcase(route, pattern) for pattern in self.routes)

    def covers(self, route: str, ask: Ask) -> bool:
        """Whether the line is about this ask of this route."""
        return (
            self.kind == ask.kind
            and (ask.method in self.methods or "*" in self.methods)
            and self.is_for(route)
            and self.is_matched(ask.target)
        )

    @property
    def text(self) -> str:
        """The line as TOML, in one form whatever form it was written in."""
        lines = ["[[capability]]", *(['effect = "deny"'] if self.is_deny else [])]
        lines += [f"name = {quoted(self.kind)}", f"resource = {quoted(self.resource)}"]
        lines.append(f"methods = [{', '.join(map(quoted, sorted(self.methods)))}]")
        if self.routes:
            lines.append(f"routes = [{', '.join(map(quoted, self.routes))}]")
        if self.expires_minutes is not None:
            lines.append(f"expires_minutes = {self.expires_minutes}")
        if self.expires_at_us is not None:
            lines.append(f"expires_at = {datetime.fromtimestamp(self.expires_at_us / 1e6, UTC).isoformat()}")
        if self.max_tokens is not None:
            lines.append(f"max_tokens = {self.max_tokens}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a `[[test]]` expects."""

    place: str
    route: str
    ask: Ask
    expect: str  # allow, deny or expired


@dataclass(frozen=True, slots=True)
class Policy:
    """One file."""

    file: str
    rules: tuple[Rule, ...]
    cases: tuple[Expectation, ...] = ()
    is_shadow: bool = False
    budgets: tuple[Budget, ...] = ()
    # When lines were first seen, by digest, in microseconds: not what the file says, so not compared.
    seen: Mapping[str, int] = field(default_factory=dict, compare=False)
    # Lines by what they are about: a route asks the same for message after message.
    _known: dict[tuple[str, Ask], tuple[Rule, ...]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )

    def about(self, route: str, ask: Ask) -> Sequence[Rule]:
        """Every line that is about an ask."""
        found = self._known.get((route, ask))
        if found is None:
            found = tuple(rule for rule in self.rules if rule.covers(route, ask))
            if len(ask.target) <= _KNOWN_CHARS:  # guests choose targets, and how many there are
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                self._known[route, ask] = found
        return found

    def decide(self, route: str, ask: Ask, now_us: int) -> Verdict:
        """What this file says about an ask."""
        found = self.about(route, ask)
        denies = next((rule for rule in found if rule.is_deny), None)
        if denies is not None:
            what = f'{ask} is denied to route {route} by {denies.place} (effect = "deny")'
            return self._denied("E330", denies.place, what, "Remove or narrow that line.")
        if not found:
            if KINDS[ask.kind].is_optional and not any(rule.kind == ask.kind for rule in self.rules):
                return ALLOWED
            what = f"{ask} is not allowed to route {route}: {self.file} has no line for it"
            return self._denied("E330", "", what, f"To allow it, add:\n{suggest(route, ask)}")
        ends = [(self._ends_us(rule, now_us), rule) for rule in found]
        last_us, rule = max(ends, key=lambda each: float("inf") if each[0] is None else each[0])
        if last_us is None or last_us > now_us:
            bounds = [rule.max_tokens for end_us, rule in ends if end_us is None or end_us > now_us]
            most = max((bound for bound in bounds if bound is not None), default=None)
            most = None if None in bounds or self.is_shadow else most
            return Verdict(True, rule=rule.place, expires_us=last_us, max_tokens=most)
        limit = f"expires_minutes = {rule.expires_minutes}" if rule.expires_minutes else "expires_at"
        ago = _span((now_us - last_us) / 1e6)
        what = f"{ask}: the capability of {rule.place} expired {ago} ago ({limit})"
        remedy = f"To renew it: processor policy renew CONFIG {rule.place}"
        if rule.expires_minutes is None:
            remedy = "To renew it, change its expires_at."
        return replace(self._denied("E331", rule.place, what, remedy), expires_us=last_us)

    def _denied(self, code: str, rule: str, what: str, remedy: str) -> Verdict:
        return Verdict(False, code, rule, what=what, remedy=remedy, is_shadow=self.is_shadow)

    def _ends_us(self, rule: Rule, now_us: int) -> int | None:
        ends = [rule.expires_at_us] if rule.expires_at_us is not None else []
        if rule.expires_minutes is not None:
            ends.append(self.seen.get(rule.digest, now_us) + rule.expires_minutes * 60_000_000)
        return min(ends, default=None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy files of a route: all of them must allow. Without a file everything is allowed."""

    policies: tuple[Policy, ...] = ()

    @property
    def id(self) -> str:
        """Names this version of the lines in logs: 12 hex digits; empty without a file."""
        if not self.policies:
            return ""
        digests = [rule.digest for policy in self.policies for rule in policy.rules]
        budgets = [budget for policy in self.policies for budget in policy.budgets]
        said: list[object] = [[policy.file, policy.is_shadow] for policy in self.policies]
        said += [digests, *([budget.text for budget in budgets] if budgets else [])]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]

    @property
    def expiring(self) -> frozenset[str]:
        """The digests of lines whose time begins when they are first seen."""
        rules = (rule for policy in self.policies for rule in policy.rules)
        return frozenset(rule.digest for rule in rules if rule.expires_minutes is not None)

    def with_seen(self, seen: Mapping[str, int]) -> Rules:
        """The same, with when lines were first seen: by digest, in microseconds since 1970."""
        return Rules(tuple(replace(policy, seen=dict(seen)) for policy in self.policies))

    def budgets_of(self, route: str) -> list[Budget]:
        """The budgets that a route is charged; those of a policy that only watches do no more than warn."""
        return [
            replace(budget, then="warn") if policy.is_shadow else budget
            for policy in self.policies
            for budget in policy.budgets
            if budget.is_for(route)
        ]

    def lasting(self, route: str, kind: str) -> list[list[Rule]]:
        """Of each file, the lines of a kind that are for a route and never expire, denials among them.

        What they allow is allowed at any time; about anything else they say nothing.
        """
        return [
            [
                rule
                for rule in policy.rules
                if rule.kind == kind
                and rule.is_for(route)
                and (rule.is_deny or (rule.expires_minutes, rule.expires_at_us) == (None, None))
            ]
            for policy in self.policies
        ]

    def about(self, route: str, ask: Ask) -> list[Rule]:
        """Every line that is about an ask."""
        return [rule for policy in self.policies for rule in policy.about(route, ask)]

    def decide(self, route: str, ask: Ask, now_us: int) -> Verdict:
        """What the policy says about an ask. A denial that only watches is one that `is_shadow`."""
        verdict, shadow = ALLOWED, None
        for reading in readings(ask):
            for policy in self.policies:
                found = policy.decide(route, reading, now_us)
                if found.is_allowed:
                    verdict = _narrower(verdict, found)
                elif found.is_shadow:
                    shadow = shadow or found
                else:
                    return found
        return shadow or verdict


NO_POLICY = Rules()


def _narrower(one: Verdict, other: Verdict) -> Verdict:
    """Of two that allow, the one that ends sooner, with the bounds of both."""
    found = one
    if one.expires_us is None or (other.expires_us is not None and other.expires_us < one.expires_us):
        found = other
    bounds = [each.max_tokens for each in (one, other) if each.max_tokens is not None]
    return replace(found, max_tokens=min(bounds)) if bounds else found


def suggest(route: str, ask: Ask) -> str:
    """The lines that allow exactly this ask to this route."""
    return (
        "[[capability]]\n"
        f"name = {quoted(ask.kind)}\n"
        f"resource = {quoted(KINDS[ask.kind].pattern(ask.target))}\n"
        f"methods = [{quoted(ask.method)}]\n"
        f"routes = [{quoted(literal_route(route))}]"
    )


def literal_route(route: str) -> str:
    """The pattern that only this route matches."""
    return re.sub(r"([*?\[])", r"[\1]", route)


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
