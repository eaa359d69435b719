"""Finds lines of policies that may be mistakes, though they have no fault."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from processor.policy.kinds import KINDS, near
from processor.policy.rules import Policy, Rule, Rules


def lints(
    rules: Rules, routes: Collection[str], secrets: Collection[str], now_us: int
) -> Iterator[tuple[str, str]]:
    """The place of each line that may be a mistake, and a sentence."""
    for policy in rules.policies:
        named = [(rule.place, rule.routes) for rule in policy.rules]
        named += [(budget.place, budget.routes) for budget in policy.budgets]
        for place, patterns in named:
            for pattern in patterns:
                if not any(fnmatchcase(route, pattern) for route in routes):
                    yield place, f"routes: no route is named {pattern!r}{near(pattern, [*routes])}"
        for rule in policy.rules:
            for text in _doubts(rule, secrets, now_us):
                yield rule.place, text
        yield from _useless(policy, rules, routes)


def _doubts(rule: Rule, secrets: Collection[str], now_us: int) -> Iterator[str]:
    """What is odd about a line by itself."""
    if rule.expires_at_us is not None and rule.expires_at_us <= now_us:
        yield "it has expired, so it allows nothing"
    if not rule.is_deny and "*" in rule.methods:
        yield "methods: '*' allows every method; name those that are needed"
    if not rule.is_deny and rule.resource in ("*", "**", ">") and rule.kind not in ("stock", "state_data"):
        yield f"resource: {rule.resource!r} allows every one; name those that are needed"
    if rule.kind == "secret" and "*" not in rule.resource and rule.resource not in secrets:
        yield f"there is no secret {rule.resource!r}{near(rule.resource, [*secrets])}"


def _useless(policy: Policy, rules: Rules, routes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Lines that can never matter: another one denies all that they allow, or says all that they say."""
    # A file that only watches denies nothing to the others.
    elsewhere = [each for each in rules.policies if each is not policy and not each.is_shadow]
    for number, rule in enumerate(policy.rules):
        others = [*enumerate(policy.rules)]
        if not rule.is_deny:
            others += [(-1, other) for each in elsewhere for other in each.rules if other.is_deny]
        for place, other in sorted(others, key=lambda each: not each[1].is_deny):
            if other is rule or (rule.is_deny and not other.is_deny) or not _holds(other, rule, routes):
                continue
            # Of two that say the same, the later one is of no use.
            if other.is_deny == rule.is_deny and place > number and _holds(rule, other, routes):
                continue
            word = "denies" if other.is_deny else "allows"
            yield rule.place, f"it can never matter: {other.place} {word} all of it"
            break


def _holds(wide: Rule, narrow: Rule, routes: Collection[str]) -> bool:
    """Whether one line is about all that another one is about, for as long."""
    if wide.kind != narrow.kind or not ("*" in wide.methods or narrow.methods <= wide.methods):
        return False
    ends = (wide.expires_minutes, wide.expires_at_us)
    if ends != (None, None) and ends != (narrow.expires_minutes, narrow.expires_at_us):
        return False
    if wide.max_tokens is not None and (narrow.max_tokens is None or narrow.max_tokens > wide.max_tokens):
        return False
    named = [route for route in routes if narrow.is_for(route)]
    if wide.routes and not (narrow.routes and named and all(map(wide.is_for, named))):
        return False
    samples = KINDS[narrow.kind].samples(narrow.resource)
    return bool(samples) and all(map(wide.is_matched, samples))
