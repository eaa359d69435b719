"""Policies decide as Cedar does: random policies and asks, each put to both.

`POLICIES=10000 pytest tests/properties/test_cedar.py` tries more of them. The entities are made here from
what `policy show --format cedar` says of them, and not by the code under test.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from processor.address import carried, is_public, parse_url
from processor.policy import KINDS, Ask, Rules, Verdict, asked, load, to_cedar

cedarpy = pytest.importorskip("cedarpy", reason="cedarpy, which the extra `test` has, is not installed")

POLICIES = int(os.environ.get("POLICIES", "400"))
ASKS = 4  # of each policy
NOW_US = 1_800_000_000_000_000
ROUTES = ["enrich", "billing-eu", "billing-us", "a*b", "x"]
PATTERNS = ["enrich", "billing-*", "a[*]b", "?", "[ex]*", "*", "none"]
HOSTS = ["a.example", "b.a.example", "c.test", "localhost", "127.0.0.1", "10.1.2.3", "9.9.9.9",
         "[2001:db8::1]", "[::ffff:10.1.2.3]"]  # fmt: skip
HOST_PATTERNS = ["a.example", "*.a.example", "*", "10.0.0.0/8", "127.0.0.1", "[2001:db8::/32]", "localhost"]
WORDS = ["a", "b", "ab", "pay_key", "a*b", "a\\b", "é", "gpt-4o", "calc/add", "x y", 'q"q', "\n"]
GLOBS = ["*", "a*", "*b", "a\\*b", "a\\\\b", "gpt-*", "calc/*", "é", "*y*", "pay_key", 'q"*', "a"]
SEGMENTS = ["a", "b", "v1", "pay", "x.csv", "", "%2F", "*"]


def path(chance: random.Random, segments: list[str], most: int = 4) -> str:
    return "/" + "/".join(chance.choice(segments) for _ in range(chance.randint(0, most)))


def path_pattern(chance: random.Random) -> str:
    """A pattern that Cedar has words for: `**` at the end, or no star that is one segment."""
    if chance.random() < 0.3:
        return path(chance, ["a", "b", "**", "v1", "**a"])
    return path(chance, ["a", "b", "v1", "*", "p*", "*.csv"]) + chance.choice(["", "", "/**", "/p**"])


def resource(chance: random.Random, kind: str) -> str:
    if kind == "http":
        host = chance.choice(HOST_PATTERNS) + chance.choice(["", "", ":8443"])
        if "/" in host or chance.random() < 0.4:
            return host
        return f"{chance.choice(['http', 'https'])}://{host}{chance.choice(['', path_pattern(chance)])}"
    if kind == "emit":
        tokens = [chance.choice(["a", "b", "*"]) for _ in range(chance.randint(0, 3))]
        return ".".join([chance.choice("ab"), *tokens, *chance.choice([[], [], [">"]])])
    if kind == "file":
        if chance.random() < 0.1:
            return chance.choice(["*", "**"])
        return chance.choice(["data:", "out:", ""]) + path_pattern(chance)
    return chance.choice(GLOBS)


def ask(chance: random.Random, kind: str) -> Ask:
    target = chance.choice(WORDS)
    if kind == "http":
        host = chance.choice(HOSTS) + chance.choice(["", "", ":8443"])
        target = f"{chance.choice(['http', 'https'])}://{host}{path(chance, SEGMENTS)}"
    elif kind == "emit":
        target = ".".join(chance.choice(["a", "b", "c"]) for _ in range(chance.randint(1, 4)))
    elif kind == "file":
        target = chance.choice(["data:", "out:", ""]) + path(chance, SEGMENTS)
    return asked(f"{kind}.{chance.choice(KINDS[kind].methods)}", target)


def lines(chance: random.Random, kinds: list[str]) -> str:
    """A policy file with up to eight lines."""
    texts = []
    for _ in range(chance.randint(0, 8)):
        kind = chance.choice(kinds)
        said: dict[str, object] = {"name": kind, "resource": resource(chance, kind)}
        methods = chance.sample(KINDS[kind].methods, chance.randint(1, len(KINDS[kind].methods)))
        said["methods"] = chance.choice([["*"], methods])
        if chance.random() < 0.3:
            said["routes"] = chance.sample(PATTERNS, chance.randint(1, 2))
        if chance.random() < 0.3:
            said["effect"] = "deny"
        elif chance.random() < 0.2:
            said["expires_minutes"] = chance.choice([1, 60])
        elif kind == "infer" and chance.random() < 0.5:
            said["max_tokens"] = chance.choice([10, 100])
        body = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in said.items())
        moment = chance.choice(["2026-01-01T00:00:00Z", "2030-01-01T00:00:00Z"])
        ends = f"\nexpires_at = {moment}" if "effect" not in said and chance.random() < 0.2 else ""
        texts.append(f"[[capability]]\n{body}{ends}\n")
    return "".join(texts)


def entity(kind: str, uid: str, attributes: Mapping[str, object]) -> dict[str, object]:
    return {"uid": {"type": kind, "id": uid}, "attrs": attributes, "parents": []}


def ip(text: object) -> dict[str, object]:
    return {"__extn": {"fn": "ip", "arg": str(text)}}


def parts(text: str, separator: str) -> dict[str, object]:
    split = text.split(separator)
    return {"depth": len(split) - 1} | {f"p{number}": each for number, each in enumerate(split)}


def attributes(wanted: Ask) -> dict[str, object]:
    """What the head of an export says that a target has."""
    said: dict[str, object] = {"name": wanted.target}
    if wanted.kind == "http":
        url = parse_url(wanted.target)
        said |= {"scheme": url.scheme, "host": url.host, "port": url.port}
        said |= {"is_usual_port": url.port == {"http": 80, "https": 443}[url.scheme]}
        said |= {"is_address": url.address is not None, "is_public": "." in url.host}
        if url.address is not None:
            whole = ipaddress.ip_address(url.address)
            address = f"{whole.exploded}" if whole.version == 4 else hexadecimal(int(whole))
            said |= {"is_public": is_public(url.address), "address": ip(address)}
            said |= {"carried": ip(carried(url.address))}
        rest = wanted.target.split("/", 3)[3]
        said |= {"path": f"/{rest}"} | parts(f"/{rest}", "/")
    elif wanted.kind == "emit":
        said |= parts(wanted.target, ".")
    elif wanted.kind == "file":
        root, _, way = wanted.target.partition("/")
        said |= {"root": root.rstrip(":"), "path": f"/{way}"} | parts(f"/{way}", "/")
    return said


def hexadecimal(number: int) -> str:
    """An IPv6 address without a dotted end, which not every reader takes."""
    digits = f"{number:032x}"
    return ":".join(digits[place : place + 4] for place in range(0, 32, 4))


def readings(wanted: Ask) -> list[Ask]:
    """An ask, and what it is where an escaped separator is one."""
    if wanted.kind != "http" or not any(each in wanted.target for each in ("%2F", "%5C")):
        return [wanted]
    return [wanted, asked(f"http.{wanted.method}", wanted.target.replace("%2F", "/").replace("%5C", "/"))]


def allows(text: str, route: str, wanted: Ask, seen: Mapping[str, int], tokens: int) -> bool:
    """Whether Cedar allows it."""
    entities = [entity("Route", "r", {"name": route}), entity("Target", "t", attributes(wanted))]
    context: dict[str, Any] = {"now_us": NOW_US, "seen": dict(seen)}
    if wanted.kind == "infer":
        context["max_tokens"] = tokens
    request = {"principal": 'Route::"r"', "action": f'Action::"{wanted.kind}.{wanted.method}"',
               "resource": 'Target::"t"', "context": context}  # fmt: skip
    result = cedarpy.is_authorized(request, text, entities)
    assert result.diagnostics.errors == [], result.diagnostics.errors
    return bool(result.allowed)


def ours(verdict: Verdict, tokens: int) -> bool:
    return verdict.is_allowed and (verdict.max_tokens is None or tokens <= verdict.max_tokens)


def test_policies_decide_as_cedar_does(tmp_path: Path) -> None:
    """A policy and its export allow the same asks, whatever they are: deny wins, and none is denied."""
    file = tmp_path / "policy.toml"
    allowed = denied = 0
    for seed in range(POLICIES):
        chance = random.Random(seed)
        kinds = chance.sample([*KINDS], 2)
        file.write_text(lines(chance, kinds), encoding="utf-8")
        rules = load([file])
        seen = {digest: NOW_US - 30 * 60_000_000 for digest in rules.expiring if chance.random() < 0.7}
        text = to_cedar(rules, ROUTES)
        for _ in range(ASKS):
            route, wanted = chance.choice(ROUTES), ask(chance, chance.choice(kinds))
            tokens = chance.choice([5, 50, 500])
            verdict = rules.with_seen(seen).decide(route, wanted, NOW_US)
            theirs = all(allows(text, route, each, seen, tokens) for each in readings(wanted))
            assert ours(verdict, tokens) is theirs, (
                f"seed {seed}: {route} {wanted!r}\n{file.read_text()}\n{text}"
            )
            allowed, denied = allowed + theirs, denied + (not theirs)
    assert min(allowed, denied) > POLICIES * ASKS / 10  # both are tried


def test_what_cedar_has_no_words_for_is_named(tmp_path: Path) -> None:
    """A line that cannot be written is refused with its place; an export never leaves one out."""
    file = tmp_path / "policy.toml"
    file.write_text("[net]\nallow = ['a.example']\ndeny = ['https://a.example/*/x/**/y']\n")
    with pytest.raises(ValueError, match=r"policy\.toml:3: Cedar cannot say"):
        to_cedar(load([file]), ROUTES)
    assert to_cedar(Rules(), ROUTES).startswith("// principal")
