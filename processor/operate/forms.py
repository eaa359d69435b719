"""The forms of requests: which fields each has, what they may be, and how one is read.

Nothing here knows what is done. What is read has every field, of its type and within its bounds; everything
else is refused with the field's name and what it should be.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

import orjson

from processor.jetstream import Refusal
from processor.operate.edits import plain_of

_TEXT_CHARS = 500
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

T = TypeVar("T")


def _has(help: str, default: Any = MISSING, *, least: int = 0, most: int = 0) -> Any:
    """A field of a request: what it means, and what it may be."""
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class Look:
    """Which routes `status` is about."""

    route: str = _has("only this route", "")
    after: str = _has("go on behind this route, as `next` said", "")


@dataclass(frozen=True, slots=True)
class Order:
    """What is said to a route."""

    route: str = _has("the route")
    by: str = _has("who wants it")
    reason: str = _has("why", "")


@dataclass(frozen=True, slots=True)
class ResetOrder:
    """Where a route is to read from."""

    route: str = _has("the route")
    to: int | str = _has("start, a sequence of the input, or a time with its zone")
    by: str = _has("who wants it")
    reason: str = _has("why", "")
    keep_context: bool = _has("keep what the route remembers", False)


@dataclass(frozen=True, slots=True)
class DeadLetterQuery:
    """Which dead letters are listed."""

    route: str = _has("only of this route", "")
    code: str = _has("only with this code, such as E304", "")
    since: str = _has("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    limit: int = _has("at most so many", 100, least=1, most=1000)
    after: int = _has("go on behind this place, as `next` said", 0)


@dataclass(frozen=True, slots=True)
class DeadLetterId:
    """Which dead letter is shown."""

    id: str = _has("its id, as `dlq.ls` has it")


@dataclass(frozen=True, slots=True)
class DeadLetterOrder:
    """Which dead letters are sent back or let go; `id`, or all of `route` that the others leave."""

    by: str = _has("who wants it")
    id: str = _has("only this one", "")
    route: str = _has("those of this route", "")
    code: str = _has("only with this code, such as E304", "")
    since: str = _has("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    reason: str = _has("why", "")
    limit: int = _has("at most so many, oldest first", 100, least=1, most=1000)


@dataclass(frozen=True, slots=True)
class Place:
    """What of a context is read."""

    route: str = _has("the route")
    key: str = _has("whose context; with `key: none` it is empty", "")
    path: str = _has("a JSON pointer into it, or the name of an item", "")


@dataclass(frozen=True, slots=True)
class Contexts:
    """Which contexts are read."""

    route: str = _has("the route")
    limit: int = _has("at most so many", 100, least=1, most=1000)
    after: int = _has("leave out the first so many, as `next` said", 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """Whose history is read."""

    route: str = _has("the route")
    key: str = _has("whose context; with `key: none` it is empty", "")
    limit: int = _has("the last so many", 100, least=1, most=1000)
    since: str = _has("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")


@dataclass(frozen=True, slots=True)
class Removal:
    """What is taken out of a context."""

    route: str = _has("the route")
    by: str = _has("who wants it")
    key: str = _has("whose context; with `key: none` it is empty", "")
    path: str = _has("a JSON pointer into it, or the name of an item; empty: the whole context", "")
    reason: str = _has("why", "")


@dataclass(frozen=True, slots=True)
class Pop:
    """Which end of a list is taken."""

    route: str = _has("the route")
    path: str = _has("a JSON pointer to a list, or the name of an item")
    by: str = _has("who wants it")
    key: str = _has("whose context; with `key: none` it is empty", "")
    first: bool = _has("take the first element and not the last", False)
    reason: str = _has("why", "")


@dataclass(frozen=True, slots=True)
class Value:
    """What is put into a context."""

    route: str = _has("the route")
    value: object = _has('the value; {"$set": [...]} and the like stand for what JSON lacks')
    by: str = _has("who wants it")
    key: str = _has("whose context; with `key: none` it is empty", "")
    path: str = _has("a JSON pointer into it, or the name of an item", "")
    reason: str = _has("why", "")


def read_request(model: type[T], payload: bytes) -> T:
    """The request that a payload holds; nothing at all is one without fields. Raises Refusal E601."""
    try:
        body = plain_of(payload) if payload.strip() else {}
    except ValueError as err:
        raise Refusal("E601", f"the request {err}") from err
    if not isinstance(body, dict):
        raise Refusal("E601", f"the request must be a JSON object, not {type(body).__name__}")
    known = {each.name: each for each in fields(model)}  # type: ignore[arg-type]
    for name in body:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields are {some(known) or 'none'}"
            raise Refusal("E601", f"{name[:64]!r} is no field of this request; {hint}")
    values = {}
    for name, each in known.items():
        if name in body:
            values[name] = _checked(each, body[name])
        elif each.default is MISSING:
            raise Refusal("E601", f"`{name}` is missing: {each.metadata['help']}")
    return model(**values)


_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "bool": ((bool,), "true or false"),
    "int | str": ((int, str), "text or a whole number"),
}


def _checked(each: Field[Any], value: Any) -> Any:
    if each.type == "object":
        return value
    types, said = _TYPES[str(each.type)]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Refusal("E601", f"`{each.name}` must be {said}: {each.metadata['help']}")
    if isinstance(value, str):
        if not value and each.default is MISSING:
            raise Refusal("E601", f"`{each.name}` is empty: {each.metadata['help']}")
        if len(value) > _TEXT_CHARS:
            raise Refusal("E601", f"`{each.name}` has {len(value)} characters; {_TEXT_CHARS} are the most")
        if each.name == "route" and value and not _NAME.match(value):
            raise Refusal("E601", f"`route` is {value!r}; a name has letters, digits, - and _, at most 64")
    least, most = each.metadata["least"], each.metadata["most"]
    if isinstance(value, int) and not isinstance(value, bool) and (value < least or (most and value > most)):
        upto = f"from {least} to {most}" if most else f"{least} or more"
        raise Refusal("E601", f"`{each.name}` is {value}; it must be {upto}")
    return value


def form(each: Field[Any]) -> str:
    said = "any value" if each.type == "object" else _TYPES[str(each.type)][1]
    return said if each.default is MISSING else f"{said} ({orjson.dumps(each.default).decode()})"


def some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
