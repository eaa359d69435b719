"""The forms of requests: which fields each has, what they may be, and how one is read.

Nothing here knows what is done. What is read has every field, of its type and within its bounds; everything
else is refused with the field's name and what it should be.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType
from typing import Any, TypeVar

import orjson

from processor.errors import Refusal
from processor.operate.edits import plain_of

_TEXT_CHARS = 500
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

T = TypeVar("T")


def _field(help: str, default: Any = MISSING, *, least: int = 0, most: int = 0) -> Any:
    """A field of a request: what it means, and what it may be."""
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Which routes `status` is about."""

    route: str = _field("only this route", "")
    after: str = _field("go on behind this route, as `next` said", "")


@dataclass(frozen=True, slots=True)
class BudgetQuery:
    """Which budgets are shown."""

    route: str = _field("only those of this route", "")
    after: str = _field("go on behind this budget, as `next` said", "")


@dataclass(frozen=True, slots=True)
class RouteOrder:
    """An order to a route: pause, or go on."""

    route: str = _field("the route")
    by: str = _field("who wants it")
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class ResetOrder:
    """Where a route is to read from."""

    route: str = _field("the route")
    to: int | str = _field("start, a sequence of the input, or a time with its zone")
    by: str = _field("who wants it")
    reason: str = _field("why", "")
    keep_context: bool = _field("keep what the route remembers", False)


@dataclass(frozen=True, slots=True)
class DeadLetterQuery:
    """Which dead letters are listed."""

    route: str = _field("only of this route", "")
    code: str = _field("only with this code, such as E304", "")
    since: str = _field("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    limit: int = _field("at most so many", 100, least=1, most=1000)
    after: int = _field("go on behind this place, as `next` said", 0)


@dataclass(frozen=True, slots=True)
class DeadLetterId:
    """Which dead letter is shown."""

    id: str = _field("its id, as `dlq.ls` has it")


@dataclass(frozen=True, slots=True)
class DeadLetterOrder:
    """Which dead letters are sent back or let go; `id`, or all of `route` that the others leave."""

    by: str = _field("who wants it")
    id: str = _field("only this one", "")
    route: str = _field("those of this route", "")
    code: str = _field("only with this code, such as E304", "")
    since: str = _field("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    reason: str = _field("why", "")
    limit: int = _field("at most so many, oldest first", 100, least=1, most=1000)


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """What of a context is read."""

    route: str = _field("the route")
    key: str = _field("whose context; with `key: none` it is empty", "")
    path: str = _field("a JSON pointer into it, or the name of an item", "")


@dataclass(frozen=True, slots=True)
class ContextListQuery:
    """Which contexts are read."""

    route: str = _field("the route")
    limit: int = _field("at most so many", 100, least=1, most=1000)
    after: int = _field("leave out the first so many, as `next` said", 0)


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Whose history is read."""

    route: str = _field("the route")
    key: str = _field("whose context; with `key: none` it is empty", "")
    limit: int = _field("the last so many", 100, least=1, most=1000)
    since: str = _field("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries of the audit are read."""

    event: str = _field("only these kinds, such as http,control", "")
    actor: str = _field("only by this actor; * stands for any text", "")
    route: str = _field("only of this route", "")
    decision: str = _field("only what was decided so: allow, deny, error or shadow", "")
    on: str = _field("only about this; * stands for any text", "")
    since: str = _field("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    until: str = _field("only until this time (with its zone), or so long ago", "")
    limit: int = _field("the newest so many", 100, least=1, most=1000)


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """With which keys the audit is verified."""

    vkey: str = _field("keys that sign the seals, each on a line; without one, that of the configuration", "")


@dataclass(frozen=True, slots=True)
class ContextRemoval:
    """What is taken out of a context."""

    route: str = _field("the route")
    by: str = _field("who wants it")
    key: str = _field("whose context; with `key: none` it is empty", "")
    path: str = _field("a JSON pointer into it, or the name of an item; empty: the whole context", "")
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class ElementRemoval:
    """Which end of a list is taken."""

    route: str = _field("the route")
    path: str = _field("a JSON pointer to a list, or the name of an item")
    by: str = _field("who wants it")
    key: str = _field("whose context; with `key: none` it is empty", "")
    first: bool = _field("take the first element and not the last", False)
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class ValueOrder:
    """What is put into a context."""

    route: str = _field("the route")
    value: object = _field('the value; {"$set": [...]} and the like stand for what JSON lacks')
    by: str = _field("who wants it")
    key: str = _field("whose context; with `key: none` it is empty", "")
    path: str = _field("a JSON pointer into it, or the name of an item", "")
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class GraphOrder:
    """What a graph is to be: the keys of a graph in a configuration, and who says so."""

    name: str = _field("the graph")
    nodes: list[Any] = _field("its nodes, as in a configuration")
    by: str = _field("who wants it")
    retry_policy: dict[str, Any] | None = _field("what becomes of executions that failed", None)
    store_config: dict[str, Any] | None = _field("the store of its runs", None)
    outputs: dict[str, Any] | None = _field("what a run returns", None)
    output: object = _field("where a document goes for each run that has ended", None)
    events: object = _field("where the events of its runs go", None)
    triggers: list[Any] | None = _field("what starts runs by itself", None)
    timeout_s: object = _field("seconds that a run may take", None)
    on_error: object = _field("finish or stop", None)
    strings_only: object = _field("whether inputs are texts", None)
    limits: dict[str, Any] | None = _field("how large a run may become", None)
    secrets: dict[str, Any] | None = _field("values by name, which are kept sealed", None)
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class GraphQuery:
    """Which graph is shown."""

    name: str = _field("the graph")
    version: str = _field("this version of it, and not the last one that was applied", "")


@dataclass(frozen=True, slots=True)
class GraphListQuery:
    """Which graphs, or kinds, are listed."""

    after: str = _field("go on behind this one, as `next` said", "")


@dataclass(frozen=True, slots=True)
class KindsOrder:
    """What a Runtime has."""

    runtime: str = _field("the name of the Runtime")
    namespace: str = _field("the namespace of its kinds")
    kinds: list[Any] = _field("each with its name, the schemas `inputs` and `outputs`, and names of secrets")


@dataclass(frozen=True, slots=True)
class TriggerOrder:
    """Which runs are started: one of `name`, or each of `runs`."""

    name: str = _field("the graph", "")
    inputs: dict[str, Any] | None = _field("inputs of its first node", None)
    store: dict[str, Any] | None = _field("values of its store", None)
    delay_ms: int = _field("so long from now", 0, least=0, most=366 * 86_400_000)
    run_id: str = _field("the id of the run; asked again with it, nothing is started again", "")
    runs: list[Any] | None = _field("up to 500 of these, each with the fields above", None)


@dataclass(frozen=True, slots=True)
class RunListQuery:
    """Which runs are listed."""

    graph: str = _field("only of this graph", "")
    state: str = _field("only in this state: running, success, failed or cancelled", "")
    since: str = _field("only since this time (with its zone), or of the last 30s, 10m, 2h or 7d", "")
    limit: int = _field("the newest so many", 100, least=1, most=1000)
    after: int = _field("go on behind this place, as `next` said", 0)


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which run is shown."""

    run: str = _field("the run")


@dataclass(frozen=True, slots=True)
class RunOrder:
    """An order to a run: cancel it, let it pause, or go on."""

    run: str = _field("the run")
    by: str = _field("who wants it")
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class RetryOrder:
    """What of a run is run again: all that failed, or one execution."""

    run: str = _field("the run")
    by: str = _field("who wants it")
    id: str = _field("asked again with it, nothing is done again", "")
    execution: str = _field("only this execution, as `run` names it", "")
    after: bool = _field("also what came of it, whatever its state", False)
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class SignalOrder:
    """What a run that waits is told."""

    run: str = _field("the run")
    by: str = _field("who says so")
    signal: str = _field("the signal that a Wait names, or its execution; empty: all that wait", "")
    value: object = _field("what the Wait returns as `value`", None)
    reason: str = _field("why", "")


@dataclass(frozen=True, slots=True)
class SecretsQuery:
    """Which execution needs its secrets."""

    run: str = _field("the run, as the execution names it")
    x: str = _field("the execution")
    key: str = _field("the public key (X25519, base64) that they are sealed to")


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
            hint = f"did you mean {near[0]!r}?" if near else f"fields are {listed_briefly(known) or 'none'}"
            raise Refusal("E601", f"{name[:64]!r} is not a field of this request; {hint}")
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
    "list[Any]": ((list,), "a list"),
    "list[Any] | None": ((list, NoneType), "a list"),
    "dict[str, Any] | None": ((dict, NoneType), "an object"),
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


def type_text(each: Field[Any]) -> str:
    said = "any value" if each.type == "object" else _TYPES[str(each.type)][1]
    return said if each.default is MISSING else f"{said} ({orjson.dumps(each.default).decode()})"


def listed_briefly(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
