"""What was asked for, as the audit has it: lines that would allow it, and what others would change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from processor.policy.kinds import KINDS, Ask, asked, quoted
from processor.policy.rules import Rules, Verdict, literal_route

SIBLINGS_MAX = 5  # targets below one path; more of them become one line with `*`

Used = Mapping[tuple[str, Ask], int]  # how often a route asked for something


class Change(NamedTuple):
    """Something that was asked for, and about which two policies differ."""

    route: str
    ask: Ask
    times: int
    before: Verdict
    after: Verdict


def asks_of(entry: Mapping[str, Any]) -> Iterator[tuple[str, Ask]]:
    """What an entry of the audit says that a route was allowed; nothing where it cannot be read as such."""
    route, kind = str(entry.get("route", "")), str(entry.get("e", ""))
    if not route or entry.get("d") == "deny" or entry.get("cut"):
        return
    is_asked = kind in KINDS and kind != "secret"  # a call names the secrets that went with it
    wanted = [(f"{kind}.{entry.get('op', '')}", str(entry.get("on", "")))] if is_asked else []
    names = entry.get("secrets")
    wanted += [("secret.use", str(name)) for name in names] if isinstance(names, list) else []
    for op, target in wanted:
        try:
            yield route, asked(op, target)
        except ValueError:
            continue


def lines_for(used: Used) -> str:
    """The lines that allow what was asked for, as TOML, each with how often it was used."""
    methods: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    wide = _wide(used)
    for (route, ask), count in used.items():
        parent = _parent(ask)
        is_wide = (route, ask.kind, parent) in wide
        line = (route, ask.kind, f"{parent}*" if is_wide else KINDS[ask.kind].pattern(ask.target))
        methods[line].add(ask.method)
        counts[line] += count
    merged: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for route, kind, resource in sorted(methods):
        merged[kind, resource, tuple(sorted(methods[route, kind, resource]))].append(route)
    texts = []
    for (kind, resource, named), routes in merged.items():
        count = sum(counts[route, kind, resource] for route in routes)
        texts.append(
            f"# used {count} time{'s' * (count != 1)}\n[[capability]]\nname = {quoted(kind)}\n"
            f"resource = {quoted(resource)}\nmethods = [{', '.join(map(quoted, named))}]\n"
            f"routes = [{', '.join(quoted(literal_route(route)) for route in routes)}]\n"
        )
    return "\n".join(texts)


def changes(used: Used, before: Mapping[str, Rules], after: Mapping[str, Rules], now_us: int) -> list[Change]:
    """What was asked for, and would be decided otherwise by the other rules of its route."""
    found = []
    for (route, ask), count in sorted(used.items()):
        if route in before and route in after:
            old, new = (rules[route].decide(route, ask, now_us) for rules in (before, after))
            if (old.is_allowed, old.is_shadow) != (new.is_allowed, new.is_shadow):
                found.append(Change(route, ask, count, old, new))
    return found


def _parent(ask: Ask) -> str:
    """The path that the target of a request is below."""
    return ask.target.rpartition("/")[0] + "/" if ask.kind == "http" else ""


def _wide(used: Used) -> set[tuple[str, str, str]]:
    """The paths with more targets below them than a line each is worth."""
    below: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for route, ask in used:
        if ask.kind == "http":
            below[route, ask.kind, _parent(ask)].add(ask.target)
    return {path for path, targets in below.items() if len(targets) > SIBLINGS_MAX}
