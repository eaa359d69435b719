"""Finds lines of policies that may be mistakes, though they have no fault."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from processor.policy.kinds import near
from processor.policy.rules import Rules


def lints(
    rules: Rules, routes: Collection[str], secrets: Collection[str], now_us: int
) -> Iterator[tuple[str, str]]:
    """What may be a mistake in lines that have no fault: the place of each, and a sentence."""
    for rule in (rule for policy in rules.policies for rule in policy.rules):
        for pattern in rule.routes:
            if not any(fnmatchcase(route, pattern) for route in routes):
                yield rule.place, f"routes: no route is named {pattern!r}{near(pattern, [*routes])}"
        if rule.expires_at_us is not None and rule.expires_at_us <= now_us:
            yield rule.place, "it has expired, so it allows nothing"
        if not rule.is_deny and "*" in rule.methods:
            yield rule.place, "methods: '*' allows every method; name those that are needed"
        if not rule.is_deny and rule.resource in ("*", ">") and rule.kind in ("http", "emit", "secret"):
            yield rule.place, f"resource: {rule.resource!r} allows every one; name those that are needed"
        if rule.kind == "secret" and "*" not in rule.resource and rule.resource not in secrets:
            yield rule.place, f"there is no secret {rule.resource!r}{near(rule.resource, [*secrets])}"
