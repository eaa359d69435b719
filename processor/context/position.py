"""The record of one partition in the app's stream: read, or what can be told of one that cannot be.

It is JSON: where the partition is, who owns it, and contexts while they are few and small. `store` writes
these records, and `control` moves them. What must stay true: a record, or a context in it, that cannot be
read stops its partition or its key with a code, and never the reading of the others; it can always be
replaced. Whoever rewrites a record keeps the fields of it that this build does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from processor.context.subjects import SubjectParts
from processor.errors import BrokerError
from processor.jetstream import Stored
from processor.model import Failure

VERSION = 1
_FIELDS = frozenset(
    {
        "v", "stream", "created", "of", "seq", "epoch", "owner", "cid", "lane", "holds", "claims", "open",
        "blocked", "spread", "ctx", "live", "resetting", "unreadable",
    }
)  # fmt: skip
# Stands for an item of a context that cannot be read or written again; no value is ever kept like this.
UNREADABLE = b'{"$unreadable":1}'
_BEYOND = 1 << 40  # an epoch that no owner has come to
# Our own records begin like this, whatever their contexts hold.
_HEAD = re.compile(
    rb'\{"v":1,"stream":"(?P<stream>[^"\\]*)","created":"(?P<created>[^"\\]*)",'
    rb'"of":(?P<of>\d{1,9}),"seq":(?P<seq>\d{1,19}),"epoch":(?P<epoch>\d{1,18}),'
)


def read(stored: Stored) -> dict[str, Any]:
    """The record of a partition. Raises BrokerError E421 for one that cannot be read."""
    try:
        body = orjson.loads(stored.payload)
        _check(body)
    except ValueError as err:
        _, route, number, _ = SubjectParts.of(stored.subject)
        raise BrokerError(
            "E421",
            f"the position of partition {number} of route {route} cannot be read (message {stored.sequence} "
            f"of the app's stream: {err})",
            remedy="It is not run as it is. `processor reset` rewrites it, without the contexts in it.",
        ) from err
    return dict(body)


def by_partition(positions: Iterable[Stored]) -> dict[int, Stored]:
    """Position messages by partition, without those whose subject names none: we did not write them."""
    numbered = ((SubjectParts.of(stored.subject).partition, stored) for stored in positions)
    return {number: stored for number, stored in numbered if number is not None}


def remains(stored: Stored) -> dict[str, Any]:
    """As `read`; of a record that cannot be read what can be told, and `unreadable` in it.

    The fields that every record of this version has are there for one of another version, too.
    """
    told = {"v": VERSION, "stream": "", "created": "", "of": 0, "seq": 0, "epoch": _BEYOND}
    try:
        return {**told, "owner": "", "cid": "", **read(stored)}
    except BrokerError:
        if head := _HEAD.match(stored.payload):
            told |= {name: head[name].decode("utf-8", "replace") for name in ("stream", "created")}
            told |= {name: int(head[name]) for name in ("of", "seq", "epoch")}
        # Contexts of the partition that lie outside of its position may be there or not.
        return {**told, "owner": "", "cid": "", "spread": True, "unreadable": True}


def unknown_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a later build has written in a record beside what this one knows."""
    return {name: value for name, value in body.items() if name not in _FIELDS}


def no_context(key: str, route: str) -> Failure:
    """What is said of a key whose context cannot be read (E366)."""
    return Failure(
        "E366",
        f"the context of key {key[:80]!r} cannot be read, so its messages cannot run; "
        f"`processor context delete CONFIG {route} KEY` lets it start over",
    )


def contexts_of(body: Mapping[str, Any]) -> dict[str, dict[str, bytes]]:
    """The contexts in a record, as encoded items by key."""
    return {key: _items(items) for key, items in body.get("ctx", {}).items()}


def written_contexts(contexts: Mapping[str, Mapping[str, bytes]]) -> dict[str, orjson.Fragment]:
    """What `contexts_of` reads."""
    return {key: orjson.Fragment(dump_items(items)) for key, items in contexts.items()}


def dump_items(items: Mapping[str, bytes]) -> bytes:
    """The JSON text of a context with these encoded items."""
    return orjson.dumps({name: orjson.Fragment(value) for name, value in items.items()})


def items_of(payload: bytes) -> dict[str, bytes]:
    """The items of a context that is one message; UNREADABLE where it cannot be read."""
    try:
        document = orjson.loads(payload)
    except ValueError:
        document = None
    return _items(document) if type(document) is dict else {"": UNREADABLE}


def _items(document: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: _value(value) for name, value in document.items()}


def _value(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # deeper than it can be written
        return UNREADABLE


def _check(body: Any) -> None:
    """Raise ValueError for what is no record of any version."""
    if type(body) is not dict or type(body.get("v")) is not int:
        raise ValueError("it is no object with a version")
    if body["v"] != VERSION:
        return  # for the reader to say
    counts = () if "resetting" in body else ("seq",)
    for name in ("of", "epoch", *counts):
        if type(body.get(name)) is not int:
            raise ValueError(f"its {name} is no number")
    for name in ("owner", "cid", *(("stream", "created") if counts else ())):
        if type(body.get(name)) is not str:
            raise ValueError(f"its {name} is no text")
    for name in ("open", "blocked", "ctx"):
        if type(body.get(name, {})) is not dict:
            raise ValueError(f"its {name} is no object")
    if any(type(items) is not dict for items in body.get("ctx", {}).values()):
        raise ValueError("a context in it is no object")
