"""What people, and other programs, do to the contexts of a route: look, change, take out, bring in.

An edit is one commit from outside of the route's owner. It reads the context and the position of its
partition from one view, and writes the changed context to where the owner would look for it, a record of who
did what and why, and the position with the fence of that view. So an edit and a commit of the owner never
mix: whichever comes first, the other is refused and starts from what is there then. The owner runs what it
had in hand again. The same commit tells it, so that one without messages lets go of what it remembers, too.

A path is a JSON pointer into the context (RFC 6901: `/totals/0`, with `~1` for `/` and `~0` for `~`); without
a slash in front it is the name of a top-level item. Values are Python's, of the types that a context keeps;
`value_of` and `values.encode` are their way from and to text.

What must stay true: an edit that returned is stored, once, however often it was tried; one that raised is
not, unless the error says that nobody knows. Whatever is in a position beside contexts stays as it is.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from processor.audit import AuditEntry
from processor.context import history
from processor.context.history import Author, History, Record
from processor.context.reading import read
from processor.context.route_chains import RouteChains
from processor.context.subjects import RouteSubjects, app_stream
from processor.context.visit import Visit
from processor.errors import BrokerError, ProcessorError
from processor.jetstream import (
    BATCH_MAX,
    EXPECTED,
    KEPT,
    Again,
    Broker,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
)
from processor.model import WHOLE_BYTES, ContextChange, partition_of
from processor.operate.control import UNSAID, read_pause
from processor.route import Route
from processor.sandbox import documents, objects
from processor.sandbox.bounds import KEY, Bounds, Exceeded, described
from processor.sandbox.values import TOMBSTONE, check_name, decode, encode
from processor.schema import Schema

EDIT_S = 10.0  # how long an edit tries to come between two commits of a busy owner
# How long an edit waits for owners whom another has cost work. They ask for that with their claims, so that
# edits in quick succession do not keep them from ever committing.
_HOLD_S = 5.0
_LOOK_S = 0.01
_PAUSE_S = 0.05
_HEADER_BYTES = 16 << 10  # room that a message keeps for its headers
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")
_ABSENT: Any = object()

Items = dict[str, bytes]  # a context as it is kept: encoded items by name
Steps = tuple[str, ...]
Change = Callable[[Items | None], Items | None]  # what a context is to be; None: that there is none


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit did to one context."""

    key: str
    changed: tuple[str, ...] = ()  # items that have another value now
    removed: tuple[str, ...] = ()
    bytes: int = 0  # size of the context now
    id: str = ""  # of the commit, as in the history; empty where nothing had to be changed
    value: Any = None  # what `pop` took

    def facts(self) -> dict[str, Any]:
        """What was done as a document, but for what `pop` took."""
        names = {"changed": list(self.changed), "removed": list(self.removed)}
        return {"key": self.key, **names, "bytes": self.bytes, "id": self.id}


class ContextEdits:
    """The contexts of one route, for callers that do not own them.

    Reading raises ProcessorError E328 for a path that leads to nothing. Every change raises that too, E303
    for a key that the route cannot have, E309, E310 and E318 to E320 for what may not be kept, E324 for more
    than one commit can hold, and BrokerError E401 where the route has not run yet, E405 where its owner
    leaves no gap, E410 and E412 where its position cannot be used; then nothing has changed. E404, where the
    server does not answer, says whether that is known. It returns when the change is stored.
    """

    def __init__(self, broker: Broker, route: Route) -> None:
        self._broker = broker
        self._route = route
        self._stream = app_stream(route.app)
        self._history = History(route.app, route.name, broker.max_payload)
        self._bounds = Bounds(route.limits)
        self._chains = RouteChains(RouteSubjects(route.app, route.name), route.audit.copy_ttl_s)

    # look

    async def get(self, key: str, path: str = "") -> Any:
        """The committed context of a key as a dict, or the value at `path` in it."""
        items = {name: value for name, value in (await self.items(key)).items() if value != TOMBSTONE}
        if not (steps := steps_of(path)):
            return {name: _decoded(name, value) for name, value in items.items()}
        target = _decoded(steps[0], _at(items, steps[0], steps))
        for step in steps[1:]:
            target = _at(target, step, steps)
        return target

    async def items(self, key: str) -> Items:
        """The committed context of a key as it is kept, encoded."""
        async for _, items in read(self._broker, self._route.app, self._route.name, key):
            return items
        raise self._absent(key)

    def _absent(self, key: str) -> ProcessorError:
        return ProcessorError("E328", f"route {self._route.name} has kept nothing for key {key!r}")

    def full(self) -> AsyncIterator[tuple[str, Items]]:
        """Every committed context with its key, encoded; each as one commit left it, not all as one did.

        Holds a few at a time in memory. An item that is values.TOMBSTONE was deleted, so that `init` does
        not set it again.
        """
        return read(self._broker, self._route.app, self._route.name)

    async def history(self, key: str, *, limit: int = 0, since_s: float = 0.0) -> list[Record]:
        """What changed in the context of a key, oldest first: the last `limit` records (0: all there are).

        Only those that were stored at `since_s` (seconds since 1970) or later. Records expire.
        """
        subject = self._history.subject("*", key)
        found: deque[Record] = deque(maxlen=limit or None)
        async for stored in self._broker.history(self._stream, [subject]):
            if stored.timestamp_s >= since_s:
                found.append(history.read(stored))
        return list(found)

    # change

    async def set(self, key: str, path: str, value: Any, author: Author) -> Edit:
        """Put a value to where `path` leads. What is around it has to be there; the context itself need not.

        In a list a path ends in an index that is there, or in `-` for behind its end. An empty path replaces
        the whole context, by a dict.
        """
        steps = steps_of(path)

        def change(items: Items | None) -> Items:
            if steps:
                return self._changed(items, steps, partial(_put, steps=steps, value=value))
            if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
                raise ProcessorError("E328", f"a context is a dict with names, not {_a(value)}")
            return {name: self._encoded(name, item) for name, item in value.items()}

        return (await self._edit({key: change}, author, "set"))[0]

    async def append(self, key: str, path: str, value: Any, author: Author) -> Edit:
        """Append a value to the list at `path`; a list that is not there begins empty."""
        steps = _required(path)

        def append_to(parent: Any) -> None:
            target = _found(parent, steps[-1])
            if target is _ABSENT:
                _put(parent, steps, [value])
            else:
                _listed(target, steps).append(value)

        change = partial(self._changed, steps=steps, act=append_to)
        return (await self._edit({key: change}, author, "append"))[0]

    async def pop(self, key: str, path: str, author: Author, *, is_first: bool = False) -> Edit:
        """Take the last (or first) element out of the list at `path`; it is the `value` of the result.

        E328 where the list is empty.
        """
        steps, taken = _required(path), [None]

        def pop_from(parent: Any) -> None:
            target = _listed(_at(parent, steps[-1], steps), steps)
            if not target:
                raise ProcessorError("E328", f"{_named(steps)} is empty")
            element = target[0 if is_first else -1]
            del target[0 if is_first else -1]
            taken[0] = element

        change = partial(self._changed, steps=steps, act=pop_from)
        [edit] = await self._edit({key: change}, author, "pop")
        return replace(edit, value=taken[0])

    async def delete(self, key: str, path: str, author: Author) -> Edit:
        """Remove what `path` leads to; with an empty path the context, which then starts again with `init`.

        A top-level item that is removed is not set again by `init`, as if the Runnable had deleted it.
        """
        steps = steps_of(path)

        def change(items: Items | None) -> Items | None:
            if items is None:
                raise self._absent(key)
            return self._changed(items, steps, partial(_delete, steps=steps)) if steps else None

        return (await self._edit({key: change}, author, "delete"))[0]

    async def put(
        self,
        contexts: Mapping[str, Items],
        author: Author,
        *,
        is_whole: bool = False,
        is_dry: bool = False,
    ) -> list[Edit]:
        """Bring in encoded items of several keys, in one commit, in this order.

        Items of the same name are replaced, others stay, unless `is_whole`: then a context is these items and
        nothing else. With `is_dry` nothing is stored, and the result says what would be.
        """
        changes: dict[str, Change] = {}
        for key, items in contexts.items():
            changes[key] = partial(_laid_over, given=self._checked(items), is_whole=is_whole)
        return await self._edit(changes, author, "import", is_dry=is_dry)

    async def update(self, key: str, change: Change, author: Author) -> Edit:
        """Commit what `change` makes of the encoded items of a key, None where it has none yet.

        It is asked again where another commit came in between, and must not do anything else.
        """
        return (await self._edit({key: change}, author, "set"))[0]

    def check(self, key: str, items: Mapping[str, bytes]) -> None:
        """Raise ProcessorError where these encoded items cannot be a context of the route; asks nobody."""
        self._check_key(key)
        checked = self._checked(items)
        self._check_size(key, checked, _size(checked))

    # the commit

    async def _edit(
        self, changes: Mapping[str, Change], author: Author, action: str, *, is_dry: bool = False
    ) -> list[Edit]:
        """Commit what `changes` make of contexts as they are, as soon as nobody else comes in between."""
        for key in changes:
            self._check_key(key)
        route, is_sent, until_s = self._route, False, 0.0
        try:
            async with asyncio.timeout(EDIT_S):
                while True:
                    try:
                        word = await self._broker.last_of(self._stream, [self._word])
                    except (Unknown, Again):
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    visit = await Visit.of(
                        self._broker, route.app, route.name, route.partitions, changes.keys()
                    )
                    if visit.is_held:
                        until_s = until_s or time.monotonic() + _HOLD_S
                        if time.monotonic() < until_s:
                            await asyncio.sleep(_LOOK_S)
                            continue
                    plan = self._plan(visit.contexts, changes, author, action)
                    if not plan.contexts or is_dry:
                        return plan.edits
                    entries = plan.entries(route, author, action) if route.audit.is_on else {}
                    recorded = visit.recorded(entries, self._chains, plan.id, self._broker.max_payload)
                    rewritten = visit.rewrite(plan.contexts, plan.id)
                    batch = [*plan.records, self._said(word, visit.epochs), *recorded, *rewritten]
                    if len(batch) > BATCH_MAX:
                        raise ProcessorError(
                            "E324",
                            f"the change needs {len(batch)} messages of a commit, which takes {BATCH_MAX}",
                            remedy="Change fewer items at a time.",
                        )
                    is_sent = True
                    if await self._commit(batch, plan):
                        return plan.edits
                    is_sent = False
        except TimeoutError:
            raise self._late(is_sent=is_sent) from None

    @property
    def _word(self) -> str:
        return RouteSubjects(self._route.app, self._route.name).pause

    def _said(self, word: Sequence[Stored], epochs: Mapping[int, int]) -> Outgoing:
        """The last order to the route's processors, with the new epochs of these partitions."""
        pause = read_pause(word[0].payload) if word else UNSAID
        body = {**pause.words(), "edited": {str(partition): epoch for partition, epoch in epochs.items()}}
        fence = str(word[0].sequence if word else 0)
        return Outgoing(self._word, orjson.dumps(body), {**KEPT, EXPECTED: fence})

    async def _commit(self, batch: Sequence[Outgoing], plan: _Plan) -> bool:
        """Whether the batch is stored; False where another process committed before."""
        is_in_doubt = False
        while True:
            await self._broker.connected()
            try:
                await self._broker.commit(batch)
                return True
            except WrongLastSequence:
                # Ours, when an earlier try was stored and only its answer was lost.
                return is_in_doubt and await self._is_recorded(plan)
            except Unknown:
                is_in_doubt = True
            except Again:
                await asyncio.sleep(_PAUSE_S)

    async def _is_recorded(self, plan: _Plan) -> bool:
        """Whether the history has the first record of the plan; asks the leader."""
        sequence = 1
        while True:
            try:
                stored = await self._broker.next_of(self._stream, plan.records[0].subject, sequence)
            except (Unknown, Again):
                await self._broker.connected()
                await asyncio.sleep(_PAUSE_S)
                continue
            if stored is None:
                return False
            if history.read(stored).id == plan.id:
                return True
            sequence = stored.sequence + 1

    def _plan(
        self, before: Mapping[str, Items], changes: Mapping[str, Change], author: Author, action: str
    ) -> _Plan:
        plan = _Plan(secrets.token_hex(8))
        at, keep_s = history.now(), self._route.edits_keep_s
        for key, change in changes.items():
            was = before[key]
            after = change(was or None)
            items = after or {}
            changed = [n for n, value in items.items() if value not in (was.get(n), TOMBSTONE)]
            removed = [n for n, value in was.items() if value != TOMBSTONE == items.get(n, TOMBSTONE)]
            size = _size(items)
            if items == was:
                plan.edits.append(Edit(key, bytes=size))
                continue
            self._check_size(key, items, size)
            plan.contexts[key] = None if after is None else _change_of(was, items, size)
            plan.edits.append(Edit(key, tuple(changed), tuple(removed), size, plan.id))
            record = Record(
                key,
                plan.id,
                at,
                {name: items[name] for name in changed},
                tuple(removed),
                is_gone=after is None,
                bytes=size,
                action=action,
                by=author.by,
                reason=author.reason,
            )
            partition = partition_of(key, self._route.partitions)
            plan.records.append(self._history.message(partition, record, keep_s))
        return plan

    def _late(self, *, is_sent: bool) -> BrokerError:
        name, seconds = self._route.name, f"{EDIT_S:g} s"
        if is_sent:
            return BrokerError(
                "E404",
                f"the NATS server did not say within {seconds} whether it stored the change",
                remedy="`processor context history` of the key has it, if it did.",
            )
        if not self._broker.is_connected:
            return BrokerError(
                "E404", f"the NATS server cannot be reached for {seconds}; nothing was changed"
            )
        return BrokerError(
            "E405",
            f"the owners of route {name} left no gap for the change for {seconds}; nothing was changed",
            remedy=f"Pause it first: processor pause CONFIG {name}",
        )

    # what may be kept

    def _changed(self, items: Items | None, steps: Steps, act: Callable[[Any], None]) -> Items:
        """`items` after `act` did something to the container around what `steps` lead to."""
        after = dict(items or {})
        name = steps[0]
        root = {name: _decoded(name, after[name])} if after.get(name, TOMBSTONE) != TOMBSTONE else {}
        parent: Any = root
        for step in steps[:-1]:
            parent = _at(parent, step, steps)
        act(parent)
        if objects.is_item(name) and len(steps) > 1 and steps[1] == "value" and _has_version(root[name]):
            root[name]["version"] += 1  # a program that has read it before is to notice
        after[name] = self._encoded(name, root[name]) if name in root else TOMBSTONE
        return after

    def _checked(self, items: Mapping[str, bytes]) -> Items:
        checked: Items = {}
        for name, value in items.items():
            try:
                checked[name] = value if value == TOMBSTONE else self._encoded(name, decode(value))
            except ValueError as err:
                raise ProcessorError("E309", f"context[{name[:80]!r}] cannot be kept: {err}") from None
        return checked

    def _encoded(self, name: str, value: Any) -> bytes:
        try:
            name.encode()
            check_name(name)
            self._bounds.check_text(name, ("context", KEY))
            item = encode(value, ("context", name), self._bounds)
            if objects.is_reserved(name):
                _check_object(name, item, self._route.reach.heap)
            return item
        except Exceeded as err:
            raise ProcessorError(err.code, str(err)) from None
        except UnicodeEncodeError:
            raise ProcessorError("E309", f"the name {name!r} of an item is not text") from None
        except ValueError as err:
            raise ProcessorError("E309", str(err)) from None

    def _check_key(self, key: str) -> None:
        name = self._route.name
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ProcessorError("E303", f"the key {key!r} is not text") from None
        if not self._route.is_keyed and key:
            raise ProcessorError(
                "E303", f"route {name} has `key: none` and one context, whose key is empty; not {key[:80]!r}"
            )

    def _check_size(self, key: str, items: Items, size: int) -> None:
        limit, room = self._route.limits.context_bytes, self._broker.max_payload - _HEADER_BYTES
        if size > limit:
            raise ProcessorError(
                "E310", f"the context of key {key!r} would hold {size} bytes (limit {limit})"
            )
        for name, value in items.items():
            if len(value) > room:
                raise ProcessorError(
                    "E310", f"context[{name[:80]!r}] has {len(value)} bytes; one item may have {room}"
                )


@dataclass(slots=True)
class _Plan:
    """What an edit is to commit."""

    id: str
    edits: list[Edit] = field(default_factory=list)
    contexts: dict[str, ContextChange | None] = field(default_factory=dict)
    records: list[Outgoing] = field(default_factory=list)

    def entries(self, route: Route, author: Author, action: str) -> dict[int, list[AuditEntry]]:
        """What the audit gets of the change: an entry for each context, by partition."""
        found: dict[int, list[AuditEntry]] = {}
        verb = f"context.{action}"
        for edit in self.edits:
            if edit.key not in self.contexts:
                continue
            data = {"key": edit.key, "changed": list(edit.changed), "removed": list(edit.removed)}
            entry = AuditEntry(
                "control",
                fate="committed",
                moment_us=time.time_ns() // 1000,
                route=route.name,
                actor=f"by:{author.by}",
                operation="call",
                target=f"{verb}:{route.name}",
                details={"verb": verb, "reason": author.reason, "result": "done", "data": data},
            )
            found.setdefault(partition_of(edit.key, route.partitions), []).append(entry)
        return found


def _decoded(name: str, value: bytes) -> Any:
    try:
        return decode(value)
    except ValueError as err:
        raise ProcessorError("E366", f"context[{name[:80]!r}] cannot be read: {err}") from None


def value_of(text: str | bytes) -> Any:
    """The value that JSON text stands for; `{"$set": [...]}` and the like stand for what JSON lacks.

    Raises ValueError, which says what the text is or holds: "is not JSON".
    """
    plain = plain_of(text)
    try:
        return decode(orjson.dumps(plain))
    except ValueError as err:
        raise ValueError(f"cannot be kept: {err}") from None


def plain_of(text: str | bytes) -> Any:
    """JSON text as JSON's own types, in which orjson loses nothing. Raises ValueError, as `value_of`."""
    try:
        plain = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
        orjson.dumps(plain)
    except json.JSONDecodeError as err:
        raise ValueError(f"is not JSON: {err}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except orjson.JSONEncodeError as err:
        raise ValueError(f"cannot be kept: {err}") from None
    return plain


def _integer(digits: str) -> Any:
    # json.loads makes an int of any size, orjson only of 64 bits.
    is_small = len(digits) < 20 and -(1 << 63) <= int(digits) < 1 << 63
    return int(digits) if is_small else {"$int": digits}


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"holds {text[:40]}, which is not a number that can be kept")
    return value


def steps_of(path: str) -> Steps:
    """The names and indices that a path goes through; none for an empty one."""
    if not path.startswith("/"):
        return (path,) if path else ()
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/"))


def _required(path: str) -> Steps:
    if not path:
        raise ProcessorError("E328", "a path is needed here: the name of an item, or a JSON pointer")
    return steps_of(path)


def _named(steps: Steps) -> str:
    path: Any = "context"
    for step in steps:
        path = (path, step)
    return described(path)


def _found(container: Any, step: str) -> Any:
    """What is at one step inside of a container, or _ABSENT."""
    place = _place(container, step)
    return _ABSENT if place is None else container[place]


def _place(container: Any, step: str) -> Any:
    """The key or index that a step means, or None; a key that is not text is written as `str` writes it."""
    if isinstance(container, dict):
        if step in container:
            return step
        return next((key for key in container if type(key) is not str and str(key) == step), None)
    if isinstance(container, list | deque) and _INDEX.fullmatch(step) and int(step) < len(container):
        return int(step)
    return None


def _check_object(name: str, item: bytes, schemas: Mapping[str, Schema]) -> None:
    """Raise ValueError for what `self.heap` could not have put there."""
    objects.check_item(name, item)
    if name == objects.COUNTER:
        return
    held = objects.read(item)
    schema = schemas.get(held.type)
    fault = schema.fault(documents.loads(held.text)) if schema else None
    if fault is not None:
        raise ValueError(f"a value of the type {held.type!r} does not fit its schema: {fault}")


def _has_version(held: Any) -> bool:
    return isinstance(held, dict) and type(held.get("version")) is int


def _at(container: Any, step: str, steps: Steps) -> Any:
    found = _found(container, step)
    if found is _ABSENT:
        raise ProcessorError("E328", f"{_named(steps)} is not there: {_lacks(container, step)}")
    return found


def _lacks(container: Any, step: str) -> str:
    if isinstance(container, dict):
        return f"there is no {step[:80]!r}"
    if isinstance(container, list | deque):
        return f"the length of the list is {len(container)}, and {step[:80]!r} is not below it"
    return f"{_a(container)} has no {step[:80]!r}"


def _put(parent: Any, steps: Steps, value: Any) -> None:
    step = steps[-1]
    if isinstance(parent, list | deque) and step == "-":
        parent.append(value)
    elif isinstance(parent, dict) and _place(parent, step) is None:
        parent[step] = value
    else:
        _at(parent, step, steps)
        parent[_place(parent, step)] = value


def _delete(parent: Any, steps: Steps) -> None:
    _at(parent, steps[-1], steps)
    del parent[_place(parent, steps[-1])]


def _listed(target: Any, steps: Steps) -> Any:
    if not isinstance(target, list | deque):
        raise ProcessorError("E328", f"{_named(steps)} is {_a(target)}, not a list")
    return target


def _a(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _laid_over(items: Items | None, given: Items, *, is_whole: bool) -> Items:
    return given if is_whole else {**(items or {}), **given}


def _size(items: Mapping[str, bytes]) -> int:
    return sum(len(name.encode()) + len(value) for name, value in items.items())


def _change_of(before: Items, after: Items, size: int) -> ContextChange:
    """The change as a guest would report it."""
    if size <= WHOLE_BYTES or _size(before) <= WHOLE_BYTES:
        return ContextChange(after, True, size)
    gone = dict.fromkeys(before.keys() - after.keys())
    new = {name: value for name, value in after.items() if before.get(name) != value}
    return ContextChange({**gone, **new}, False, size)
