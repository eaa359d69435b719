"""What has changed in a context, when and by whom, as messages of the app's stream that expire.

A record is part of the commit that it tells of, so what has no record did not happen while records were made.
It holds the items as they are kept, never more of them than one message takes: a record that would be larger
says so, and has names and sizes in place of values.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.context.parked import timestamp
from processor.context.subjects import RouteSubjects, SubjectParts
from processor.jetstream import Outgoing, Stored
from processor.model import key_from_token

VERSION = 1
_SPARE_BYTES = 1024  # for the record's own headers, and what the server adds


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes a context from outside, and why."""

    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What one commit changed in one context.

    `items` are new values, encoded; with `is_whole` they are all that the context then held, and what is not
    among them was removed. A run of the route has the input sequences of its commit (`first` to `last`; 0
    where only messages ran that had waited), an edit has `action`, `by` and `reason`.
    """

    key: str
    id: str  # of the commit
    at: str
    items: Mapping[str, bytes] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    is_whole: bool = False
    is_gone: bool = False  # the context itself was removed
    is_abridged: bool = False  # `sizes` (as many as fit) in place of `items`, which were too large
    sizes: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0  # size of the context afterwards
    first: int = 0
    last: int = 0
    action: str = ""
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """Writes and reads the records of one route."""

    app: str
    route: str
    max_bytes: int  # of a message

    def subject(self, partition: int | str, key: str) -> str:
        """Where the records of a key are."""
        return RouteSubjects(self.app, self.route).history(partition, key)

    def message(self, partition: int, record: Record, keep_s: float) -> Outgoing:
        """The record as a message that expires after `keep_s` seconds (at least 1)."""
        payload = _dumped(record, {"items": {k: orjson.Fragment(v) for k, v in record.items.items()}})
        room = self.max_bytes - _SPARE_BYTES
        if len(payload) > room:
            sizes = {name: len(value) for name, value in record.items.items()}
            payload = _dumped(record, {"abridged": True, "sizes": sizes})
        if len(payload) > room:
            payload = _dumped(record, {"abridged": True, "removed": ()})
        return Outgoing(self.subject(partition, record.key), payload, {"Nats-TTL": f"{int(keep_s)}s"})


def now() -> str:
    """The time that a record has."""
    return timestamp(datetime.now(UTC))


def me() -> str:
    """Who runs this process, as `user@host`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user id without a name
        return socket.gethostname()


def read(stored: Stored) -> Record:
    """The record that a message holds."""
    body = orjson.loads(stored.payload)
    return Record(
        key_from_token(SubjectParts.of(stored.subject).rest[0]),
        body["id"],
        body["at"],
        {name: orjson.dumps(value) for name, value in body.get("items", {}).items()},
        tuple(body.get("removed", ())),
        body.get("whole", False),
        body.get("gone", False),
        body.get("abridged", False),
        body.get("sizes", {}),
        body["bytes"],
        body.get("first", 0),
        body.get("last", 0),
        body.get("action", ""),
        body.get("by", ""),
        body.get("reason", ""),
    )


def _dumped(record: Record, content: Mapping[str, Any]) -> bytes:
    body: dict[str, Any] = {"v": VERSION, "id": record.id, "at": record.at, "bytes": record.bytes}
    told = {
        "whole": record.is_whole,
        "gone": record.is_gone,
        "removed": record.removed,
        "first": record.first,
        "last": record.last,
        "action": record.action,
        "by": record.by,
        "reason": record.reason,
        **content,
    }
    return orjson.dumps({**body, **{name: value for name, value in told.items() if value}})
