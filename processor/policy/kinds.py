"""What lines of policies are about: the kinds, their resources, and the one spelling of what is asked for.

What another reader of a path could take for another path has two readings (`readings`); of everything else an
ask is the only spelling.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from processor.address import PORTS, Entry, parse_url
from processor.subject import check_target, matches

_SHOWN_CHARS = 300  # of a target in a sentence


class Ask(NamedTuple):
    """One thing that a guest wants to do: `http post https://api.example.com/v1/pay`."""

    kind: str
    method: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} {self.method} {self.target[:_SHOWN_CHARS]}"


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """What lines of one kind are about."""

    name: str
    methods: tuple[str, ...]
    resource: str  # what it is, for people
    matcher: Callable[[str], Callable[[str], bool]]  # of a pattern. Raises ValueError
    pattern: Callable[[str], str]  # the pattern that only this target matches
    samples: Callable[[str], Sequence[str]]  # targets of a pattern that stand for all of them
    is_optional: bool = False  # asked for only where some line of the file is of this kind


def _glob(pattern: str) -> Callable[[str], bool]:
    return _full(re.compile(glob_regex(pattern), re.DOTALL))


def glob_regex(pattern: str) -> str:
    """The regular expression of a pattern of names: `*` is any text; `\\*` is a star. Raises ValueError."""
    if not pattern:
        raise ValueError("it is empty; '*' is every one")
    return "".join(".*" if part in ("*", "**") else re.escape(_unescaped(part)) for part in _parts(pattern))


def _glob_samples(pattern: str) -> Sequence[str]:
    return ["".join(_ANY if part in ("*", "**") else _unescaped(part) for part in _parts(pattern))]


# What no pattern names: a pattern that matches it in the place of a star has a star there, too.
_ANY = "\ue000"
_MANY = 50  # parts in the place of a pattern for any number of them


def _parts(pattern: str) -> list[str]:
    """A pattern as stars, escapes and what is between them."""
    return re.split(r"(\\.|\*\*|\*)", pattern, flags=re.DOTALL)


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


def _file_samples(pattern: str) -> Sequence[str]:
    parts = _parts("**" if pattern == "*" else pattern)
    return [
        "".join({"*": _ANY, "**": many}.get(part, _unescaped(part)) for part in parts)
        for many in (_ANY, "/".join([_ANY] * _MANY))
    ]


def _subject_samples(pattern: str) -> Sequence[str]:
    tokens = pattern.replace("*", _ANY).split(".")
    if tokens[-1] != ">":
        return [".".join(tokens)]
    return [".".join([*tokens[:-1], *[_ANY] * many]) for many in (1, _MANY)]


def split_file(pattern: str) -> tuple[str, str]:
    """The root that a pattern names, or "", and its path. Raises ValueError."""
    found = _FILE.match(pattern)
    if found is None or _without_dots(found[2]) != found[2]:
        raise ValueError("it is root:/path or /path, without dot segments, or '**' for every one")
    return found[1] or "", found[2]


def _file(pattern: str) -> Callable[[str], bool]:
    """`*` is text without a slash, `**` any text, `\\*` a star; alone, each is every file."""
    if pattern not in ("*", "**"):
        split_file(pattern)
    parts = _parts("**" if pattern == "*" else pattern)
    made = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(_unescaped(part))) for part in parts)
    return _full(re.compile(made, re.DOTALL))


_parsed = lru_cache(16)(parse_url)  # every line of a policy looks at the same one
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


def split_http(pattern: str) -> tuple[str, Entry, str | None]:
    """The scheme of a pattern, or "", its host, and its path where it has one. Raises ValueError."""
    found = _URL.match(pattern)
    if found is None:
        return "", Entry.parse(pattern), None
    entry = Entry.parse(found[2])
    entry = replace(entry, port=PORTS[found[1]]) if entry.port is None else entry
    return found[1], entry, found[3] and re.sub(r"%2[aA]", "%2A", found[3])


def _http(pattern: str) -> Callable[[str], bool]:
    scheme, entry, path = split_http(pattern)
    way = None
    if path is not None:
        parts = re.split(r"(\*\*|\*)", path)
        made = "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
        way = re.compile(made, re.DOTALL)

    def is_matched(target: str) -> bool:
        try:
            url = _parsed(target)
        except ValueError:
            return False
        if (scheme and url.scheme != scheme) or not entry.covers(url):
            return False
        return way is None or way.fullmatch(_path(url.path)) is not None

    return is_matched


def _http_samples(pattern: str) -> Sequence[str]:
    scheme, entry, path = split_http(pattern)
    schemes = [scheme] if scheme else ["http", "https"]
    port = "" if entry.port is None else f":{entry.port}"
    if entry.network is not None:
        ends = (entry.network[0], entry.network[-1])
        hosts = [f"[{address}]" if address.version == 6 else str(address) for address in ends]
    elif entry.name == "*":
        hosts = ["any.example", "any-other.test", "9.9.9.9"]
    else:
        hosts = [f"any-name{entry.name}" if entry.name.startswith(".") else entry.name]
    paths = _file_samples((path or "/**").replace("\\", "\\\\"))
    return [f"{scheme}://{name}{port}{way}" for scheme in schemes for name in hosts for way in paths]


_NAMES = (_glob, _escaped, _glob_samples)

KINDS: Mapping[str, PolicyKind] = {
    kind.name: kind
    for kind in (
        PolicyKind(
            "http",
            ("get", "head", "options", "post", "put", "patch", "delete"),
            "a host as in `outbound`, or scheme://host[:port]/path (* is text without a slash, ** any)",
            _http,
            lambda target: target,
            _http_samples,
        ),
        PolicyKind("secret", ("use",), "the name of a secret", *_NAMES),
        PolicyKind(
            "emit",
            ("publish",),
            "a subject, or a pattern of subjects",
            _subject_pattern,
            lambda target: target,
            _subject_samples,
        ),
        PolicyKind("stock", ("read",), "a ticker", *_NAMES),
        PolicyKind("state_data", ("read",), "the id of a state", *_NAMES),
        PolicyKind("tool", ("execute",), "the name of a tool", *_NAMES),
        PolicyKind("infer", ("chat", "embed"), "the name of a model", *_NAMES),
        PolicyKind(
            "file",
            ("read", "write", "delete", "list"),
            "root:/path, or a path (* is text without a slash, ** any)",
            _file,
            _escaped,
            _file_samples,
        ),
        PolicyKind(
            "heap",
            ("read", "alloc", "write", "delete"),
            "the type of an object",
            _glob,
            _escaped,
            _glob_samples,
        ),
        PolicyKind(
            "control",
            ("call",),
            "<verb>:<route>",
            _glob,
            _escaped,
            _glob_samples,
            is_optional=True,
        ),
    )
}


# Operations by another name than that of their kind.
_ALSO: Mapping[str, str] = {
    "execute": "tool.execute",
    "inference": "infer.chat",
    "embed": "infer.embed",
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
            f"there is no operation {op!r}; they begin with {', '.join(KINDS)}{near(kind, KINDS)}"
        )
    methods = KINDS[kind].methods
    method = method or methods[0]
    if method not in methods:
        raise ValueError(
            f"{kind} has no method {method!r}; it has {', '.join(methods)}{near(method, methods)}"
        )
    spelled = {"http": url_target, "file": file_target}.get(kind)
    return Ask(kind, method, spelled(target) if spelled else target)


def readings(ask: Ask) -> tuple[Ask, ...]:
    """The ask, and what it is to a server that takes escaped separators for separators."""
    if ask.kind != "http" or "%" not in ask.target:
        return (ask,)
    url = parse_url(ask.target)
    loose = _path(re.sub(r"%(2[Ff]|5[Cc])", "/", url.path))
    other = ask._replace(target=f"{url.scheme}://{url.authority}{loose}")
    return (ask,) if other.target == ask.target else (ask, other)


def quoted(text: str) -> str:
    """A text as TOML writes it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def near(text: str, known: Iterable[str]) -> str:
    """The nearest of what there is, as a sentence behind another one; empty where nothing is near."""
    found = difflib.get_close_matches(text, [*known], n=1)
    return f". Did you mean {found[0]!r}?" if found else ""
