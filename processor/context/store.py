"""What one owner has of a route: its contexts and how far it has read, claimed, loaded and committed.

A route's worker calls `claim` once, `load` before a run and `commit` after it. Whoever changes a context from
outside asks `visit`, whoever looks on `reading`. Nothing else writes positions (`pos`), contexts (`ctx`), and
what commits changed in these (`hist`), of the route.

What must stay true:
- The position is the last message of its partition in every commit and carries the sequence of its
  predecessor as a fence, so of two that believe they own a partition only one can commit.
- A message is done when its sequence is not above the position and it is not among the `open` ones, which
  wait for another try. Every message at or below a position is done, open, or kept under `held` or `due`.
- After a commit returns, it is stored. After it raises Fenced, it is not and never will be.
"""

from __future__ import annotations

import asyncio
import copy
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from processor.audit import GENESIS, AuditEntry
from processor.context.chains import copied_heads, rebuilt
from processor.context.committer import Committer
from processor.context.history import History, Record, now
from processor.context.late import Intent, LateMessages, Look
from processor.context.parked import ParkedMessage
from processor.context.placement import Partition, Placement, size_of
from processor.context.position import InputStream, Move, Position, by_partition
from processor.context.reading import ParkedReader, counted_by, newest, patiently
from processor.context.route_chains import RouteChains
from processor.context.subjects import PositionKind, RouteSubjects, app_stream
from processor.errors import Edited, Fenced
from processor.jetstream import (
    BATCH_MAX,
    Again,
    Broker,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
    check_end,
)
from processor.model import ContextChange, Delivery
from processor.route import NO_AUDIT, RouteAudit
from processor.sandbox.values import TOMBSTONE

# A partition without messages of its own learns this much later that the stream went on without it: it
# bounds what a restart reads again only to skip it.
STALE_POSITIONS = 10_000
_HANDOVER_S = 2.0
_CLAIMS = 10
_LOAD_KEYS = 200  # keys in one read: their subjects make one request of moderate size


NONE: Mapping[int, Any] = MappingProxyType({})


async def _stay() -> None:
    """Leave positions that count by another key as they are: then nobody can claim them."""


class ContextStore:
    """The contexts and positions of one route, owned by one worker."""

    def __init__(
        self,
        broker: Broker,
        app: str,
        route: str,
        partitions: int,
        owner: str,
        owned: Iterable[int] | None = None,
        refused: Callable[[str | None], None] = lambda _: None,
        history_s: float = 0.0,
        *,
        kind: PositionKind = "pos",
        key: str = "",
        audit: RouteAudit = NO_AUDIT,
    ) -> None:
        """`refused` is called with why the server stores no commits, and with None when it does.

        Records of what commits changed are kept for `history_s` seconds; with 0 none are made. `key` is the
        setting of the route by which messages belong to partitions; empty where that is not recorded. `audit`
        says whether there are entries to be committed.
        """
        self._broker = broker
        self._history_s = history_s
        self._app = app
        self._stream = app_stream(app)
        self._kind = kind
        self._key = key
        self._subjects = RouteSubjects(app, route)
        self._route = route
        self._owner = self._name = owner
        self._lane = 0
        self._input = InputStream("", "")
        self._of = partitions
        self._partitions = {n: Partition(n) for n in (range(partitions) if owned is None else owned)}
        self._placement = Placement(self._subjects, partitions, self._partitions)
        self._sizes: dict[str, int] = {}
        # Up to here this owner has read the input, and settled or opened what was for its partitions. Not
        # what other owners have: positions that they left may be ahead of where we read.
        self._watermark = 0
        self.unannounced: list[Outgoing] = []
        self._committer = Committer(broker, self._stream, refused)
        self._parked = self._parked_reader()
        self._audit = audit
        self._chains = RouteChains(self._subjects, audit.copy_ttl_s)
        self._late = LateMessages(broker, self._subjects, self._partitions)
        self.claimed_entries = 0  # that the claim has added to chains

    def _parked_reader(self) -> ParkedReader:
        of, partitions = self._of, self._partitions
        return ParkedReader(self._broker, self._subjects, of, partitions, self._wait_for_replica)

    @property
    def bytes_held(self) -> int:
        """Encoded size of the contexts that were loaded or changed and not forgotten since, in bytes."""
        return sum(self._sizes.values())

    def partition(self, key: str) -> int:
        """The partition of `key`."""
        return self._placement.partition(key)

    def place(self, delivery: Delivery, key: str) -> int:
        """The partition whose position counts a message: the one that it was given to, or that of its key."""
        return self.partition(key) if delivery.dealt is None else self.counted_by(delivery.dealt)

    def counted_by(self, number: int) -> int:
        """The partition that has what is kept for `number`: the first for one beyond the last, which the dead
        letters of a hop name.
        """
        return counted_by(number, self._of)

    def part(self, lane: int, owned: Iterable[int], refused: Callable[[str | None], None]) -> ContextStore:
        """A store that commits for some of the partitions that this one has claimed, as lane `lane`.

        This one must not commit for them any more.
        """
        part = copy.copy(self)
        part._lane = lane
        part._partitions = {number: self._partitions[number] for number in owned}
        part._placement = Placement(self._subjects, self._of, part._partitions)
        part._sizes = {}
        part._watermark = min(p.position.sequence for p in part._partitions.values())
        part._committer = Committer(self._broker, self._stream, refused)
        part._parked = part._parked_reader()
        part._late = LateMessages(self._broker, self._subjects, part._partitions)
        return part

    @property
    def created(self) -> str:
        """When the input stream that was claimed was created; empty where none was."""
        return self._input.created

    @property
    def watermark(self) -> int:
        """Up to here the input was read for these partitions, by what was handed over to `commit`."""
        return self._watermark

    @property
    def owned(self) -> Collection[int]:
        """The partitions that this store commits for."""
        return self._partitions.keys()

    def is_done(self, partition: int, sequence: int) -> bool:
        """Whether this input message is settled, as far as commits are confirmed."""
        return self._partitions[partition].position.is_done(sequence)

    @property
    def tries(self) -> dict[int, int]:
        """The messages that were open at the last commit, with their tries until then."""
        return {s: tries for p in self._partitions.values() for s, tries in p.position.open.items()}

    @property
    def blocked(self) -> dict[str, int]:
        """The keys that were blocked at the last commit, with the tries of their first message."""
        return {key: tries for p in self._partitions.values() for key, tries in p.position.blocked.items()}

    def fruitless_claims(self, partition: int) -> int:
        """How often that partition was claimed in a row, before this time, without a commit after it."""
        return self._partitions[partition].position.claims - 1

    @property
    def epochs(self) -> dict[int, int]:
        """The epoch of each partition, as it was claimed last; an edit or a claim raises it."""
        return {partition.number: partition.position.epoch for partition in self._partitions.values()}

    async def claim(
        self,
        source: InputStream,
        start_after: int,
        is_there: Callable[[str], bool] = lambda _: False,
        *,
        holds: Collection[int] = (),
        settle_key: Callable[[], Awaitable[None]] = _stay,
    ) -> int:
        """Own the partitions, and return the first input sequence that may not be done.

        `start_after` is where a partition begins that has no position yet. Afterwards `unannounced` holds the
        live messages of the last commit, which may not have been sent. Raises BrokerError E407 when the
        positions belong to another stream, E418 when they are ahead of its end, E410 for a changed number of
        partitions, and Fenced when others keep claiming at the same time.

        An owner who `is_there` gets a moment to finish and let go; what it has in hand would be done again.
        Where positions count by another key, `settle_key` is called, which moves them or raises.
        In the partitions `holds` edits are asked to wait for our next commit: one of them has cost us work.
        """
        self._input = source
        until_s = time.monotonic() + _HANDOVER_S
        owned = list(self._partitions.values())
        for _ in range(_CLAIMS):
            is_another_key = await self._read_positions(start_after)
            while time.monotonic() < until_s and any(is_there(p.position.owner) for p in owned):
                await asyncio.sleep(0.02)
                is_another_key = await self._read_positions(start_after)
            if is_another_key:
                await settle_key()
                continue
            for partition in owned:
                position = partition.position
                position.epoch += 1
                # What was claimed by a process that still lives has not ended it.
                position.claims += position.owner != self._owner
            look = await self._late.look(self._owner, is_claim=True) if self._audit.is_on else Look()
            look.entries[:0] = await self._resume_chains()
            claims = self._chained(_by_partition(look.entries), look.marks, "claim")
            claims += [self._position_message(p, "claim", holds=p.number in holds) for p in owned]
            try:
                last = await self._broker.commit(claims)
            except (WrongLastSequence, Unknown, Again) as err:
                # Of those who claim or edit at the same time, each has to get through.
                await asyncio.sleep(random.random() / 25 if isinstance(err, WrongLastSequence) else 0.1)
                continue
            for back, partition in enumerate(reversed(owned)):
                partition.fence = last - back
            self.claimed_entries = len(look.entries)
            self._watermark = min(p.position.sequence for p in owned)
            return min(p.position.first_needed for p in owned)
        raise self._fenced()

    async def _read_positions(self, start_after: int) -> bool:
        """Whether a position counts by another key than ours."""
        is_another = False
        found = by_partition(await patiently(self._broker, self._stream, [self._position_subject("*")]))
        positions = {number: Position.read(stored) for number, stored in found.items()}
        self.unannounced = [
            message
            for number, message in _unannounced(positions, {n: s.sequence for n, s in found.items()})
            if number in self._partitions
        ]
        for number, partition in self._partitions.items():
            if number not in positions:
                partition.take(Position(self._input, self._of, start_after), 0)
                continue
            position = positions[number]
            position.check_usable(self._route, self._of)
            position.check_input(self._route, self._input)
            is_another |= bool(self._key) and position.key not in ("", self._key)
            partition.take(position, found[number].sequence)
        ahead = max(p.position.sequence for p in self._partitions.values())
        if ahead > self._input.ends_at:  # others may have read on since then
            source, who = self._input, f"the position of route {self._route}"
            await check_end(self._broker, source.stream, source.created, ahead, who)
        return is_another

    async def _resume_chains(self) -> list[tuple[int, AuditEntry]]:
        """Let chains whose positions are gone go on behind what was copied of them; the entries that say so.

        So it is after the app's stream was lost. A chain that began again would look like one that was cut.
        """
        new = [p for p in self._partitions.values() if not p.fence and p.position.chain == GENESIS]
        if not self._audit.is_on or not new:
            return []
        heads = await copied_heads(self._broker, self._subjects.app, self._route)
        resumed = [partition for partition in new if partition.number in heads]
        for partition in resumed:
            partition.position.chain = heads[partition.number]
        return [(partition.number, rebuilt()) for partition in resumed]

    @property
    def is_spread(self) -> bool:
        """Whether there are contexts that `load` must ask the server for."""
        return self._placement.is_spread

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that belong to us and whose contexts, if they have any, are not in a position."""
        return self._placement.unread(keys)

    async def load(self, keys: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """The committed contexts of `keys`, as encoded items; empty for a key that was never committed.

        Must not be called for a key with changes that are not committed yet. Raises Fenced.
        """
        loaded = {key: self._placement.inline(key) for key in keys}
        outside = self.unread(loaded)
        for start in range(0, len(outside), _LOAD_KEYS):
            some = outside[start : start + _LOAD_KEYS]
            read = {key: loaded[key] for key in some}
            self._placement.read(await self._read_outside(some), read)
            loaded |= read
        for key, items in loaded.items():
            self._sizes[key] = size_of(items)
        return loaded

    async def _read_outside(self, keys: Sequence[str]) -> list[Stored]:
        """What these keys have outside of positions, at our newest commit or later. Raises Fenced."""
        owned = [self._partitions[number] for number in {self.partition(key) for key in keys}]
        # A replica may lag behind the commits we know of. It has all of the stream up to some sequence: when
        # it has our newest position it has our contexts.
        last = max(owned, key=lambda partition: partition.fence)
        position = self._position_subject(last.number)
        subjects = [*self._placement.patterns(keys), position]
        while True:
            stored = await patiently(self._broker, self._stream, subjects)
            found = next((s for s in stored if s.subject == position), None)
            if found is not None and found.sequence >= last.fence:
                # It may be a commit of ours that is under way: that one changes nothing of these keys.
                if found.sequence > last.fence and Position.read(found).epoch > last.position.epoch:
                    await self._check_owned({partition.number for partition in owned})
                return stored
            await self._wait_for_replica(last)

    def scattered(self, changes: Mapping[str, ContextChange]) -> int:
        """How many messages write those of the changed contexts that come whole and are kept by item.

        A context that is kept by item stays so when it is small again; what it has no more is removed.
        """
        return self._placement.scattered(changes)

    async def due(self, after: int) -> tuple[list[ParkedMessage], int]:
        """Messages of our partitions that are due, in order; see `ParkedReader.due`. Raises Fenced."""
        return await self._parked.due(after)

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        """The first messages of a blocked key, at most `limit`, and whether there are more. Raises Fenced."""
        return await self._parked.held(key, limit)

    async def _wait_for_replica(self, partition: Partition) -> None:
        """Give a replica that lags a moment. Raises Fenced where the position is gone, and so the stream."""
        if await newest(self._broker, self._stream, self._position_subject(partition.number)) is None:
            raise self._fenced()
        await asyncio.sleep(0.02)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop what is remembered of these keys; they will be loaded when they are needed again."""
        for key in keys:
            self._placement.forget(key)
            self._sizes.pop(key, None)

    async def commit(
        self,
        messages: Sequence[Outgoing],
        changes: Mapping[str, ContextChange],
        moves: Mapping[int, Move],
        *,
        live: Sequence[Outgoing] = (),
        first_left: int | None = None,
        entries: Mapping[int, Sequence[AuditEntry]] = NONE,
        marks: Mapping[int, int] = NONE,
    ) -> int:
        """Store `messages`, the changed contexts and the new positions in one atomic write.

        Returns its number of messages when the server confirmed it, after however many tries that takes:
        while the server is down, and while it refuses to store (which `refused` is told). `live` is
        remembered in the position, for a successor to send if we cannot. Partitions without a move may go on
        to the last sequence of `moves`, but stay before `first_left`, which is still to be processed.
        `entries` are added to the audit chains of partitions, each of which has a move; `marks` say how far
        looks have come. Raises Fenced when somebody else owns a partition by now; then nothing was stored.
        """
        commit_id = secrets.token_hex(8)
        batch = [*messages, *(self._records(changes, moves, commit_id) if self._history_s else ())]
        batch += self._chained(entries, marks, commit_id)
        for key, change in changes.items():
            if change.gone:
                self._sizes.pop(key, None)
            else:
                self._sizes[key] = change.size
            batch += self._placement.written(key, change)
        moved = [self._partitions[number] for number in moves]
        for partition in moved:
            partition.position.apply(moves[partition.number])
        batch += [self._position_message(p, commit_id, live if p is moved[-1] else ()) for p in moved]
        reached = max((move.sequence for move in moves.values()), default=0)
        if first_left is not None:
            reached = min(reached, first_left - 1)
        self._watermark = max(self._watermark, reached)
        stale = self._stale(moves)[: BATCH_MAX - len(batch)]
        for partition in stale:
            partition.position.sequence = self._watermark
        batch += [self._position_message(p, commit_id) for p in stale]
        after = max(partition.fence for partition in self._partitions.values())
        last = await self._committer.commit(batch, commit_id, after)
        if last is None:
            in_hand = {number for number, move in moves.items() if move != Move()}
            raise self._fenced(await self._overtakers(), in_hand)
        for back, partition in enumerate(reversed([*moved, *stale])):
            partition.fence = last - back
        for added in entries.values():
            self._late.settled(added)
        return len(batch)

    def _chained(
        self, entries: Mapping[int, Sequence[AuditEntry]], marks: Mapping[int, int], commit_id: str
    ) -> list[Outgoing]:
        """The records of these entries; the positions, which follow in the same commit, go on by them."""
        for number, mark in marks.items():
            position = self._partitions[number].position
            position.looked = max(position.looked, mark)
        return [
            record
            for number, added in entries.items()
            for record in self._chains.records(
                self._partitions[number], added, commit_id, self._broker.max_payload
            )
        ]

    async def announce(self, partition: int, intent: Intent) -> None:
        """Write down a call that is about to be made, however long that takes; it is not fenced.

        Raises ApiError or BrokerError where the server refuses it.
        """
        await self._late.announce(partition, intent, self._name)

    async def look(self) -> Look:
        """What the audit chains of our partitions lack of late messages: to be committed."""
        return await self._late.look(self._name, is_claim=False)

    async def leave(self, entries: Sequence[tuple[int, AuditEntry]]) -> None:
        """Store entries that cannot be committed any more, for whoever owns their partitions next."""
        for number, entry in entries:
            await self._late.leave(number, entry)

    async def release(self) -> None:
        """Let others have the partitions at once, and move them to where the stream is."""
        self._owner = ""
        for partition in self._partitions.values():
            partition.position.sequence = max(partition.position.sequence, self._watermark)
        await self.commit((), {}, {number: Move() for number in self._partitions})

    def _stale(self, moves: Mapping[int, Move]) -> list[Partition]:
        line = self._watermark - STALE_POSITIONS
        return [p for p in self._partitions.values() if p.position.sequence < line and p.number not in moves]

    async def _check_owned(self, in_hand: Collection[int]) -> None:
        """Raise Fenced if somebody else wrote a position since our last commit."""
        if newer := await self._overtakers():
            raise self._fenced(newer, in_hand)

    async def _overtakers(self) -> list[str]:
        """The owners of positions that were claimed, edited or reset since we claimed them."""
        subjects = [*map(self._position_subject, self._partitions)]
        stored = by_partition(await patiently(self._broker, self._stream, subjects))
        now_there = {number: Position.read(message) for number, message in stored.items()}
        return [p.owner for n, p in now_there.items() if p.epoch > self._partitions[n].position.epoch]

    def _fenced(self, overtakers: Sequence[str] = (), in_hand: Collection[int] = ()) -> Fenced:
        if overtakers and all(owner == self._name for owner in overtakers):
            return Edited(self._route, in_hand)
        return Fenced(
            "E405",
            f"another processor has claimed partitions of route {self._route} that this one had",
            remedy="What this one had in hand is done there; nothing is lost.",
        )

    def _records(
        self, changes: Mapping[str, ContextChange], moves: Mapping[int, Move], commit_id: str
    ) -> list[Outgoing]:
        """What a commit changes, written down; to be made before anything of it is applied here."""
        history, at = History(self._app, self._route, self._broker.max_payload), now()
        messages: list[Outgoing] = []
        for key, change in changes.items():
            partition = self._partitions[self.partition(key)]
            # What the position does not have, nobody here has: then all of a small context is written down.
            is_known = key in partition.inline or not partition.position.is_spread
            before = partition.inline.get(key, {})
            after = dict.fromkeys(before, None) if change.whole else {}
            news = {k: v for k, v in {**after, **change.items}.items() if not is_known or before.get(k) != v}
            if not news:
                continue
            items = {name: value for name, value in news.items() if value not in (None, TOMBSTONE)}
            removed = () if change.whole and not is_known else news.keys() - items.keys()
            move = moves.get(partition.number, Move())
            is_new = move.sequence > partition.position.sequence
            record = Record(
                key,
                commit_id,
                at,
                items,
                tuple(sorted(removed)),
                is_whole=change.whole and not is_known,
                bytes=change.size,
                first=partition.position.sequence + 1 if is_new else 0,
                last=move.sequence if is_new else 0,
            )
            messages.append(history.message(partition.number, record, self._history_s))
        return messages

    def _position_message(
        self, partition: Partition, commit_id: str, live: Sequence[Outgoing] = (), *, holds: bool = False
    ) -> Outgoing:
        position = partition.position
        position.owner, position.lane, position.commit_id = self._owner, self._lane, commit_id
        position.key = self._key or position.key
        position.live, position.holds = tuple(live), holds
        return partition.message(self._position_subject(partition.number))

    def _position_subject(self, partition: int | str) -> str:
        return self._subjects.position(partition, kind=self._kind)


def _by_partition(entries: Sequence[tuple[int, AuditEntry]]) -> dict[int, list[AuditEntry]]:
    found: dict[int, list[AuditEntry]] = {}
    for number, entry in entries:
        found.setdefault(number, []).append(entry)
    return found


def _unannounced(
    positions: Mapping[int, Position], sequences: Mapping[int, int]
) -> Iterator[tuple[int, Outgoing]]:
    """The live messages of the last commit of every owner and lane, with the partition that has them.

    Each lane commits one after the other: whatever came before its last commit was sent. `sequences` are
    those of the position messages.
    """
    last: dict[tuple[str, int], int] = {}
    for number, position in positions.items():
        writer = position.owner, position.lane
        last[writer] = max(last.get(writer, number), number, key=lambda each: sequences[each])
    for number in last.values():
        for message in positions[number].live:
            yield number, message
