"""What an audit record is: entries, the message that holds them, and the chain that binds them.

An entry is a line of JSON about one thing that was asked of the outside, or done to an app. A record is one
message: a head line, then entry lines. A chain is the entries of one partition of a route, or of an app's
control (`CONTROL`), in order; the hash of its head stands in the partition's position, or with the next
record.

    head(0) = 32 zero bytes;  head(i) = SHA-256(head(i-1) || line i)

Formats only: nothing here reads or writes anything. The effects of a run build entries, a commit chains them,
whoever verifies reads them. What must stay true:
- Hashes are over lines as they were stored; no line is ever written again to be hashed.
- Any entry can be written: what JSON has no form for, or what is too long, is changed and marked `cut`.
- An entry has no payload, header or query string; who builds one passes hashes and sizes.
- What does not follow from the bytes before it is refused with a sentence that says where.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import orjson

from processor.notes import Checkpoint, Frontier, VerifierKey, checkpoint_of

VERSION = 1
ENTRY_MAX_BYTES = 8192
TARGET_MAX_CHARS = 1000
CONTROL = "=ctl.0"  # the chain of what was asked of an app, beside those of its routes' partitions
SEALS = "=seal.0"  # where seals are kept; they are no chain, and no entries
_DIGEST_BYTES = 32
_U64 = 1 << 64


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_pair(value: Any) -> bool:
    return type(value) is list and [type(each) for each in value] == [int, int]


Event = Literal[
    "http", "stock", "state_data", "secret", "emit", "tool", "infer", "file", "heap", "authorize", "user",
    "budget", "run", "policy", "route", "control", "unresolved", "rebuilt",
]  # fmt: skip
Decision = Literal["allow", "deny", "error", "shadow"]
Fate = Literal["committed", "dropped", "fenced", "unknown"]

# The keys of an entry in their order: the fields of AuditEntry, then what single events add.
_FIELDS: dict[str, str] = {
    "n": "", "t": "moment_us", "e": "event", "d": "decision", "fate": "fate", "route": "route", "run": "run",
    "in": "batch", "actor": "actor", "op": "operation", "on": "target", "rule": "rule", "policy": "policy",
    "of": "intent", "req": "request_digest", "res": "answer_digest", "status": "status", "bytes": "sizes",
    "us": "took_us", "secrets": "secrets", "code": "code",
}  # fmt: skip
_KINDS: dict[str, Callable[[Any], bool]] = {
    "moment_us": lambda value: type(value) is int,
    "batch": _is_pair,
    "status": lambda value: type(value) is int,
    "sizes": _is_pair,
    "took_us": lambda value: type(value) is int,
    "secrets": lambda value: type(value) is list and all(map(_is_text, value)),
}
DETAILS: tuple[str, ...] = (
    "out", "out_bytes", "emits", "events", "ctx", "cpu_us", "digest",  # run
    "model", "model_said", "tokens", "estimated",  # infer
    "sha", "fuel",  # tool
    "name", "window", "used", "limit",  # budget
    "verb", "reason", "result",  # control
    "data",  # user
)  # fmt: skip


@dataclass(slots=True)
class AuditEntry:
    """One thing that a guest asked of the outside, or that was done to an app. Empty fields are not stored.

    It has no number until a chain takes it; its fate is known when the run that it belongs to ends.
    """

    event: Event
    decision: Decision = "allow"
    fate: Fate | Literal[""] = ""
    moment_us: int = 0  # since 1970
    route: str = ""
    run: str = ""
    batch: tuple[int, int] | None = None  # first and last sequence of the input that the run had
    actor: str = ""  # program:<id>, by:<claimed name>, processor:<member>
    operation: str = ""
    target: str = ""
    rule: str = ""  # file:line, config, default
    policy: str = ""  # id of the rules that decided
    intent: str = ""  # id of the intent, or of the entry that stood unchained, that this one answers
    request_digest: str = ""
    answer_digest: str = ""
    status: int = 0
    sizes: tuple[int, int] | None = None  # bytes of the request and of the answer
    took_us: int = 0
    secrets: Sequence[str] = ()  # names
    code: str = ""  # of a denial or an error
    details: Mapping[str, Any] = field(default_factory=dict)  # keys of DETAILS

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> AuditEntry:
        """The entry that a stored document stands for, without its number. Raises ValueError."""
        given: dict[str, Any] = {}
        for key, name in _FIELDS.items():
            if name and key in document:
                value = document[key]
                if not _KINDS.get(name, _is_text)(value):
                    raise ValueError(f"its {key} is {str(value)[:40]!r}")
                given[name] = tuple(value) if type(value) is list else value
        for name, known in (("event", Event), ("decision", Decision), ("fate", Fate)):
            if given.get(name, "") not in (*get_args(known), *([""] if name == "fate" else [])):
                raise ValueError(f"its {name} is {str(given.get(name))[:40]!r}")
        return cls(**given, details={name: document[name] for name in DETAILS if name in document})

    def line(self, number: int) -> bytes:
        """The entry as the line of a record: at most ENTRY_MAX_BYTES of JSON without a newline."""
        said: dict[str, Any] = {"n": number}
        if self.moment_us:
            said["t"] = self.moment_us
        said["e"] = self.event
        said["d"] = self.decision
        if self.fate:
            said["fate"] = self.fate
        if self.route:
            said["route"] = self.route
        if self.run:
            said["run"] = self.run
        if self.batch:
            said["in"] = self.batch
        if self.actor:
            said["actor"] = self.actor
        if self.operation:
            said["op"] = self.operation
        if self.target:
            said["on"] = self.target[:TARGET_MAX_CHARS]
        if self.rule:
            said["rule"] = self.rule
        if self.policy:
            said["policy"] = self.policy
        if self.intent:
            said["of"] = self.intent
        if self.request_digest:
            said["req"] = self.request_digest
        if self.answer_digest:
            said["res"] = self.answer_digest
        if self.status:
            said["status"] = self.status
        if self.sizes:
            said["bytes"] = self.sizes
        if self.took_us:
            said["us"] = self.took_us
        if self.secrets:
            said["secrets"] = self.secrets
        if self.code:
            said["code"] = self.code
        if self.details:
            for name in DETAILS:
                if (value := self.details.get(name)) not in (None, "", (), [], {}):
                    said[name] = value
        if len(self.target) > TARGET_MAX_CHARS:
            said["cut"] = True
        try:
            line = orjson.dumps(said)
        except TypeError:
            return _cut(said)
        return line if len(line) <= ENTRY_MAX_BYTES else _cut(said)


def _cut(said: Mapping[str, Any]) -> bytes:
    """The line of an entry that cannot be stored as it is: its texts and lists shorter, at last without
    what its event adds.
    """
    for chars, items in ((1000, 100), (200, 20), (50, 10)):
        line = orjson.dumps({**_shorter(dict(said), chars, items), "cut": True})
        if len(line) <= ENTRY_MAX_BYTES:
            return line
    core = {name: value for name, value in said.items() if name in _FIELDS}
    return orjson.dumps({**_shorter(core, 20, 3), "cut": True})


def _shorter(value: Any, chars: int, items: int, depth: int = 0) -> Any:
    """A value that JSON has a form for, with texts and lists of at most this length."""
    if isinstance(value, str):
        return value[:chars].encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_U64 // 2 <= value < _U64 else str(value)[:chars]
    if depth > 8:
        return "..."
    if isinstance(value, Mapping):
        pairs = value.items() if depth == 0 else list(value.items())[:items]
        return {str(_shorter(k, chars, items, 9)): _shorter(v, chars, items, depth + 1) for k, v in pairs}
    if isinstance(value, list | tuple):
        return [_shorter(each, chars, items, depth + 1) for each in value[:items]]
    return f"<{type(value).__name__}>"


def document_of(line: bytes) -> dict[str, Any]:
    """What a stored line says, by the keys it has there. Raises ValueError for what is no entry."""
    try:
        found = orjson.loads(line)
    except ValueError as err:
        raise ValueError(f"it is not JSON ({err})") from err
    if type(found) is not dict:
        raise ValueError("it is no JSON object")
    for name, kind in (("n", int), ("t", int), ("e", str), ("d", str)):
        if type(found.get(name, 0 if name == "t" else None)) is not kind:
            raise ValueError(f"its {name} is {str(found.get(name))[:40]!r}")
    return found


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last entry of a chain: its number, and the hash that binds it and all before it."""

    number: int = 0
    digest: bytes = bytes(_DIGEST_BYTES)

    def after(self, lines: Iterable[bytes]) -> ChainHead:
        """The head behind these entries."""
        number, digest = self.number, self.digest
        for line in lines:
            number, digest = number + 1, hashlib.sha256(digest + line).digest()
        return ChainHead(number, digest)

    @classmethod
    def read(cls, document: Any) -> ChainHead:
        """The head in a position, `{"n", "head"}`. Raises ValueError for what is none."""
        if type(document) is not dict:
            raise ValueError("the head of its audit chain is no object")
        number = document.get("n")
        if type(number) is not int or number < 0:
            raise ValueError(f"the number of its audit chain is {str(number)[:40]!r}")
        return cls(number, digest_of(document.get("head"), "the head of its audit chain"))


GENESIS = ChainHead()


def digest_of(text: Any, what: str) -> bytes:
    """The bytes of a SHA-256 in lower-case hex; ValueError says that `what` is none."""
    if type(text) is not str or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"{what} is {str(text)[:80]!r}, not 64 hex digits")
    return bytes.fromhex(text)


_HEAD_KEYS = ("v", "chain", "first", "prev", "commit")


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One message of a chain: entries in a row, and what they follow."""

    chain: str  # <route>.<partition>, or CONTROL
    before: ChainHead
    lines: tuple[bytes, ...]
    commit: str = ""  # id of the commit that it was a part of

    @property
    def first(self) -> int:
        """The number of its first entry."""
        return self.before.number + 1

    @property
    def head(self) -> ChainHead:
        """The head of the chain behind it."""
        return self.before.after(self.lines)

    def encoded(self) -> bytes:
        """The payload of its message."""
        return b"\n".join([self._head_line(), *self.lines])

    def _head_line(self) -> bytes:
        said = {
            "v": VERSION, "chain": self.chain, "first": self.first, "prev": self.before.digest.hex(),
            "commit": self.commit,
        }  # fmt: skip
        return orjson.dumps(said)

    @classmethod
    def decode(cls, payload: bytes) -> AuditRecord:
        """The record in a message. Raises ValueError with what is odd in its bytes."""
        said, *lines = payload.split(b"\n")
        try:
            document = orjson.loads(said)
        except ValueError as err:
            raise ValueError(f"its head line is not JSON ({err})") from err
        if type(document) is not dict or tuple(document) != _HEAD_KEYS:
            raise ValueError(f"its head line has not just {', '.join(_HEAD_KEYS)}")
        if document["v"] is True or document["v"] != VERSION:
            raise ValueError(f"it has version {str(document['v'])[:40]}, and this build reads {VERSION}")
        first = document["first"]
        if type(first) is not int or first < 1:
            raise ValueError(f"the number of its first entry is {str(first)[:40]!r}")
        if type(document["chain"]) is not str or type(document["commit"]) is not str:
            raise ValueError("its chain or its commit is no text")
        if not lines:
            raise ValueError("it has no entries")
        before = ChainHead(first - 1, digest_of(document["prev"], "the head before it"))
        record = cls(document["chain"], before, tuple(lines), document["commit"])
        if record._head_line() != said:
            raise ValueError("its head line is not as this build writes it")
        for number, line in enumerate(lines, first):
            try:
                if document_of(line)["n"] != number:
                    raise ValueError(f"its n is {document_of(line)['n']}")
            except ValueError as err:
                raise ValueError(f"entry {number} cannot be read: {err}") from err
        return record

    def check_follows(self, head: ChainHead) -> None:
        """Raise ValueError where the record is not the next one behind `head`."""
        if self.before != head:
            raise ValueError(f"its record does not follow entry {head.number}")


def chained(
    entries: Sequence[AuditEntry], chain: str, head: ChainHead, commit: str, max_bytes: int
) -> tuple[list[AuditRecord], ChainHead]:
    """The records that append entries to a chain behind `head`, each of at most `max_bytes`; the new head.

    One entry is a record of its own, however few bytes that leaves.
    """
    records: list[AuditRecord] = []
    taken: list[bytes] = []
    # The number grows by at most ten digits while a chain is written.
    frame = len(AuditRecord(chain, head, (), commit).encoded()) + 10
    size = frame
    for number, entry in enumerate(entries, head.number + 1):
        line = entry.line(number)
        if taken and size + len(line) + 1 > max_bytes:
            records.append(AuditRecord(chain, head, tuple(taken), commit))
            head, taken, size = records[-1].head, [], frame
        taken.append(line)
        size += len(line) + 1
    if taken:
        records.append(AuditRecord(chain, head, tuple(taken), commit))
        head = records[-1].head
    return records, head


@dataclass(frozen=True, slots=True)
class Seal:
    """How far the audit of an app had come at a moment: the tree over all entries, and each chain's head.

    A note states the tree's size and root, signed where there is a key. `before` is the seal before this one:
    its size and moment, so that a seal which is missing shows.
    """

    moment_us: int
    before: tuple[int, int]
    stream: str  # that the entries were read from, in its order, up to `sequence`
    created: str
    sequence: int
    frontier: Frontier
    heads: Mapping[str, ChainHead]
    note: str

    def checkpoint(self, verifier: VerifierKey | None) -> Checkpoint:
        """What its note says. Raises ValueError where that is not signed by `verifier`, if one is given, or
        is not of this seal's tree.
        """
        said = checkpoint_of(self.note, verifier)
        if (said.size, said.root) != (self.frontier.size, self.frontier.root):
            raise ValueError(
                f"its note is of {said.size} entries, and its tree of {self.frontier.size}, or of others"
            )
        return said

    def encoded(self, max_bytes: int) -> bytes:
        """The payload of its message. The heads of chains that would make it larger are left out."""
        said: dict[str, Any] = {
            "v": VERSION,
            "t": self.moment_us,
            "prev": self.before,
            "of": (self.stream, self.created),
            "to": self.sequence,
            "size": self.frontier.size,
            "frontier": [root.hex() for root in self.frontier.roots],
            "heads": {},
            "note": self.note,
        }
        room = max_bytes - len(orjson.dumps(said))
        for chain, head in self.heads.items():
            room -= len(chain) + 100  # the number has at most twenty digits
            if room < 0:
                break
            said["heads"][chain] = (head.number, head.digest.hex())
        return orjson.dumps(said)

    @classmethod
    def decode(cls, payload: bytes) -> Seal:
        """The seal in a message. Raises ValueError with what is odd in its bytes."""
        try:
            said = orjson.loads(payload)
        except ValueError as err:
            raise ValueError(f"it is not JSON ({err})") from err
        if type(said) is not dict or said.get("v") is True or said.get("v") != VERSION:
            raise ValueError(f"it is no seal of version {VERSION}")
        try:
            size, before_us = said["prev"]
            stream, created = said["of"]
            roots = [digest_of(root, "a hash of its frontier") for root in said["frontier"]]
            heads = {
                str(chain): ChainHead.read({"n": number, "head": head})
                for chain, (number, head) in said["heads"].items()
            }
            numbers = [said["t"], size, before_us, said["to"], said["size"]]
            note = said["note"]
        except (KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"it lacks what a seal has ({type(err).__name__}: {err})") from err
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a number of it is none")
        if not all(type(text) is str for text in (stream, created, note)):
            raise ValueError("a text of it is none")
        frontier = Frontier(said["size"], roots)
        return cls(said["t"], (size, before_us), stream, created, said["to"], frontier, heads, note)
