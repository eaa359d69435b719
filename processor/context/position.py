"""The position record of one partition, and its one codec: every field of it is spelled here only.

A record is JSON: where the partition is, who owns it, and contexts while they are few and small. `store`
writes it with every commit, `visit` with edits, and `control` with resets; whoever looks on reads it.

What must stay true: a record, or a context in it, that cannot be read stops its partition or its key with a
code, and never the reading of the others; it can always be replaced. Whoever rewrites a record keeps the
fields of it that this build does not know. A field is never given another meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from processor.audit import GENESIS, ChainHead
from processor.context.subjects import SubjectParts
from processor.errors import BrokerError
from processor.jetstream import Outgoing, Stored
from processor.model import Failure

VERSION = 1
# Stands for an item of a context that cannot be read or written again; no value is ever kept like this.
UNREADABLE = b'{"$unreadable":1}'
_BEYOND = 1 << 40  # an epoch that no owner has come to
# Our own records begin like this, whatever their contexts hold.
_HEAD = re.compile(
    rb'\{"v":1,"stream":"(?P<stream>[^"\\]*)","created":"(?P<created>[^"\\]*)",'
    rb'"of":(?P<of>\d{1,9}),"seq":(?P<seq>\d{1,19}),"epoch":(?P<epoch>\d{1,18}),'
    rb'(?:"audit":\{"n":(?P<n>\d{1,18}),"head":"(?P<head>[0-9a-f]{64})","late":(?P<late>\d{1,19})\},)?'
)


@dataclass(frozen=True, slots=True)
class InputStream:
    """The stream that positions count in. `created` tells it from a later stream of the same name."""

    stream: str
    created: str
    ends_at: int = field(default=0, compare=False)  # its last sequence, when it was looked at


@dataclass(slots=True)
class Move:
    """What a commit does to the position of one partition."""

    sequence: int = 0  # taken up to here; lower than before changes nothing
    opened: dict[int, int] = field(default_factory=dict)  # sequences that wait, with their tries so far
    closed: set[int] = field(default_factory=set)  # sequences that waited and are settled now
    blocked: dict[str, int | None] = field(default_factory=dict)  # keys with their tries; None: goes on

    def add(self, later: Move) -> None:
        """Make this the move of both, one after the other."""
        self.sequence = max(self.sequence, later.sequence)
        self.opened = {k: v for k, v in {**self.opened, **later.opened}.items() if k not in later.closed}
        self.closed = (self.closed - later.opened.keys()) | later.closed
        self.blocked.update(later.blocked)


@dataclass(slots=True)
class Position:
    """Where one partition is, as its record says. A new one counts in nothing and has no owner."""

    input: InputStream = InputStream("", "")
    of: int = 0  # partitions that the route has
    sequence: int = 0  # of the input, taken up to here
    epoch: int = 0  # raised by every claim, edit and reset
    owner: str = ""  # who wrote it last; nobody, where it was released
    commit_id: str = ""
    key: str = ""  # the route's `key`, by which messages belong to the partition; an older build wrote none
    lane: int = 0  # of its owner
    holds: bool = False  # its owner asks edits to wait for its next commit
    claims: int = 0  # times in a row that it was claimed and then nothing was committed
    open: dict[int, int] = field(default_factory=dict)  # sequences that wait for a try, with those so far
    blocked: dict[str, int] = field(default_factory=dict)  # keys, with the tries of their first message
    is_spread: bool = False  # some context of the partition lives outside of this record
    live: tuple[Outgoing, ...] = ()  # what may not have been sent of the last commit
    resetting: int | None = None  # the sequence of a reset that is not finished
    chain: ChainHead = GENESIS  # of the partition's audit entries, the last
    looked: int = 0  # up to this sequence of the app's stream late messages are in the chain, or need not be
    version: int = VERSION
    is_readable: bool = True
    unknown: dict[str, Any] = field(default_factory=dict)  # what a later build has written beside
    _documents: Mapping[str, Any] = field(default_factory=dict)
    _contexts: dict[str, dict[str, bytes]] | None = None

    @classmethod
    def read(cls, stored: Stored) -> Position:
        """The record in a message. Raises BrokerError E421 for one that cannot be read.

        Of another version than ours it has what means the same, as far as that can be told.
        """
        try:
            return _decoded(orjson.loads(stored.payload))
        except ValueError as err:
            _, route, number, _ = SubjectParts.of(stored.subject)
            raise BrokerError(
                "E421",
                f"the position of partition {number} of route {route} cannot be read (message "
                f"{stored.sequence} of the app's stream: {err})",
                remedy="It is not run as it is. `processor reset` rewrites it, without the contexts in it.",
            ) from err

    @classmethod
    def remains(cls, stored: Stored) -> Position:
        """As `read`; of a record that cannot be read, what can be told."""
        try:
            return cls.read(stored)
        except BrokerError:
            # Contexts of the partition that lie outside of its position may be there or not.
            found = cls(epoch=_BEYOND, is_spread=True, is_readable=False)
            if head := _HEAD.match(stored.payload):
                stream, created = (head[name].decode("utf-8", "replace") for name in ("stream", "created"))
                found.input = InputStream(stream, created)
                found.of, found.sequence, found.epoch = (int(head[name]) for name in ("of", "seq", "epoch"))
                if head["n"]:
                    found.chain = ChainHead(int(head["n"]), bytes.fromhex(head["head"].decode()))
                    found.looked = int(head["late"])
            return found

    @property
    def contexts(self) -> dict[str, dict[str, bytes]]:
        """The contexts in the record, as encoded items by key; to be changed in place."""
        if self._contexts is None:
            self._contexts = {key: _items(items) for key, items in self._documents.items()}
        return self._contexts

    @property
    def first_needed(self) -> int:
        """The first sequence of the input that may not be done."""
        return min([self.sequence + 1, *self.open])

    def is_done(self, sequence: int) -> bool:
        """Whether a message of the input is settled."""
        return sequence <= self.sequence and sequence not in self.open

    def apply(self, move: Move) -> None:
        """Go on by what a commit does."""
        self.claims = 0
        self.sequence = max(self.sequence, move.sequence)
        self.open = {k: v for k, v in {**self.open, **move.opened}.items() if k not in move.closed}
        for key, tries in move.blocked.items():
            if tries is None:
                self.blocked.pop(key, None)
            else:
                self.blocked[key] = tries

    def restarted(self, commit_id: str, *, keep_contexts: bool) -> Position:
        """The position as a reset leaves it: nothing waits, and nobody owns it."""
        return Position(
            self.input,
            self.of,
            self.sequence,
            self.epoch + 1,
            commit_id=commit_id,
            is_spread=keep_contexts and self.is_spread,
            chain=self.chain,
            looked=self.looked,
            unknown=self.unknown,
            _contexts=self.contexts if keep_contexts else {},
        )

    def encoded(self) -> bytes:
        """The record as it is stored, in this build's version; `_HEAD` reads the first fields in order."""
        body: dict[str, Any] = {
            "v": VERSION,
            "stream": self.input.stream,
            "created": self.input.created,
            "of": self.of,
            "seq": self.sequence,
            "epoch": self.epoch,
        }
        if self.chain.number or self.looked:
            body["audit"] = {"n": self.chain.number, "head": self.chain.digest.hex(), "late": self.looked}
        body |= {"owner": self.owner, "cid": self.commit_id}
        if self.key:
            body["key"] = self.key
        if self.lane:
            body["lane"] = self.lane
        if self.holds:
            body["holds"] = True
        if self.claims:
            body["claims"] = self.claims
        if self.open:
            body["open"] = {str(sequence): tries for sequence, tries in self.open.items()}
        if self.blocked:
            body["blocked"] = self.blocked
        if self.is_spread:
            body["spread"] = True
        if self.contexts:
            body["ctx"] = {key: orjson.Fragment(dump_items(items)) for key, items in self.contexts.items()}
        if self.live:
            body["live"] = [[m.subject, dict(m.headers), m.payload.decode()] for m in self.live]
        if self.resetting is not None:
            body["resetting"] = self.resetting
        return orjson.dumps({**body, **self.unknown} if self.unknown else body)

    def check_input(self, route: str, source: InputStream) -> None:
        """Raise BrokerError E407 where it counts in another stream."""
        if self.input != source:
            raise BrokerError(
                "E407",
                f"the position of route {route} counts in stream {self.input.stream} created at "
                f"{self.input.created}, but its input is stream {source.stream} created at "
                f"{source.created}",
                remedy="Restore that stream, or have the route read the new one: `processor reset`.",
            )

    def check_usable(self, route: str, partitions: int) -> None:
        """Raise BrokerError E410 for another version or number of partitions, E412 while it is reset."""
        if self.version != VERSION:
            raise BrokerError(
                "E410",
                f"the position of route {route} has version {self.version}, this build reads {VERSION}",
                remedy="Run the version of Processor that wrote it, or a later one.",
            )
        if self.resetting is not None:
            raise BrokerError(
                "E412",
                f"a reset of route {route} is not finished",
                remedy="Run the same `processor reset` again; until then the route stands still.",
            )
        if self.of != partitions:
            raise BrokerError(
                "E410",
                f"route {route} was created with {self.of} partitions and now has {partitions}",
                remedy=f"Set partitions: {self.of}, or give the route another name.",
            )


def by_partition(positions: Iterable[Stored]) -> dict[int, Stored]:
    """Position messages by partition, without those whose subject names none: we did not write them."""
    numbered = ((SubjectParts.of(stored.subject).partition, stored) for stored in positions)
    return {number: stored for number, stored in numbered if number is not None}


def no_context(key: str, route: str) -> Failure:
    """Why messages of a key whose context cannot be read do not run (E366)."""
    return Failure(
        "E366",
        f"the context of key {key[:80]!r} cannot be read, so its messages cannot run; "
        f"`processor context delete CONFIG {route} KEY` lets it start over",
    )


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


# The fields that a record has beside those that every record must have, with what they are when absent.
_OPTIONAL: dict[str, Any] = {
    "key": "", "lane": 0, "holds": False, "claims": 0, "open": {}, "blocked": {}, "spread": False, "ctx": {},
    "live": [], "audit": {},
}  # fmt: skip
_REQUIRED: dict[str, Any] = {
    "of": 0, "epoch": 0, "seq": 0, "owner": "", "cid": "", "stream": "", "created": "",
}  # fmt: skip
_KNOWN = frozenset({"v", "resetting", "unreadable", *_OPTIONAL, *_REQUIRED})
_NAMES = {int: "number", str: "text", dict: "object", bool: "truth value", list: "list"}


def _decoded(body: Any) -> Position:
    """The position that a document is. Raises ValueError for one that is no record of any version."""
    if type(body) is not dict or type(body.get("v")) is not int:
        raise ValueError("it is no object with a version")
    is_ours = body["v"] == VERSION
    is_resetting = "resetting" in body
    said: dict[str, Any] = {}
    for name, absent in {**_REQUIRED, **_OPTIONAL}.items():
        value = body.get(name, absent)
        # A reset of what has no position yet does not know these.
        may_lack = not is_ours or name in _OPTIONAL or (is_resetting and name in ("seq", "stream", "created"))
        if type(value) is not type(absent) or not (may_lack or name in body):
            if is_ours:
                raise ValueError(f"its {name} is no {_NAMES[type(absent)]}")
            value = absent
        said[name] = value
    try:
        open_, live = _open(said["open"]), _live(said["live"])
        _check_values(said)
        resetting = _whole(body["resetting"], "resetting") if is_resetting else None
        chain, looked = _audit(said["audit"])
    except ValueError:
        if is_ours:
            raise
        open_, live, resetting, chain, looked = {}, (), None, GENESIS, 0
        said["blocked"], said["ctx"] = {}, {}
    return Position(
        InputStream(said["stream"], said["created"]),
        said["of"],
        said["seq"],
        said["epoch"],
        said["owner"],
        said["cid"],
        said["key"],
        said["lane"],
        said["holds"],
        said["claims"],
        open_,
        dict(said["blocked"]),
        said["spread"],
        live,
        resetting,
        chain,
        looked,
        body["v"],
        unknown={name: value for name, value in body.items() if name not in _KNOWN},
        _documents=said["ctx"],
    )


def _whole(value: Any, name: str) -> int:
    if type(value) is not int:
        raise ValueError(f"its {name} is no number")
    return value


def _open(document: Mapping[str, Any]) -> dict[int, int]:
    if not all(sequence.isdecimal() for sequence in document):
        raise ValueError("a sequence in its open is no number")
    return {int(sequence): _whole(tries, "open") for sequence, tries in document.items()}


def _live(document: list[Any]) -> tuple[Outgoing, ...]:
    for message in document:
        if type(message) is not list or [type(part) for part in message] != [str, dict, str]:
            raise ValueError("its live is no list of messages")
    return tuple(Outgoing(subject, payload.encode(), headers) for subject, headers, payload in document)


def _audit(document: Mapping[str, Any]) -> tuple[ChainHead, int]:
    if not document:
        return GENESIS, 0
    return ChainHead.read(document), _whole(document.get("late"), "audit")


def _check_values(said: Mapping[str, Any]) -> None:
    for tries in said["blocked"].values():
        _whole(tries, "blocked")
    if any(type(items) is not dict for items in said["ctx"].values()):
        raise ValueError("a context in it is no object")
