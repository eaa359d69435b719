"""Who may do what: the lines of policy files, and what they say about one call.

A line allows, or denies, some methods on some resources of one kind to some routes. Without a file everything
is allowed that the configuration declares; with one, only what a line allows. `Rules` are the files of one
configuration: data, which decide without a clock, a socket or a file.

What must stay true:
- A matching deny wins, whatever allows; the order of lines never matters. Of several files each must allow.
- An ask has one spelling: `Ask` is made here, and what another reader of a path could take for another path
  is allowed only where both are, and denied where one is.
- What a denial suggests, pasted into the file, allows exactly that ask and nothing else.
- A line expires from when the app first saw it, not from when a process started.

The grammar is that of seed 001 (`[[capability]]`, TOML); `docs/` has it for users.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from processor.address import PORTS, Entry, parse_url
from processor.errors import Fault, Faults
from processor.subject import check_target, matches

MAX_EXPIRES_MINUTES = 525_600
_REMEDY_TARGET_CHARS = 300
_HEADER = re.compile(r"^\s*\[\[?\s*([\w.-]+)\s*\]\]?")


class Ask(NamedTuple):
    """One thing that a guest wants to do: `http post https://api.example.com/v1/pay`."""

    kind: str
    method: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.method} {self.target[:_REMEDY_TARGET_CHARS]}"


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


ALLOWED = Verdict(True)


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """What lines of one kind are about."""

    name: str
    methods: tuple[str, ...]
    resource: str  # what it is, for people
    matcher: Callable[[str], Callable[[str], bool]]  # of a pattern. Raises ValueError
    pattern: Callable[[str], str]  # the pattern that only this target matches
    is_optional: bool = False  # asked for only where some line of the file is of this kind


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy."""

    place: str
    kind: str
    resource: str
    methods: frozenset[str]
    routes: tuple[str, ...]
    is_deny: bool
    expires_minutes: int | None
    expires_at_us: int | None
    is_matched: Callable[[str], bool] = field(compare=False, repr=False)

    @property
    def digest(self) -> str:
        """Tells the line from every other one, wherever in its file it stands."""
        said = [self.kind, self.resource, sorted(self.methods), sorted(self.routes), self.is_deny]
        said += [self.expires_minutes, self.expires_at_us]
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
        lines += [f"name = {_toml(self.kind)}", f"resource = {_toml(self.resource)}"]
        lines.append(f"methods = [{', '.join(map(_toml, sorted(self.methods)))}]")
        if self.routes:
            lines.append(f"routes = [{', '.join(map(_toml, self.routes))}]")
        if self.expires_minutes is not None:
            lines.append(f"expires_minutes = {self.expires_minutes}")
        if self.expires_at_us is not None:
            lines.append(f"expires_at = {datetime.fromtimestamp(self.expires_at_us / 1e6, UTC).isoformat()}")
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
    # When lines were first seen, by digest, in microseconds: not what the file says, so not compared.
    seen: Mapping[str, int] = field(default_factory=dict, compare=False)

    def decide(self, route: str, ask: Ask, now_us: int) -> Verdict:
        """What this file says about an ask."""
        found = [rule for rule in self.rules if rule.covers(route, ask)]
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
            return Verdict(True, rule=rule.place, expires_us=last_us)
        limit = f"expires_minutes = {rule.expires_minutes}" if rule.expires_minutes else "expires_at"
        ago = _span((now_us - last_us) / 1e6)
        what = f"{ask}: the capability of {rule.place} expired {ago} ago ({limit})"
        remedy = "To renew it, change the line: its time begins when it is first seen."
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
        said = json.dumps([[policy.file, policy.is_shadow] for policy in self.policies] + [digests])
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def expiring(self) -> frozenset[str]:
        """The digests of lines whose time begins when they are first seen."""
        rules = (rule for policy in self.policies for rule in policy.rules)
        return frozenset(rule.digest for rule in rules if rule.expires_minutes is not None)

    def with_seen(self, seen: Mapping[str, int]) -> Rules:
        """The same, with when lines were first seen: by digest, in microseconds since 1970."""
        return Rules(tuple(replace(policy, seen=dict(seen)) for policy in self.policies))

    def about(self, route: str, ask: Ask) -> list[Rule]:
        """Every line that is about an ask."""
        return [rule for policy in self.policies for rule in policy.rules if rule.covers(route, ask)]

    def decide(self, route: str, ask: Ask, now_us: int) -> Verdict:
        """What the policy says about an ask. A denial that only watches is one that `is_shadow`."""
        verdict, shadow = ALLOWED, None
        for reading in _readings(ask):
            for policy in self.policies:
                found = policy.decide(route, reading, now_us)
                if found.is_allowed:
                    verdict = _sooner(verdict, found)
                elif found.is_shadow:
                    shadow = shadow or found
                else:
                    return found
        return shadow or verdict


NO_POLICY = Rules()


def _sooner(one: Verdict, other: Verdict) -> Verdict:
    if one.expires_us is None or (other.expires_us is not None and other.expires_us < one.expires_us):
        return other
    return one


def suggest(route: str, ask: Ask) -> str:
    """The lines that allow exactly this ask to this route."""
    return (
        "[[capability]]\n"
        f"name = {_toml(ask.kind)}\n"
        f"resource = {_toml(KINDS[ask.kind].pattern(ask.target))}\n"
        f"methods = [{_toml(ask.method)}]\n"
        f"routes = [{_toml(_literal_route(route))}]"
    )


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _literal_route(route: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", route)


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def lints(
    rules: Rules, routes: Collection[str], secrets: Collection[str], now_us: int
) -> Iterator[tuple[str, str]]:
    """What may be a mistake in lines that have no fault: the place of each, and a sentence."""
    for rule in (rule for policy in rules.policies for rule in policy.rules):
        for pattern in rule.routes:
            if not any(fnmatchcase(route, pattern) for route in routes):
                yield rule.place, f"routes: no route is named {pattern!r}{_near(pattern, [*routes])}"
        if rule.expires_at_us is not None and rule.expires_at_us <= now_us:
            yield rule.place, "it has expired, so it allows nothing"
        if not rule.is_deny and "*" in rule.methods:
            yield rule.place, "methods: '*' allows every method; name those that are needed"
        if not rule.is_deny and rule.resource in ("*", ">") and rule.kind in ("http", "emit", "secret"):
            yield rule.place, f"resource: {rule.resource!r} allows every one; name those that are needed"
        if rule.kind == "secret" and "*" not in rule.resource and rule.resource not in secrets:
            yield rule.place, f"there is no secret {rule.resource!r}{_near(rule.resource, [*secrets])}"


# Resources, by kind.


def _glob(pattern: str) -> Callable[[str], bool]:
    """`*` is any text; `\\*` is a star."""
    if not pattern:
        raise ValueError("it is empty; '*' is every one")
    parts = re.split(r"(\\.|\*)", pattern, flags=re.DOTALL)
    made = "".join(".*" if part == "*" else re.escape(_unescaped(part)) for part in parts)
    return _full(re.compile(made, re.DOTALL))


def _unescaped(part: str) -> str:
    return part[1:] if len(part) == 2 and part[0] == "\\" else part


def _full(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda target: pattern.fullmatch(target) is not None


def _escaped(target: str) -> str:
    return re.sub(r"([\\*])", r"\\\1", target)


def _subject_pattern(pattern: str) -> Callable[[str], bool]:
    check_target(pattern)
    return lambda target: matches(pattern, target)


_FILE = re.compile(r"(?:([A-Za-z0-9_-]+):)?(/.*)\Z", re.DOTALL)


def file_target(text: str) -> str:
    """The target of an ask for a file, `root:/path` or a real path: one spelling.

    Raises ValueError for what is neither.
    """
    found = _FILE.match(text)
    if found is None or "\0" in text:
        raise ValueError("a path is root:/path, where `files` has the root, or begins with a slash")
    path = re.sub("//+", "/", _without_dots(found[2]))
    return f"{found[1]}:{path}" if found[1] else path


def _file(pattern: str) -> Callable[[str], bool]:
    """`*` is text without a slash, `**` any text, `\\*` a star; alone, each is every file."""
    if pattern not in ("*", "**"):
        found = _FILE.match(pattern)
        if found is None or _without_dots(found[2]) != found[2]:
            raise ValueError("it is root:/path or /path, without dot segments, or '**' for every one")
    parts = re.split(r"(\\.|\*\*|\*)", "**" if pattern == "*" else pattern, flags=re.DOTALL)
    made = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(_unescaped(part))) for part in parts)
    return _full(re.compile(made, re.DOTALL))


_URL = re.compile(r"(https?)://([^/]+)(/.*)?\Z", re.DOTALL)


def url_target(text: str) -> str:
    """The target of an ask for a URL: no query, one spelling. Raises ValueError for what is no URL."""
    url = parse_url(text)
    return f"{url.scheme}://{url.authority}{_path(url.path)}"


def _path(path: str) -> str:
    """A path without dot segments, in which each character is written in one way."""

    def spelled(found: re.Match[str]) -> str:
        char = chr(int(found[1], 16))
        return char if re.fullmatch(r"[A-Za-z0-9._~-]", char) else f"%{found[1].upper()}"

    return _without_dots(re.sub(r"%([0-9A-Fa-f]{2})", spelled, path).replace("*", "%2A"))


def _without_dots(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _http(pattern: str) -> Callable[[str], bool]:
    found = _URL.match(pattern)
    scheme, host, path = (found[1], found[2], found[3]) if found else ("", pattern, None)
    entry = Entry.parse(host)
    if scheme and entry.port is None:
        entry = replace(entry, port=PORTS[scheme])
    way = None
    if path is not None:
        parts = re.split(r"(\*\*|\*)", re.sub(r"%2[aA]", "%2A", path))
        made = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
        way = re.compile(made, re.DOTALL)

    def is_matched(target: str) -> bool:
        try:
            url = parse_url(target)
        except ValueError:
            return False
        if (scheme and url.scheme != scheme) or not entry.covers(url):
            return False
        return way is None or way.fullmatch(_path(url.path)) is not None

    return is_matched


KINDS: Mapping[str, PolicyKind] = {
    kind.name: kind
    for kind in (
        PolicyKind(
            "http",
            ("get", "head", "options", "post", "put", "patch", "delete"),
            "a host as in `outbound`, or scheme://host[:port]/path (* is text without a slash, ** any)",
            _http,
            lambda target: target,
        ),
        PolicyKind("secret", ("use",), "the name of a secret", _glob, _escaped),
        PolicyKind(
            "emit",
            ("publish",),
            "a subject, or a pattern of subjects",
            _subject_pattern,
            lambda target: target,
        ),
        PolicyKind("stock", ("read",), "a ticker", _glob, _escaped),
        PolicyKind("state_data", ("read",), "the id of a state", _glob, _escaped),
        PolicyKind("tool", ("execute",), "the name of a tool", _glob, _escaped),
        PolicyKind("infer", ("chat",), "the name of a model", _glob, _escaped),
        PolicyKind(
            "file",
            ("read", "write", "delete", "list"),
            "root:/path, or a path (* is text without a slash, ** any)",
            _file,
            _escaped,
        ),
        PolicyKind("heap", ("read", "alloc", "write", "delete"), "the type of an object", _glob, _escaped),
        PolicyKind("control", ("call",), "<verb>:<route>", _glob, _escaped, is_optional=True),
    )
}


# Operations by another name than that of their kind.
_ALSO: Mapping[str, str] = {
    "execute": "tool.execute",
    "inference": "infer.chat",
    "alloc": "heap.alloc",
}
_ON_FILES = ("read", "write", "delete", "list")


def asked(op: str, target: str) -> Ask:
    """The ask that an operation by its name stands for: `http.post`, `secret.use`, `emit`.

    `read`, `write` and `delete` are about a file where the target is a path, and about the heap elsewhere.
    Raises ValueError, whose sentence names what there is.
    """
    name = op.lower()
    if name in _ON_FILES:
        name = f"file.{name}" if _FILE.match(target) else f"heap.{name}"
    kind, _, method = _ALSO.get(name, name).partition(".")
    if kind not in KINDS:
        raise ValueError(
            f"there is no operation {op!r}; they begin with {', '.join(KINDS)}{_near(kind, KINDS)}"
        )
    methods = KINDS[kind].methods
    method = method or methods[0]
    if method not in methods:
        raise ValueError(
            f"{kind} has no method {method!r}; it has {', '.join(methods)}{_near(method, methods)}"
        )
    spelled = {"http": url_target, "file": file_target}.get(kind)
    return Ask(kind, method, spelled(target) if spelled else target)


def _readings(ask: Ask) -> tuple[Ask, ...]:
    """The ask, and what it is to a server that takes escaped separators for separators."""
    if ask.kind != "http" or "%" not in ask.target:
        return (ask,)
    url = parse_url(ask.target)
    loose = _path(re.sub(r"%(2[Ff]|5[Cc])", "/", url.path))
    other = ask._replace(target=f"{url.scheme}://{url.authority}{loose}")
    return (ask,) if other.target == ask.target else (ask, other)


# Reading files.

_TABLES = ("settings", "capability", "test")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "settings": ("mode",),
    "capability": ("name", "resource", "methods", "routes", "effect", "expires_minutes", "expires_at"),
    "test": ("route", "op", "target", "expect"),
}


def load(paths: Sequence[str | Path]) -> Rules:
    """The rules of these files. Raises Faults with every E111 in all of them, by line and column."""
    faults: list[Fault] = []
    policies = []
    for path in map(Path, paths):
        name = str(path)
        try:
            text = path.read_bytes().decode()
            document = tomllib.loads(text)
        except OSError as err:
            faults.append(Fault(name, 1, 1, "E107", f"the policy cannot be read: {err.strerror}"))
        except UnicodeDecodeError:
            faults.append(Fault(name, 1, 1, "E111", "the policy is not UTF-8 text"))
        except tomllib.TOMLDecodeError as err:
            found = re.search(r"\(at line (\d+), column (\d+)\)", str(err))
            line, column = (int(found[1]), int(found[2])) if found else (text.count("\n") + 1, 1)
            what = re.sub(r" \(at .*", "", str(err))
            faults.append(Fault(name, line, column, "E111", f"the policy is not TOML: {what}"))
        except (ValueError, RecursionError) as err:  # a number of too many digits, lists nested too deep
            faults.append(Fault(name, 1, 1, "E111", f"the policy cannot be read: {err}"))
        else:
            reader = _Reader(name, text)
            policies.append(reader.read(document))
            faults += reader.faults
    if faults:
        raise Faults(faults)
    return Rules(tuple(policies))


class _Reader:
    """Reads one file, and finds what is wrong with it."""

    def __init__(self, file: str, text: str) -> None:
        self.faults: list[Fault] = []
        self._file = file
        self._lines = text.splitlines()
        heads = [
            (number, found[1]) for number, line in enumerate(self._lines) if (found := _HEADER.match(line))
        ]
        self._heads = heads

    def read(self, document: Mapping[str, Any]) -> Policy:
        for name in document:
            if name not in _TABLES:
                self._fault((self._table(name, 0), None), f"there is no table {name!r}{_near(name, _TABLES)}")
        settings = document.get("settings", {})
        mode = self._settings(settings) if isinstance(settings, dict) else "enforce"
        return Policy(
            Path(self._file).name,
            tuple(self._entries(document, "capability", self._rule)),
            tuple(self._entries(document, "test", self._case)),
            mode == "shadow",
        )

    def _settings(self, settings: Mapping[str, Any]) -> str:
        at = self._table("settings", 0)
        self._check_keys("settings", settings, at)
        mode = settings.get("mode", "enforce")
        if mode not in ("enforce", "shadow"):
            self._fault((at, "mode"), f"mode is 'enforce' or 'shadow', not {mode!r}")
        return str(mode)

    def _entries(
        self, document: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], int | None], Any]
    ) -> Iterator[Any]:
        entries = document.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self._fault((self._table(name, 0), None), f"{name} is a list of tables: write [[{name}]]")
            return
        # A header inside of a text would shift the places: then none is better than a wrong one.
        is_clear = sum(head == name for _, head in self._heads) == len(entries)
        for number, entry in enumerate(entries):
            at = self._table(name, number) if is_clear else None
            self._check_keys(name, entry, at)
            known = len(self.faults)
            made = read(entry, at)
            if len(self.faults) == known:
                yield made

    def _rule(self, entry: Mapping[str, Any], at: int | None) -> Rule | None:
        name = self._text(entry, "name", at)
        kind = KINDS.get(name)
        if kind is None:
            self._fault(
                (at, "name"), f"there is no kind {name!r}; there are {', '.join(KINDS)}{_near(name, KINDS)}"
            )
            return None
        resource = self._text(entry, "resource", at)
        is_matched: Callable[[str], bool] = lambda target: False  # noqa: E731
        try:
            is_matched = kind.matcher(resource) if isinstance(entry.get("resource"), str) else is_matched
        except ValueError as err:
            self._fault((at, "resource"), f"resource {resource!r}, {kind.resource}: {err}")
        methods = self._texts(entry, "methods", at)
        for method in methods:
            if method != "*" and method not in kind.methods:
                what = f"{name} has no method {method!r}; it has {', '.join(kind.methods)}"
                self._fault((at, "methods"), what + _near(method, kind.methods))
        routes = self._texts(entry, "routes", at) if "routes" in entry else ()
        effect = entry.get("effect", "allow")
        if effect not in ("allow", "deny"):
            self._fault((at, "effect"), f"effect is 'allow' or 'deny', not {effect!r}")
        minutes, moment = entry.get("expires_minutes"), entry.get("expires_at")
        if minutes is not None and not (type(minutes) is int and 1 <= minutes <= MAX_EXPIRES_MINUTES):
            what = f"expires_minutes is a whole number from 1 to {MAX_EXPIRES_MINUTES}, not {minutes!r}"
            self._fault((at, "expires_minutes"), what)
        ends_us = None
        if moment is not None:
            if getattr(moment, "tzinfo", None) is None:
                what = f"expires_at is a time with its zone, such as 2026-12-01T08:00:00Z, not {moment!s}"
                self._fault((at, "expires_at"), what)
            else:
                ends_us = int(moment.timestamp() * 1e6)
        if effect == "deny" and (minutes is not None or moment is not None):
            self._fault((at, "effect"), "a deny does not expire: remove the line when it is to end")
        place = self._place(at)
        return Rule(
            place,
            name,
            resource,
            frozenset(methods),
            tuple(routes),
            effect == "deny",
            minutes,
            ends_us,
            is_matched,
        )

    def _case(self, entry: Mapping[str, Any], at: int | None) -> Expectation | None:
        route, op, target = (self._text(entry, key, at) for key in ("route", "op", "target"))
        expect = entry.get("expect", "allow")
        if expect not in ("allow", "deny", "expired"):
            self._fault((at, "expect"), f"expect is 'allow', 'deny' or 'expired', not {expect!r}")
        try:
            ask = asked(op, target)
        except ValueError as err:
            self._fault((at, "op"), str(err))
            return None
        return Expectation(self._place(at), route, ask, expect)

    def _place(self, at: int | None) -> str:
        """How a verdict names the line: people know their files by name."""
        name = Path(self._file).name
        return name if at is None else f"{name}:{at + 1}"

    def _check_keys(self, table: str, entry: Mapping[str, Any], at: int | None) -> None:
        for key in entry:
            if key not in _KEYS[table]:
                self._fault((at, key), f"there is no key {key!r} in {table}{_near(key, _KEYS[table])}")

    def _text(self, entry: Mapping[str, Any], key: str, at: int | None) -> str:
        value = entry.get(key)
        if not isinstance(value, str):
            is_there = key in entry
            self._fault((at, key if is_there else None), f"{key} is {'a text' if is_there else 'missing'}")
            return ""
        return value

    def _texts(self, entry: Mapping[str, Any], key: str, at: int | None) -> tuple[str, ...]:
        value = entry.get(key)
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            is_there = key in entry
            what = f"{key} is {'a list of texts with at least one' if is_there else 'missing'}"
            self._fault((at, key if is_there else None), what)
            return ()
        return tuple(value)

    def _table(self, name: str, number: int) -> int | None:
        """The line of a table's header, from 0."""
        lines = [line for line, head in self._heads if head == name]
        return lines[number] if number < len(lines) else None

    def _fault(self, at: tuple[int | None, str | None], what: str) -> None:
        line, key = at
        if line is None:
            self.faults.append(Fault(self._file, 1, 1, "E111", what))
            return
        end = next((head for head, _ in self._heads if head > line), len(self._lines))
        begins = re.compile(rf"\s*(?=[\"']?{re.escape(key or '')}[\"']?\s*=)")
        for number in range(line, end) if key is not None else ():
            if found := begins.match(self._lines[number]):
                self.faults.append(Fault(self._file, number + 1, found.end() + 1, "E111", what))
                return
        column = len(self._lines[line]) - len(self._lines[line].lstrip()) + 1
        self.faults.append(Fault(self._file, line + 1, column, "E111", what))


def _near(text: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(text, [*known], n=1)
    return f". Did you mean {found[0]!r}?" if found else ""
