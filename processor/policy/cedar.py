"""Policies as Cedar writes them, for whoever checks or compares policies in that language.

The meaning is the same: what nothing permits is denied, and what something forbids is denied whatever permits
it. `HEAD` says which entities and attributes the text is about. What Cedar has no words for is refused by
name, never left out: a policy without one of its denies would be another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from processor.address import Entry
from processor.policy.kinds import KINDS, split_file, split_http
from processor.policy.rules import Policy, Rule, Rules

HEAD = """\
// principal: a Route with its name.
// action: Action::"<kind>.<method>".
// resource: a Target with name; of http with scheme, host, port, is_usual_port, is_address, is_public and,
//   where it is an address, address and carried (ip); of file with root; of http and file with path, depth
//   (the slashes in path) and p1, p2, ... (what stands behind each); of emit with depth (the dots in name)
//   and p0, p1, ... (its tokens).
// context: now_us (microseconds since 1970), seen (when lines with expires_minutes were first seen, by their
//   digest), and of infer max_tokens where the call has it.
"""


def to_cedar(rules: Rules, routes: Collection[str]) -> str:
    """The policy files of some routes as Cedar policies, one set a file.

    Raises ValueError, whose sentence names the lines that cannot be written.
    """
    sets, refused = [HEAD], []
    for policy in rules.policies:
        if len(rules.policies) > 1:
            sets.append(f"// {policy.file}: every file by itself must allow.\n")
        if policy.is_shadow:
            sets.append(f"// {policy.file} only watches (mode = shadow).\n")
        for rule in policy.rules:
            try:
                sets.append(_policy(rule, routes))
            except ValueError as err:
                refused.append(f"{rule.place}: {err}")
        sets += _unnamed(policy)
    if refused:
        raise ValueError("; ".join(refused))
    return "\n".join(sets)


def _unnamed(policy: Policy) -> Iterator[str]:
    """What is allowed because no line of the file is about it."""
    for kind in KINDS.values():
        if kind.is_optional and not any(rule.kind == kind.name for rule in policy.rules):
            yield f"permit (principal, action in [{_actions(kind.name, ['*'])}], resource);\n"


def _policy(rule: Rule, routes: Collection[str]) -> str:
    conditions = [*_of_route(rule, routes), *_RESOURCES[rule.kind](rule.resource)]
    if rule.expires_at_us is not None:
        conditions.append(f"context.now_us < {rule.expires_at_us}")
    if rule.expires_minutes is not None:
        key, span_us = _quoted(rule.digest), rule.expires_minutes * 60_000_000
        live = f"context.now_us < context.seen[{key}] + {span_us}"
        conditions.append(f"(if context.seen has {key} then {live} else true)")
    if rule.max_tokens is not None:
        conditions.append(
            f"(if context has max_tokens then context.max_tokens <= {rule.max_tokens} else true)"
        )
    when = f" when {{ {' && '.join(conditions)} }}" if conditions else ""
    head = f"@place({_quoted(rule.place)})\n{'forbid' if rule.is_deny else 'permit'}"
    return f"{head} (principal, action in [{_actions(rule.kind, rule.methods)}], resource){when};\n"


def _actions(kind: str, methods: Collection[str]) -> str:
    named = KINDS[kind].methods if "*" in methods else sorted(methods)
    return ", ".join(f'Action::"{kind}.{method}"' for method in named)


_STAR, _MANY = 1, 2  # parts of a pattern that stand for any text: without a slash, and with them
Parts = Sequence[str | int]


def _of_route(rule: Rule, routes: Collection[str]) -> Iterator[str]:
    found = []
    for pattern in rule.routes:
        parts = re.split(r"(\[[*?\[]\]|[*])", pattern)
        parts[1::2] = [part[1:-1] if len(part) == 3 else "" for part in parts[1::2]]
        if any(
            re.search(r"[?\[]", part) for part in parts[::2]
        ):  # any character of some: the routes there are
            names = ", ".join(_quoted(name) for name in sorted(routes) if fnmatchcase(name, pattern))
            found.append(f"[{names}].contains(principal.name)")
        else:
            stars = [_STAR if number % 2 and not part else part for number, part in enumerate(parts)]
            found.append(f"principal.name like {_like(stars)}")
    if found:
        yield f"({' || '.join(found)})"


def _parts(pattern: str, *, is_escaped: bool = True) -> Parts:
    split = re.split(r"(\\.|\*\*|\*)" if is_escaped else r"(\*\*|\*)", pattern, flags=re.DOTALL)
    stars = {"*": _STAR, "**": _MANY}
    return [stars.get(part) or part[1:] if number % 2 else part for number, part in enumerate(split)]


def _of_name(pattern: str) -> Iterator[str]:
    yield f"resource.name like {_like(_parts(pattern))}"


def _of_subject(pattern: str) -> Iterator[str]:
    tokens = pattern.split(".")
    is_open = tokens[-1] == ">"
    tokens = tokens[:-1] if is_open else tokens
    yield f"resource.depth {'>=' if is_open else '=='} {len(tokens) - (not is_open)}"
    for number, token in enumerate(tokens):
        if token != "*":
            yield f"resource.p{number} == {_quoted(token)}"


def _of_file(pattern: str) -> Iterator[str]:
    if pattern not in ("*", "**"):
        root, path = split_file(pattern)
        yield f"resource.root == {_quoted(root)}"
        yield from _of_path(_parts(path))


def _of_http(pattern: str) -> Iterator[str]:
    scheme, entry, path = split_http(pattern)
    if scheme:
        yield f"resource.scheme == {_quoted(scheme)}"
    yield "resource.is_usual_port" if entry.port is None else f"resource.port == {entry.port}"
    yield _of_host(entry)
    if path is not None:
        yield from _of_path(_parts(path, is_escaped=False))


def _of_host(entry: Entry) -> str:
    if entry.network is not None:
        within = f'isInRange(ip("{entry.network.compressed}"))'
        return f"resource.is_address && (resource.address.{within} || resource.carried.{within})"
    if entry.name == "*":
        return "resource.is_public"
    if entry.name.startswith("."):
        return f"(!resource.is_address && resource.host like {_like([_STAR, entry.name])})"
    return f"(!resource.is_address && resource.host == {_quoted(entry.name)})"


def _of_path(parts: Parts) -> Iterator[str]:
    """Conditions on a path. Where a star is text without a slash, each segment has its own."""
    if _STAR not in parts:
        yield f"resource.path like {_like(parts)}"
        return
    segments: list[list[str | int]] = [[]]
    for part in parts:
        first, *others = part.split("/") if isinstance(part, str) else [part]
        segments[-1].append(first)
        segments += [[other] for other in others]
    segments = [[part for part in segment if part != ""] for segment in segments]
    is_open = segments[-1][-1:] == [_MANY]
    if sum(part == _MANY for segment in segments for part in segment) > is_open:
        raise ValueError("Cedar cannot say a path with '*' where '**' is not at its end")
    yield f"resource.depth {'>=' if is_open else '=='} {len(segments) - 1}"
    for number, segment in enumerate(segments):
        if number > 0 and segment not in ([_STAR], [_MANY]):
            yield f"resource.p{number} like {_like(segment)}"


_RESOURCES: Mapping[str, Callable[[str], Iterator[str]]] = {
    **dict.fromkeys(KINDS, _of_name),
    "http": _of_http,
    "emit": _of_subject,
    "file": _of_file,
}


def _quoted(text: str) -> str:
    return f'"{"".join(map(_char, text))}"'


def _like(parts: Parts) -> str:
    """A pattern of Cedar, where a star is any text and has no other form."""
    said = ("*" if isinstance(part, int) else "".join(map(_char, part)).replace("*", "\\*") for part in parts)
    return f'"{"".join(said)}"'


def _char(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else f"\\u{{{ord(char):x}}}"
