"""Subjects: what a valid one is, which patterns meet, and how an output's subject is made from data.

`config` parses templates here when it loads; `worker` renders them for each output; `jetstream` and the
command line use the checks. Nothing here knows a stream or a connection.

Invariant: whatever the data, `Template.render` returns a subject that its `pattern` matches, made of the
template's own literals and one safe token per placeholder, or raises E308. A value is never escaped or
shortened to make it fit, so that a listener finds exactly the value that the data holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Generic, TypeVar

from processor.errors import ProcessorError
from processor.model import SAFE_TOKEN

# A PUB line over the server's max_control_line (4096 bytes) closes the connection; the app stream's own
# prefix, a reply subject and the sizes share that line.
MAX_SUBJECT_BYTES = 1024

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FIELD = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*\Z")
_INPUT_TOKEN = re.compile(r"subject\.([1-9][0-9]?)\Z")
# Where data must never be sent: subjects that the server serves, and replies to requests in flight.
# Key-value, object and MQTT subjects are kept in ordinary streams and may be written like any other.
_SERVED = re.compile(r"\$(?!KV\.|O\.|MQTT\.)|_INBOX(?:\.|\Z)")


def check_subject(text: str, *, wildcards: bool = True) -> str:
    """Return `text` if it is a subject (or, with `wildcards`, a pattern); else ValueError says why not."""
    if not text:
        raise ValueError("a subject cannot be empty")
    if _SURROGATE.search(text):
        raise ValueError(f"{_show(text)} is not UTF-8")
    if len(text.encode()) > MAX_SUBJECT_BYTES:
        raise ValueError(f"{_show(text)} is longer than {MAX_SUBJECT_BYTES} bytes")
    tokens = text.split(".")
    for position, token in enumerate(tokens):
        if not token:
            raise ValueError(f"{_show(text)} has an empty token: two dots in a row, or one at an end")
        if token in ("*", ">"):
            if not wildcards:
                raise ValueError(
                    f"{_show(text)} has the wildcard '{token}', where one exact subject is needed"
                )
            if token == ">" and position != len(tokens) - 1:
                raise ValueError(f"{_show(text)} has '>' before its end; use '*' for one token")
        elif not SAFE_TOKEN.match(token):
            raise ValueError(
                f"{_show(text)} has the token {_show(token)}; a token is 1 to 256 characters"
                " without white space, '*', '>' or control characters"
            )
    return text


def check_target(text: str) -> str:
    """Return `text` if messages may be sent to that subject or pattern; else ValueError says why not."""
    check_subject(text)
    if text.split(".", 1)[0] in ("*", ">"):
        raise ValueError(f"{_show(text)} starts with a wildcard; its first token must be fixed")
    if _SERVED.match(text):
        raise ValueError(f"{_show(text)} belongs to the NATS server; outputs cannot be sent there")
    return text


def app_root(app: str) -> str:
    """What every subject of an app's own stream begins with; `context.subjects` has what follows."""
    return f"p.{app}"


def schedule_subject(app: str, route: str) -> str:
    """Where an app's stream keeps the schedule of a route's input."""
    return f"{app_root(app)}.sched.{route}"


def api_subject(app: str, verb: str) -> str:
    """The subject on which requests of that verb are taken."""
    return f"ctl.{app}.api.{verb}"


def republished(app: str, subject: str) -> str:
    """The subject on which onlookers receive what an app commits for a public subject (or pattern)."""
    return f"live.{app}.{subject}"


def app_patterns(app: str) -> tuple[str, ...]:
    """The patterns of all that an app itself publishes to: its stream, what it shows, and its requests."""
    return (f"{app_root(app)}.>", republished(app, ">"), f"ctl.{app}.>")


def matches(pattern: str, subject: str) -> bool:
    """Whether `subject` (without wildcards) is one of the subjects that `pattern` stands for."""
    wanted, found = pattern.split("."), subject.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(found) > position
        if position >= len(found) or token not in ("*", found[position]):
            return False
    return len(wanted) == len(found)


def overlaps(a: str, b: str) -> bool:
    """Whether some subject is matched by both patterns."""
    left, right = a.split("."), b.split(".")
    for x, y in zip(left, right, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(left) == len(right)


def covers(pattern: str, other: str) -> bool:
    """Whether every subject that `other` stands for is one of those of `pattern`."""
    wanted, found = pattern.split("."), other.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(found) > position
        if position >= len(found) or found[position] == ">" or token not in ("*", found[position]):
            return False
    return len(wanted) == len(found)


def intersection(a: str, b: str) -> str | None:
    """The pattern of the subjects that both stand for; None where there are none."""
    left, right, shared = a.split("."), b.split("."), list[str]()
    for position in range(max(len(left), len(right))):
        if position >= min(len(left), len(right)):
            return None
        x, y = left[position], right[position]
        if x == ">":
            return ".".join([*shared, *right[position:]])
        if y == ">":
            return ".".join([*shared, *left[position:]])
        if x != y and "*" not in (x, y):
            return None
        shared.append(y if x == "*" else x)
    return ".".join(shared)


T = TypeVar("T")


@dataclass(slots=True)
class _Node(Generic[T]):
    """What patterns that begin with the same tokens have in common."""

    ends: list[tuple[int, T]] = field(default_factory=list)  # of patterns that end here, with their places
    below: dict[str, _Node[T]] = field(default_factory=dict)  # by token


class SubjectIndex(Generic[T]):
    """Values by their patterns: those whose pattern meets another are found without a look at all of them."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._root = _Node[T]()
        for place, (pattern, value) in enumerate(entries):
            node = self._root
            for token in pattern.split("."):
                node = node.below.setdefault(token, _Node())
            node.ends.append((place, value))

    def meeting(self, pattern: str) -> list[T]:
        """The values of every pattern that `overlaps` with this one, in the order of their entries."""
        found: list[tuple[int, T]] = []
        level = [self._root]
        for token in pattern.split("."):
            if token == ">":
                level = [child for node in level for child in node.below.values()]
                for node in level:  # it grows by what is below
                    found += node.ends
                    level += node.below.values()
                break
            for node in level:
                if ">" in node.below:
                    found += node.below[">"].ends
            if token == "*":
                level = [child for node in level for name, child in node.below.items() if name != ">"]
            else:
                level = [node.below[name] for node in level for name in {token, "*"} if name in node.below]
        else:
            for node in level:
                found += node.ends
        return [value for _, value in sorted(found, key=itemgetter(0))]


_OWN = frozenset({"key", "session"})
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Template:
    """A subject with placeholders: `{key}`, `{session}`, `{subject.N}`, or `{a.b}` of the output document.

    `key`, `session` and `subject` cannot be used as names of document fields.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """The template written as `text`; ValueError says what is wrong with it."""
        template = cls(text)
        for name in template._names:
            if name.startswith("subject.") or name == "subject":
                if not _INPUT_TOKEN.match(name):
                    raise ValueError(
                        f"{{{name}}} in {_show(text)} is no token of the input subject; they are"
                        f" {{subject.1}},"
                        " {subject.2} and so on"
                    )
            elif not _FIELD.match(name):
                raise ValueError(
                    f"{{{name}}} in {_show(text)} is no placeholder; use {{key}}, {{session}}, {{subject.N}}"
                    " or the"
                    " name of a field of the output"
                )
        if re.search(r"[{}]", _PLACEHOLDER.sub("", text)):
            raise ValueError(f"{_show(text)} has a brace without its partner")
        # Data in the first token could otherwise address `$JS.API`, an inbox, or another application.
        if _PLACEHOLDER.search(text.split(".", 1)[0]):
            raise ValueError(f"{_show(text)} starts with a placeholder; its first token must be fixed")
        check_subject(_PLACEHOLDER.sub("x", text), wildcards=False)
        if _SERVED.match(text):
            raise ValueError(f"{_show(text)} belongs to the NATS server; outputs cannot be sent there")
        return template

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(_PLACEHOLDER.findall(self.text))

    @cached_property
    def _pieces(self) -> tuple[str, ...]:
        """Literals at even places, placeholder names at odd ones."""
        return tuple(_PLACEHOLDER.split(self.text))

    @cached_property
    def pattern(self) -> str:
        """The narrowest NATS pattern that matches every subject this template can render."""
        # Placeholders go first: `{a.b}` holds a dot that separates no tokens.
        tokens = _PLACEHOLDER.sub("{}", self.text).split(".")
        return ".".join("*" if "{}" in token else token for token in tokens)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields of the output document that it needs, each once, in the order that `render` takes."""
        return tuple(dict.fromkeys(n for n in self._names if n not in _OWN and not _INPUT_TOKEN.match(n)))

    @cached_property
    def subject_tokens(self) -> tuple[int, ...]:
        """The tokens of the input subject that it needs, counted from 1, in ascending order."""
        return tuple(sorted({int(found[1]) for n in self._names if (found := _INPUT_TOKEN.match(n))}))

    @property
    def needs_key(self) -> bool:
        return "key" in self._names

    @property
    def needs_session(self) -> bool:
        return "session" in self._names

    def render(
        self, *, key: str = "", subject: str = "", fields: Sequence[str] = (), session: str = ""
    ) -> str:
        """The subject for one output; `fields` are the values of `self.fields`, in that order.

        Raises E308, naming the placeholder, where a value is missing or is no safe token.
        """
        if len(self._pieces) == 1:
            return self.text
        values = dict(zip(self.fields, fields, strict=True))
        values |= {"key": key, "session": session}
        tokens = subject.split(".") if subject else []
        values |= {f"subject.{n}": tokens[n - 1] for n in self.subject_tokens if n <= len(tokens)}
        out = [
            piece if place % 2 == 0 else self._safe(piece, values.get(piece, ""))
            for place, piece in enumerate(self._pieces)
        ]
        rendered = "".join(out)
        if len(rendered.encode()) > MAX_SUBJECT_BYTES:
            raise ProcessorError(
                "E308", f"'{self.text}' becomes a subject longer than {MAX_SUBJECT_BYTES} bytes"
            )
        return rendered

    def _safe(self, name: str, value: str) -> str:
        # A lone surrogate passes the character rules but cannot be encoded onto the wire.
        if SAFE_TOKEN.match(value) and not _SURROGATE.search(value):
            return value
        found = "has no value" if not value else f"is {_show(value)}, which cannot be one token of a subject"
        raise ProcessorError(
            "E308",
            f"{{{name}}} of '{self.text}' {found}",
            remedy="A token is 1 to 256 characters without white space, '.', '*', '>' or control characters.",
        )


def _show(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
