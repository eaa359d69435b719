"""Late messages: what is known of a call before its entry is committed, or where that can no longer be.

    p.<app>.late.<route>.<partition>
        {"k": "intent", "id", "run", "e", "op", "on", "req", "owner", "epoch", "t"}
        {"k": "entry", "id", and the keys of an audit entry but its number}

An intent is stored before its call is made, an entry by an owner who was fenced and cannot commit it. Neither
is fenced: the call of an owner who was overtaken happens, too. Whoever owns the partition looks at them, and
adds to its chain what is missing there: an intent without an entry becomes one that is `unresolved`.

What must stay true:
- Of each late message there is an entry in the chain that names it (`of`), once a look has passed it: that
  of its call, or one made here.
- The mark of a partition, which is in its position, is moved by looks alone: it never passes an intent whose
  entry may still come, and what lies before it is settled.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from processor.audit import AuditEntry, AuditRecord, document_of
from processor.context.placement import Partition
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream
from processor.jetstream import Again, ApiError, Broker, Outgoing, Stored, Unknown

KEEP_S = 7 * 86400  # what no look has passed by then had no owner for as long
_PAGE = 1000
_FAR = 10_000  # the mark of a partition without late messages moves on when it is so far behind


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that is about to be made."""

    event: str
    operation: str
    target: str
    request_digest: str
    run: str
    moment_us: int
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def payload(self, owner: str, epoch: int) -> bytes:
        """As it is stored, by the owner of a partition in this epoch."""
        said = {
            "k": "intent", "id": self.id, "run": self.run, "e": self.event, "op": self.operation,
            "on": self.target, "req": self.request_digest, "owner": owner, "epoch": epoch,
            "t": self.moment_us,
        }  # fmt: skip
        return orjson.dumps(said)


def entry_payload(entry: AuditEntry) -> bytes:
    """An entry as it is stored where it can be in no commit."""
    said = document_of(entry.line(0))
    del said["n"]
    # It is about its intent, where it has one, and takes its place.
    return orjson.dumps({"k": "entry", "id": said.pop("of", "") or secrets.token_hex(8), **said})


@dataclass(slots=True)
class Look:
    """What a look has found: entries that are to be added to chains, and where the marks go with them."""

    entries: list[tuple[int, AuditEntry]] = field(default_factory=list)
    marks: dict[int, int] = field(default_factory=dict)


class LateMessages:
    """The late messages of one route, as the owner of some of its partitions writes and reads them."""

    def __init__(self, broker: Broker, subjects: RouteSubjects, partitions: Mapping[int, Partition]) -> None:
        self._broker = broker
        self._stream = app_stream(subjects.app)
        self._subjects = subjects
        self._partitions = partitions
        self._open: set[str] = set()  # intents of ours whose entries are not committed
        self._marks: dict[int, int] = {}  # up to here this owner has looked; its position may not say so yet
        self._passed: dict[int, set[str]] = {}  # by partition, what was handled behind its mark

    async def announce(self, partition: int, intent: Intent, owner: str) -> None:
        """Store an intent, however long that takes. Raises what the broker raises where it is refused."""
        self._open.add(intent.id)
        payload = intent.payload(owner, self._partitions[partition].position.epoch)
        try:
            await self._store(partition, payload)
        except Exception:
            self._open.discard(intent.id)  # it is not stored, and no call follows
            raise

    async def leave(self, partition: int, entry: AuditEntry) -> None:
        """Store an entry that we cannot commit, for the owner of its partition."""
        await self._store(partition, entry_payload(entry))

    def settled(self, entries: Collection[AuditEntry]) -> None:
        """These entries are committed."""
        self._open.difference_update(entry.intent for entry in entries)

    async def _store(self, partition: int, payload: bytes) -> None:
        message = Outgoing(self._subjects.late(partition), payload, {"Nats-TTL": f"{KEEP_S}s"})
        while True:
            await self._broker.connected()
            try:
                await self._broker.publish_stored(message)
                return
            except (Unknown, Again):  # stored twice it is still one: it has an id
                await asyncio.sleep(0.1)

    async def look(self, owner: str, *, is_claim: bool) -> Look:
        """What the chains of our partitions lack of the late messages behind their marks.

        At a claim nothing is in hand. Later an intent of the present `owner` is settled once its entry is
        committed, and the mark stops before it until then.
        """
        look = Look()
        if is_claim:
            self._marks, self._passed = {}, {}
            self._open.clear()
        marks = {n: self._marks.get(n, p.position.looked) for n, p in self._partitions.items()}
        stopped: set[int] = set()
        after = min(marks.values(), default=0)
        while page := await self._page(after + 1):
            ours = [late for late in map(_read, page) if late is not None and late.partition in marks]
            ours = [late for late in ours if late.sequence > marks[late.partition]]
            named = await self._named([late for late in ours if is_claim or not self._is_ours(late, owner)])
            for late in ours:
                self._handle(look, late, named, owner if not is_claim else None, stopped)
                if late.partition not in stopped:
                    marks[late.partition] = look.marks[late.partition] = late.sequence
            after = page[-1].sequence
            for number in marks.keys() - stopped:
                marks[number] = max(marks[number], after)
                if marks[number] - self._partitions[number].position.looked > _FAR:
                    look.marks[number] = marks[number]
        self._marks = marks
        for number in marks.keys() - stopped:
            self._passed.pop(number, None)
        return look

    def _handle(
        self, look: Look, late: LateMessage, named: Collection[str], owner: str | None, stopped: set[int]
    ) -> None:
        """Add what a late message asks for to a look; without an `owner`, at a claim."""
        if owner is not None and self._is_ours(late, owner):
            if late.id in self._open:
                stopped.add(late.partition)
            return
        passed = self._passed.setdefault(late.partition, set())
        token = f"{late.kind} {late.id}"
        if token in named or token in passed:
            return
        passed.add(token)
        look.entries.append((late.partition, late.entry(self._subjects.route)))

    def _is_ours(self, late: LateMessage, owner: str) -> bool:
        """Whether it is an intent of the present owner of its partition, in the present epoch."""
        epoch = self._partitions[late.partition].position.epoch
        return late.kind == "intent" and late.owner == owner and late.epoch == epoch

    async def _page(self, sequence: int) -> list[Stored]:
        while True:
            await self._broker.connected()
            try:
                return await self._broker.page_of(self._stream, self._subjects.every("late"), sequence, _PAGE)
            except (Unknown, Again, ApiError):
                await asyncio.sleep(0.1)

    async def _named(self, messages: Collection[LateMessage]) -> set[str]:
        """Which of these late messages have their entries, in chains or among themselves."""
        if not messages:
            return set()
        start = min(late.sequence for late in messages)
        numbers = {late.partition for late in messages}
        named = {f"intent {late.id}" for late in messages if late.kind == "entry"}
        subjects = [f(number) for number in numbers for f in (self._subjects.audit, self._subjects.position)]
        while True:
            await self._broker.connected()
            seen: dict[int, int] = {}
            found: set[str] = set()
            try:
                async for stored in self._broker.history(self._stream, subjects, start_sequence=start):
                    kind, _, number, _ = SubjectParts.of(stored.subject)
                    if kind == "audit":
                        found |= _names(stored)
                    elif number is not None:
                        seen[number] = stored.sequence
            except (Unknown, Again, ApiError):
                await asyncio.sleep(0.1)
                continue
            # A replica that lags behind our newest commit may lack what that, or one before it, has named.
            fences = {number: self._partitions[number].fence for number in numbers}
            if all(seen.get(n, 0) >= fence for n, fence in fences.items() if fence >= start):
                return named | found
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True)
class LateMessage:
    """One of them, as it was read."""

    partition: int
    sequence: int
    kind: str
    id: str
    owner: str
    epoch: int
    said: Mapping[str, Any]

    def entry(self, route: str) -> AuditEntry:
        """The entry that it asks for."""
        if self.kind == "entry":
            entry = AuditEntry.of({**self.said, "of": self.id})
            entry.fate = entry.fate if entry.fate == "unknown" else "fenced"
            return entry
        text = {name: value for name, value in self.said.items() if type(value) is str}
        moment = self.said.get("t")
        return AuditEntry(
            "unresolved",
            fate="unknown",
            moment_us=moment if type(moment) is int and moment > 0 else 0,
            route=route,
            run=text.get("run", ""),
            actor=f"processor:{self.owner}",
            operation=text.get("op", ""),
            target=text.get("on", ""),
            intent=self.id,
            request_digest=text.get("req", ""),
        )


def _read(stored: Stored) -> LateMessage | None:
    """The late message in a stored one; None for what was not written here."""
    number = SubjectParts.of(stored.subject).partition
    try:
        said = orjson.loads(stored.payload)
        kind, id_ = said["k"], said["id"]
        owner, epoch = said.get("owner", ""), said.get("epoch", 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    types = [type(each) for each in (kind, id_, owner, epoch)]
    if number is None or kind not in ("intent", "entry") or types != [str, str, str, int]:
        return None
    if kind == "entry":
        try:
            AuditEntry.of(said)
        except ValueError:
            return None
    return LateMessage(number, stored.sequence, kind, id_, owner, epoch, said)


def _names(stored: Stored) -> set[str]:
    """The late messages that the entries of a record are about."""
    try:
        documents = [document_of(line) for line in AuditRecord.decode(stored.payload).lines]
    except ValueError:  # whoever verifies says so
        return set()
    named: set[str] = set()
    for said in documents:
        of = said.get("of")
        if type(of) is str:
            named.add(f"intent {of}")
            # What a fenced owner has left is a message of its own, also where its call is named already.
            if said.get("fate") in ("fenced", "unknown") and said["e"] != "unresolved":
                named.add(f"entry {of}")
    return named
