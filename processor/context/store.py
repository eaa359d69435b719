"""What a route keeps and how far it has read, as messages in its app's stream.

A route's worker calls `claim` once, `load` before a run and `commit` after it. Whoever changes a context from
outside (`edits`) calls `visit` and commits what `rewrite` makes; who only looks calls `read`. Nothing else
writes positions (`pos`), contexts (`ctx`), and what commits changed in these (`hist`), of the route.

What must stay true:
- The position is the last message of its partition in every commit and carries the sequence of its
  predecessor as a fence, so of two that believe they own a partition only one can commit.
- A message is done when its sequence is not above the position and it is not among the `open` ones, which
  wait for another try. Every message at or below a position is done, open, or kept under `held` or `due`.
- A context moves outwards only (position -> one message -> one message per item), and leaves its old place
  in the commit that writes the new one: reading is the union of what is there, without precedence rules.
- After a commit returns, it is stored. After it raises Fenced, it is not and never will be.
- An edit changes the contexts in a position, its epoch and its fence, and leaves all else as it is: the
  owner's next commit is refused, and it goes on from there with the edit.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from processor.context import parked
from processor.context.history import History, Record, now
from processor.context.parked import ParkedMessage
from processor.context.position import (
    VERSION,
    by_partition,
    contexts_of,
    dump_items,
    items_of,
    remains,
    unknown_fields,
    written_contexts,
)
from processor.context.position import read as read_position
from processor.context.subjects import WHOLE, PositionKind, RouteSubjects, SubjectParts, app_stream
from processor.errors import BrokerError, Edited, Fenced
from processor.jetstream import (
    BATCH_MAX,
    EXPECTED,
    GONE,
    KEPT,
    Again,
    ApiError,
    Broker,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
    check_end,
)
from processor.model import WHOLE_BYTES, ContextChange, Delivery, key_from_token, key_token, partition_of
from processor.sandbox.values import TOMBSTONE

# So many contexts of a partition, up to this size together, ride in its position message, which every commit
# writes anyway. More would be written again and again for the few of them that change.
INLINE_MAX_BYTES = WHOLE_BYTES
INLINE_MAX_KEYS = 8
# A partition without messages of its own learns this much later that the stream went on without it: it
# bounds what a restart reads again only to skip it.
STALE_POSITIONS = 10_000
_HANDOVER_S = 2.0
_CLAIMS = 10
_PATIENCE_S = 5.0  # how long a commit may be refused as premature before somebody is told
_PAUSE_MAX_S = 2.0
_DUE_PAGE = 2000  # messages that are due, in one answer
_LOAD_KEYS = 200  # keys in one read: their subjects make one request of moderate size
_READ_KEYS = 50  # contexts outside of positions that somebody who looks at all of them holds in memory
_ITEM_HEADER = "Processor-Item"


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
class _Partition:
    number: int
    fence: int = 0  # stream sequence of the position message
    sequence: int = 0  # last input sequence that was taken up
    epoch: int = 0
    owner: str = ""  # who wrote it last; nobody, where it was released
    claims: int = 0  # times in a row that it was claimed and then nothing was committed
    open: dict[int, int] = field(default_factory=dict)
    blocked: dict[str, int] = field(default_factory=dict)
    spread: bool = False  # some context of this partition lives outside the position message
    inline: dict[str, dict[str, bytes]] = field(default_factory=dict)
    inline_bytes: dict[str, int] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)  # as it was read
    unknown: dict[str, Any] = field(default_factory=dict)  # what a later build has written there


@dataclass(slots=True)
class _Outside:
    """Where a context lives that is not in the position message; `items` is None while it is one message."""

    items: set[str] | None


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
    ) -> None:
        self._broker = broker
        self._refused = refused  # called with why the server stores no commits, and with None when it does
        self._history_s = history_s  # how long records of what commits changed are kept; 0: none are made
        self._app = app
        self._stream = app_stream(app)
        self._kind = kind
        self._subjects = RouteSubjects(app, route)
        self._route = route
        self._owner = self._name = owner
        self._lane = 0
        self._input = InputStream("", "")
        self._of = partitions
        self._partitions = {n: _Partition(n) for n in (range(partitions) if owned is None else owned)}
        self._outside: dict[str, _Outside] = {}
        self._sizes: dict[str, int] = {}
        # Up to here this owner has read the input, and settled or opened what was for its partitions. Not
        # what other owners have: positions that they left may be ahead of where we read.
        self._watermark = 0
        self.unannounced: list[Outgoing] = []

    @property
    def bytes_held(self) -> int:
        """Encoded size of the contexts that were loaded or changed and not forgotten since, in bytes."""
        return sum(self._sizes.values())

    def partition(self, key: str) -> int:
        """The partition of `key`."""
        return partition_of(key, self._of)

    def place(self, delivery: Delivery, key: str) -> int:
        """The partition whose position counts a message: the one that it was given to, or that of its key."""
        return self.partition(key) if delivery.dealt is None else self.counted_by(delivery.dealt)

    def counted_by(self, number: int) -> int:
        """The partition that has what is kept for `number`: the first for one beyond the last, which the dead
        letters of a hop name.
        """
        return number if number < self._of else 0

    def part(self, lane: int, owned: Iterable[int], refused: Callable[[str | None], None]) -> ContextStore:
        """A store that commits for some of the partitions that this one has claimed, as lane `lane`.

        This one must not commit for them any more.
        """
        part = copy.copy(self)
        part._lane = lane
        part._refused = refused
        part._partitions = {number: self._partitions[number] for number in owned}
        part._outside, part._sizes = {}, {}
        part._watermark = min(p.sequence for p in part._partitions.values())
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
        position = self._partitions[partition]
        return sequence <= position.sequence and sequence not in position.open

    @property
    def tries(self) -> dict[int, int]:
        """The messages that were open at the last commit, with their tries until then."""
        return {s: tries for p in self._partitions.values() for s, tries in p.open.items()}

    @property
    def blocked(self) -> dict[str, int]:
        """The keys that were blocked at the last commit, with the tries of their first message."""
        return {key: tries for p in self._partitions.values() for key, tries in p.blocked.items()}

    def fruitless_claims(self, partition: int) -> int:
        """How often that partition was claimed in a row, before this time, without a commit after it."""
        return self._partitions[partition].claims - 1

    async def claim(
        self,
        source: InputStream,
        start_after: int,
        is_there: Callable[[str], bool] = lambda _: False,
        *,
        holds: Collection[int] = (),
    ) -> int:
        """Own the partitions, and return the first input sequence that may not be done.

        `start_after` is where a partition begins that has no position yet. Afterwards `unannounced` holds the
        live messages of the last commit, which may not have been sent. Raises BrokerError E407 when the
        positions belong to another stream, E418 when they are ahead of its end, E410 for a changed number of
        partitions, and Fenced when others keep claiming at the same time.

        An owner who `is_there` gets a moment to finish and let go; what it has in hand would be done again.
        In the partitions `holds` edits are asked to wait for our next commit: one of them has cost us work.
        """
        self._input = source
        until_s = time.monotonic() + _HANDOVER_S
        for _ in range(_CLAIMS):
            await self._read_positions(start_after)
            while time.monotonic() < until_s and any(is_there(p.owner) for p in self._partitions.values()):
                await asyncio.sleep(0.02)
                await self._read_positions(start_after)
            owned = list(self._partitions.values())
            for partition in owned:
                partition.epoch += 1
                # What was claimed by a process that still lives has not ended it.
                partition.claims += partition.owner != self._owner
            claims = [self._position_message(p, "claim", holds=p.number in holds) for p in owned]
            try:
                last = await self._broker.commit(claims)
            except (WrongLastSequence, Unknown, Again) as err:
                # Of those who claim or edit at the same time, each has to get through.
                await asyncio.sleep(random.random() / 25 if isinstance(err, WrongLastSequence) else 0.1)
                continue
            for index, partition in enumerate(owned):
                partition.fence = last - (len(claims) - 1 - index)
            self._watermark = min(p.sequence for p in owned)
            return min(min(p.open, default=p.sequence + 1) for p in owned)
        raise self._fenced()

    async def _read_positions(self, start_after: int) -> None:
        found = by_partition(await _patiently(self._broker, self._stream, [self._position("*")]))
        self.unannounced = [live for number, live in _unannounced(found) if number in self._partitions]
        for partition in self._partitions.values():
            position = found.get(partition.number)
            if position is None:
                partition.sequence, partition.fence = start_after, 0
                partition.epoch = partition.claims = 0
                partition.unknown = {}
                continue
            body = read_position(position)
            self._check_position(body)
            self._check_input(body)
            partition.fence = position.sequence
            partition.sequence = body["seq"]
            partition.epoch = body["epoch"]
            partition.owner = body["owner"]
            partition.claims = body.get("claims", 0)
            partition.open = {int(sequence): tries for sequence, tries in body.get("open", {}).items()}
            partition.blocked = dict(body.get("blocked", {}))
            partition.unknown = unknown_fields(body)
            _take_inline(partition, body)
        ahead = max(p.sequence for p in self._partitions.values())
        if ahead > self._input.ends_at:  # others may have read on since then
            source, who = self._input, f"the position of route {self._route}"
            await check_end(self._broker, source.stream, source.created, ahead, who)

    def _check_position(self, body: Mapping[str, Any]) -> None:
        if body["v"] != VERSION:
            raise BrokerError(
                "E410",
                f"the position of route {self._route} has version {body['v']}, this build reads {VERSION}",
                remedy="Run the version of Processor that wrote it, or a later one.",
            )
        if "resetting" in body:
            raise BrokerError(
                "E412",
                f"a reset of route {self._route} is not finished",
                remedy="Run the same `processor reset` again; until then the route stands still.",
            )
        if body["of"] != self._of:
            raise BrokerError(
                "E410",
                f"route {self._route} was created with {body['of']} partitions and now has {self._of}",
                remedy=f"Set partitions: {body['of']}, or give the route another name.",
            )

    def _check_input(self, body: Mapping[str, Any]) -> None:
        if (body["stream"], body["created"]) != (self._input.stream, self._input.created):
            raise BrokerError(
                "E407",
                f"the position of route {self._route} counts in stream {body['stream']} created at "
                f"{body['created']}, but its input is stream {self._input.stream} created at "
                f"{self._input.created}",
                remedy="Restore that stream, or have the route read the new one: `processor reset`.",
            )

    @property
    def is_spread(self) -> bool:
        """Whether there are contexts that `load` must ask the server for."""
        return any(partition.spread for partition in self._partitions.values())

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that belong to us and whose contexts, if they have any, are not in a position."""
        owned = ((key, self._partitions.get(self.partition(key))) for key in keys)
        return [
            key for key, partition in owned if partition and partition.spread and key not in partition.inline
        ]

    async def load(self, keys: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """The committed contexts of `keys`, as encoded items; empty for a key that was never committed.

        Must not be called for a key with changes that are not committed yet. Raises Fenced.
        """
        loaded = {key: dict(self._partitions[self.partition(key)].inline.get(key, {})) for key in keys}
        outside = self.unread(loaded)
        for start in range(0, len(outside), _LOAD_KEYS):
            await self._load_outside(outside[start : start + _LOAD_KEYS], loaded)
        for key, items in loaded.items():
            self._sizes[key] = _size(items)
        return loaded

    async def visit(self, keys: Collection[str]) -> dict[str, dict[str, bytes]]:
        """The contexts of `keys` from one view of the stream, to be changed by `rewrite`; owns nothing.

        Afterwards the partitions of this store are those of `keys`. Raises BrokerError E401 where one has no
        position yet, and E410 or E412 where it cannot be changed.
        """
        by_subject = self._by_subject(keys)
        self._partitions = {n: _Partition(n) for n in sorted({self.partition(key) for key in keys})}
        self._outside.clear()
        subjects = [*by_subject, *map(self._position, self._partitions)]
        stored = await _patiently(self._broker, self._stream, subjects)
        for message in stored:
            kind, _, number, _ = SubjectParts.of(message.subject)
            if kind != self._kind or number is None:
                continue
            partition = self._partitions[number]
            partition.body = read_position(message)
            self._check_position(partition.body)
            partition.fence, partition.epoch = message.sequence, partition.body["epoch"]
            _take_inline(partition, partition.body)
        missing = [number for number, partition in self._partitions.items() if not partition.body]
        if missing:
            for position in await _patiently(self._broker, self._stream, [self._position("*")]):
                self._check_position(read_position(position))
            raise BrokerError(
                "E401",
                f"partition {missing[0]} of route {self._route} has no position in {self._stream}",
                remedy="It has not run yet: start the route once.",
            )
        contexts = {key: dict(self._partitions[self.partition(key)].inline.get(key, {})) for key in keys}
        self._take_outside(stored, by_subject, contexts)
        return contexts

    def rewrite(self, changes: Mapping[str, ContextChange | None], commit_id: str) -> list[Outgoing]:
        """The messages that change contexts as they were visited (None: that remove one), for one commit.

        The positions are the last of them; their fences refuse the commit where anything was committed since.
        """
        messages: list[Outgoing] = []
        for key, change in changes.items():
            messages += self._removed(key) if change is None else self._context_messages({key: change})
        changed = {self.partition(key) for key in changes}
        for partition in (self._partitions[number] for number in sorted(changed)):
            partition.epoch += 1
            kept = {k: v for k, v in partition.body.items() if k not in ("ctx", "spread", "holds")}
            body = {**kept, "epoch": partition.epoch, "cid": commit_id, **_contexts_of(partition)}
            messages.append(self._fenced_message(partition, body))
        return messages

    @property
    def is_held(self) -> bool:
        """Whether an owner of a visited position asks edits to wait for its next commit."""
        return any(partition.body.get("holds") for partition in self._partitions.values())

    @property
    def epochs(self) -> dict[int, int]:
        """The epoch of each partition, as it was claimed or rewritten last; an edit or a claim raises it."""
        return {partition.number: partition.epoch for partition in self._partitions.values()}

    async def _load_outside(self, keys: Sequence[str], loaded: dict[str, dict[str, bytes]]) -> None:
        by_subject = self._by_subject(keys)
        partitions = {self.partition(k) for k in keys}
        # A replica may lag behind the commits we know of. It has all of the stream up to some sequence: when
        # it has our newest position it has our contexts.
        newest = max((self._partitions[p] for p in partitions), key=lambda partition: partition.fence)
        position = self._position(newest.number)
        subjects = [*by_subject, position]
        while True:
            stored = await _patiently(self._broker, self._stream, subjects)
            found = next((s for s in stored if s.subject == position), None)
            if found is not None and found.sequence >= newest.fence:
                # It may be a commit of ours that is under way: that one changes nothing of these keys.
                if found.sequence > newest.fence and read_position(found)["epoch"] > newest.epoch:
                    await self._check_owned(partitions)
                break
            await self._wait_for_replica(newest)
        self._take_outside(stored, by_subject, loaded)

    def _by_subject(self, keys: Iterable[str]) -> dict[str, str]:
        """Keys by the pattern of what their contexts have outside of a position."""
        return {self._subjects.context(self.partition(key), key): key for key in keys}

    def _take_outside(
        self, stored: Iterable[Stored], by_subject: Mapping[str, str], loaded: dict[str, dict[str, bytes]]
    ) -> None:
        for message in stored:
            prefix, _, item = message.subject.rpartition(".")
            key = by_subject.get(f"{prefix}.*")
            if key is None or not message.payload:
                continue
            if item == WHOLE:
                loaded[key] = items_of(message.payload)
                self._outside[key] = _Outside(None)
            else:
                name = _item_name(item, message.headers)
                loaded[key][name] = message.payload
                place = self._outside.setdefault(key, _Outside(set()))
                assert place.items is not None
                place.items.add(name)

    def scattered(self, changes: Mapping[str, ContextChange]) -> int:
        """How many messages write those of the changed contexts that come whole and are kept by item.

        A context that is kept by item stays so when it is small again; what it has no more is removed.
        """
        places = {key: self._outside.get(key) for key, change in changes.items() if change.whole}
        return sum(
            len(place.items | changes[key].items.keys())
            for key, place in places.items()
            if place is not None and place.items is not None
        )

    async def due(self, after: int) -> tuple[list[ParkedMessage], int]:
        """Messages of our partitions that are due, in order, from behind a place in the app's stream on.

        Says up to which place it has looked, too; that is `after` only where there is nothing more, by what
        the stream's leader has. Raises Fenced.
        """
        # One filter, and no consumer: what is read here is taken away message by message meanwhile, which
        # costs the server 1.2 ms each where a consumer with several filters reads it (nats-server 2.15).
        subject = self._subjects.every("due")
        while True:
            await self._broker.connected()
            with contextlib.suppress(Unknown, Again, ApiError):
                stored = await self._broker.page_of(self._stream, subject, after + 1, _DUE_PAGE)
                if stored:
                    ours = [s for s in stored if self._keeps(SubjectParts.of(s.subject).partition)]
                    found = [kept for kept in map(parked.read, ours) if kept is not None]
                    return found, stored[-1].sequence
                if not await self._is_missing(subject, after + 1):
                    return [], after
            await self._wait_for_replica(next(iter(self._partitions.values())))

    def _keeps(self, partition: int | None) -> bool:
        return partition is not None and self.counted_by(partition) in self._partitions

    async def _is_missing(self, subject: str, sequence: int) -> bool:
        """Whether the stream's leader has what another replica had not: the one that answered lags behind."""
        info = await self._broker.stream(self._stream)
        if info is not None and info["config"].get("num_replicas", 1) == 1:
            return False
        try:
            return await self._broker.next_of(self._stream, subject, sequence) is not None
        except BrokerError as err:
            if err.code == "E403":  # said by the service; who may not ask takes the answer that there was
                return False
            raise

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        """The first messages of a blocked key, at most `limit`, and whether there are more. Raises Fenced."""
        number = self.partition(key)
        subject, position = self._subjects.held(number, key), self._position(number)
        while True:
            await self._broker.connected()
            found: list[ParkedMessage] = []
            seen: list[Stored] = []
            try:
                async for stored in self._broker.history(self._stream, [subject, position]):
                    kept = parked.read(stored)
                    if kept is not None and len(found) == limit:
                        return found, True
                    if kept is not None:
                        found.append(kept)
                    seen = [stored]  # the position is the last of what we committed
                if _is_recent(seen, {position: self._partitions[number].fence}):
                    return found, False
                await self._wait_for_replica(self._partitions[number])
            except (Unknown, Again, ApiError):
                await asyncio.sleep(0.1)

    async def _wait_for_replica(self, partition: _Partition) -> None:
        """Give a replica that lags a moment. Raises Fenced where the position is gone, and so the stream."""
        if await self._newest(partition) is None:
            raise self._fenced()
        await asyncio.sleep(0.02)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop what is remembered of these keys; they will be loaded when they are needed again."""
        for key in keys:
            self._outside.pop(key, None)
            self._sizes.pop(key, None)

    async def commit(
        self,
        messages: Sequence[Outgoing],
        changes: Mapping[str, ContextChange],
        moves: Mapping[int, Move],
        *,
        live: Sequence[Outgoing] = (),
        first_left: int | None = None,
    ) -> int:
        """Store `messages`, the changed contexts and the new positions in one atomic write.

        Returns its number of messages when the server confirmed it, after however many tries that takes:
        while the server is down, and while it refuses to store (which `refused` is told). `live` is
        remembered in the position, for a successor to send if we cannot. Partitions without a move may go on
        to the last sequence of `moves`, but stay before `first_left`, which is still to be processed. Raises
        Fenced when somebody else owns a partition by now; then nothing was stored.
        """
        commit_id = secrets.token_hex(8)
        records = self._records(changes, moves, commit_id) if self._history_s else []
        batch = [*messages, *records, *self._context_messages(changes)]
        owned = [self._move(number, move) for number, move in moves.items()]
        batch += [self._position_message(p, commit_id, live if p is owned[-1] else ()) for p in owned]
        reached = max((move.sequence for move in moves.values()), default=0)
        if first_left is not None:
            reached = min(reached, first_left - 1)
        self._watermark = max(self._watermark, reached)
        stale = self._stale(moves)[: BATCH_MAX - len(batch)]
        for partition in stale:
            partition.sequence = self._watermark
        batch += [self._position_message(p, commit_id) for p in stale]
        in_hand = {number for number, move in moves.items() if move != Move()}
        last = await self._commit_surely(batch, commit_id, [*owned, *stale], in_hand)
        for back, partition in enumerate(reversed([*owned, *stale])):
            partition.fence = last - back
        return len(batch)

    def _move(self, number: int, move: Move) -> _Partition:
        partition = self._partitions[number]
        partition.claims = 0
        partition.sequence = max(partition.sequence, move.sequence)
        partition.open = {k: v for k, v in {**partition.open, **move.opened}.items() if k not in move.closed}
        for key, tries in move.blocked.items():
            if tries is None:
                partition.blocked.pop(key, None)
            else:
                partition.blocked[key] = tries
        return partition

    async def release(self) -> None:
        """Let others have the partitions at once, and move them to where the stream is."""
        self._owner = ""
        for partition in self._partitions.values():
            partition.sequence = max(partition.sequence, self._watermark)
        await self.commit((), {}, {number: Move() for number in self._partitions})

    def _stale(self, moves: Mapping[int, Move]) -> list[_Partition]:
        line = self._watermark - STALE_POSITIONS
        return [p for p in self._partitions.values() if p.sequence < line and p.number not in moves]

    async def _commit_surely(
        self,
        batch: Sequence[Outgoing],
        commit_id: str,
        partitions: Sequence[_Partition],
        in_hand: Collection[int],
    ) -> int:
        pause_s, given_up = 0.05, ""
        began_s = time.monotonic()
        while True:
            await self._broker.connected()
            attempt = secrets.token_hex(12)
            try:
                last = await self._broker.commit(batch, batch=attempt)
                break
            except WrongLastSequence:
                # Ours, when an earlier try was stored and only its answer was lost.
                stored = await self._stored_at(partitions[-1], commit_id)
                if stored is None:
                    raise self._fenced(await self._overtakers(), in_hand) from None
                last = stored
                break
            except Unknown:
                await self._broker.connected()
                stored = await self._stored_at(partitions[-1], commit_id)
                if stored is None:
                    batch = await self._not_stored(batch, attempt)
                if not batch:  # it was stored only now, between the two looks
                    stored = await self._stored_at(partitions[-1], commit_id)
                    if stored is None:
                        raise self._fenced(await self._overtakers(), in_hand) from None
                if stored is not None:
                    last = stored
                    break
            except Again as err:
                # A member that is refused for good looks like this too: the server only says "incomplete".
                if time.monotonic() - began_s > _PATIENCE_S:
                    given_up = (
                        f"E406 the server stores no commit: {err}. Nothing is skipped; it is tried again."
                    )
            except BrokerError as err:
                given_up = str(err)
                batch = await self._not_stored(batch, attempt)
            if given_up:
                self._refused(given_up)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        if given_up:
            self._refused(None)
        return last

    async def _stored_at(self, partition: _Partition, commit_id: str) -> int | None:
        """The sequence of a partition's position, where it is of this commit."""
        position = await self._newest(partition)
        is_ours = position is not None and read_position(position)["cid"] == commit_id
        return position.sequence if position is not None and is_ours else None

    async def _not_stored(self, batch: Sequence[Outgoing], attempt: str) -> Sequence[Outgoing]:
        """What is left to be stored of a batch that was refused.

        nats-server 2.15 looks at limits (account, server, disk) message by message while it stores a batch:
        one that comes to a limit in the middle keeps what went before. The position is last: it is among that
        only where all of it is, because a commit that was not answered was stored meanwhile.
        """
        if len(batch) == 1:
            return batch
        start = max(partition.fence for partition in self._partitions.values()) + 1
        while True:
            try:
                stored = await self._broker.stored_of_batch(self._stream, attempt, batch, start)
                break
            except (Unknown, Again, ApiError):
                await self._broker.connected()
                await asyncio.sleep(0.1)
            except BrokerError:  # without permission to look, nothing can be known
                return batch
        return [message for number, message in enumerate(batch, 1) if number not in stored]

    async def _newest(self, partition: _Partition) -> Stored | None:
        """The position message of a partition as the stream's leader has it."""
        while True:
            try:
                return await self._broker.last_from_leader(self._stream, self._position(partition.number))
            except (Unknown, Again):
                await self._broker.connected()
                await asyncio.sleep(0.05)

    async def _check_owned(self, in_hand: Collection[int]) -> None:
        """Raise Fenced if somebody else wrote a position since our last commit."""
        if newer := await self._overtakers():
            raise self._fenced(newer, in_hand)

    async def _overtakers(self) -> list[str]:
        """The owners of positions that were claimed, edited or reset since we claimed them."""
        stored = await _patiently(self._broker, self._stream, [*map(self._position, self._partitions)])
        bodies = {number: read_position(s) for number, s in by_partition(stored).items()}
        return [body["owner"] for p, body in bodies.items() if body["epoch"] > self._partitions[p].epoch]

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
            is_known = key in partition.inline or not partition.spread
            before = partition.inline.get(key, {})
            after = dict.fromkeys(before, None) if change.whole else {}
            news = {k: v for k, v in {**after, **change.items}.items() if not is_known or before.get(k) != v}
            if not news:
                continue
            items = {name: value for name, value in news.items() if value not in (None, TOMBSTONE)}
            removed = () if change.whole and not is_known else news.keys() - items.keys()
            move = moves.get(partition.number, Move())
            is_new = move.sequence > partition.sequence
            record = Record(
                key,
                commit_id,
                at,
                items,
                tuple(sorted(removed)),
                is_whole=change.whole and not is_known,
                bytes=change.size,
                first=partition.sequence + 1 if is_new else 0,
                last=move.sequence if is_new else 0,
            )
            messages.append(history.message(partition.number, record, self._history_s))
        return messages

    def _context_messages(self, changes: Mapping[str, ContextChange]) -> list[Outgoing]:
        messages: list[Outgoing] = []
        for key, change in changes.items():
            self._sizes[key] = change.size
            place = self._outside.get(key)
            if change.whole and place is not None and place.items is not None:
                messages += self._large(key, {**dict.fromkeys(place.items), **change.items})
            elif change.is_small:
                messages += self._small(key, {k: v for k, v in change.items.items() if v is not None})
            else:
                messages += self._large(key, change.items)
        return messages

    def _small(self, key: str, items: dict[str, bytes]) -> list[Outgoing]:
        partition = self._partitions[self.partition(key)]
        if key not in self._outside:
            others = sum(partition.inline_bytes.values()) - partition.inline_bytes.get(key, 0)
            size = _size(items)
            is_inline = key in partition.inline
            has_room = others + size <= INLINE_MAX_BYTES
            has_room = has_room and len(partition.inline) + (not is_inline) <= INLINE_MAX_KEYS
            if has_room and (is_inline or not partition.spread):
                partition.inline[key], partition.inline_bytes[key] = items, size
                return []
            self._move_out(partition, key, _Outside(None))
        return [Outgoing(self._subject(key, WHOLE), dump_items(items), KEPT)]

    def _large(self, key: str, items: Mapping[str, bytes | None]) -> list[Outgoing]:
        place = self._outside.get(key)
        messages: list[Outgoing] = []
        if place is None or place.items is None:
            if place is not None:
                messages.append(Outgoing(self._subject(key, WHOLE), b"", GONE))
            place = _Outside(set())
            self._move_out(self._partitions[self.partition(key)], key, place)
        assert place.items is not None
        for name, value in items.items():
            token, named = _item_token(name)
            headers = KEPT if value is not None else GONE
            # Members of a commit that share one mapping of headers are written faster.
            headers = {**headers, **named} if named else headers
            messages.append(Outgoing(self._subject(key, token), value or b"", headers))
            (place.items.discard if value is None else place.items.add)(name)
        return messages

    def _removed(self, key: str) -> list[Outgoing]:
        partition = self._partitions[self.partition(key)]
        partition.inline.pop(key, None)
        partition.inline_bytes.pop(key, None)
        place = self._outside.pop(key, None)
        if place is None:
            return []
        items = [WHOLE] if place.items is None else [_item_token(name)[0] for name in place.items]
        return [Outgoing(self._subject(key, item), b"", GONE) for item in items]

    def _move_out(self, partition: _Partition, key: str, place: _Outside) -> None:
        partition.inline.pop(key, None)
        partition.inline_bytes.pop(key, None)
        partition.spread = True
        self._outside[key] = place

    def _subject(self, key: str, item: str) -> str:
        return self._subjects.context(self.partition(key), key, item)

    def _position(self, partition: int | str) -> str:
        return self._subjects.position(partition, kind=self._kind)

    def _position_message(
        self,
        partition: _Partition,
        commit_id: str,
        live: Sequence[Outgoing] = (),
        *,
        holds: bool = False,
    ) -> Outgoing:
        body: dict[str, Any] = {
            **partition.unknown,
            "v": VERSION,
            "stream": self._input.stream,
            "created": self._input.created,
            "of": self._of,
            "seq": partition.sequence,
            "epoch": partition.epoch,
            "owner": self._owner,
            "cid": commit_id,
        }
        if self._lane:
            body["lane"] = self._lane
        if holds:
            body["holds"] = True
        if partition.claims:
            body["claims"] = partition.claims
        if partition.open:
            body["open"] = {str(sequence): tries for sequence, tries in partition.open.items()}
        if partition.blocked:
            body["blocked"] = partition.blocked
        body |= _contexts_of(partition)
        if live:
            body["live"] = [[m.subject, dict(m.headers), m.payload.decode()] for m in live]
        return self._fenced_message(partition, body)

    def _fenced_message(self, partition: _Partition, body: Mapping[str, Any]) -> Outgoing:
        headers = {**KEPT, EXPECTED: str(partition.fence)}
        return Outgoing(self._position(partition.number), orjson.dumps(body), headers)


async def read(
    broker: Broker, app: str, route: str, key: str | None = None
) -> AsyncGenerator[tuple[str, dict[str, bytes]], None]:
    """Every committed context of a route (or that of `key`), as encoded items; owns nothing.

    Each is as one commit left it. Raises BrokerError E421, after all that can be read, where a position
    cannot be. Those that are in positions come first, by key, then the others by
    partition and key; a few of these are in memory at a time.
    """
    stream, subjects = app_stream(app), RouteSubjects(app, route)
    if key is not None:
        asked = [subjects.position(), subjects.context("*", key)]
        stored = await _patiently(broker, stream, asked)
        contexts = _contexts_in(stored)
        if key in contexts:
            yield key, contexts[key]
            return
        _require_positions(stored)
        return
    positions = await _patiently(broker, stream, [subjects.position()])
    inline = _contexts_in(positions)
    for name in sorted(inline):
        yield name, inline[name]
    spread = [number for number, s in by_partition(positions).items() if remains(s).get("spread")]
    for partition in sorted(spread):
        tokens = sorted(await _key_tokens(broker, stream, subjects.contexts(partition)))
        for start in range(0, len(tokens), _READ_KEYS):
            some = [key_from_token(token) for token in tokens[start : start + _READ_KEYS]]
            asked = [subjects.position(partition), *(subjects.context(partition, name) for name in some)]
            contexts = _contexts_in(await _patiently(broker, stream, asked))
            wanted = set(some) - inline.keys()
            for name in sorted(wanted & contexts.keys()):
                yield name, contexts[name]
    _require_positions(positions)


async def _key_tokens(broker: Broker, stream: str, pattern: str) -> set[str]:
    """The tokens of the keys that have something under this pattern of contexts."""
    found: set[str] = set()
    seen = 0
    while True:
        await broker.connected()
        try:
            asked = {"subjects_filter": pattern, "offset": seen}
            info = await broker.api(f"STREAM.INFO.{stream}", asked)
        except (Unknown, Again):
            await asyncio.sleep(0.1)
            continue
        subjects = info["state"].get("subjects") or {}
        found |= {rest[0] for *_, rest in map(SubjectParts.of, subjects) if len(rest) == 2}
        seen += len(subjects)
        if not subjects or seen >= info.get("total", 0):
            return found


def _require_positions(stored: Iterable[Stored]) -> None:
    """Raise BrokerError E421 where a position among these cannot be read: there may be contexts in it."""
    for message in stored:
        if SubjectParts.of(message.subject).kind == "pos":
            read_position(message)


def _contexts_in(stored: Iterable[Stored]) -> dict[str, dict[str, bytes]]:
    contexts: dict[str, dict[str, bytes]] = {}
    for message in stored:
        kind, _, _, rest = SubjectParts.of(message.subject)
        if kind == "pos":
            for name, items in contexts_of(remains(message)).items():
                contexts.setdefault(name, {}).update(items)
        elif message.payload:
            token, item = rest
            items = contexts.setdefault(key_from_token(token), {})
            if item == WHOLE:
                items.update(items_of(message.payload))
            else:
                items[_item_name(item, message.headers)] = message.payload
    return contexts


async def _patiently(broker: Broker, stream: str, subjects: Sequence[str]) -> list[Stored]:
    """`Broker.last_of`, however long the server needs to answer."""
    while True:
        await broker.connected()
        try:
            return await broker.last_of(stream, subjects)
        except (Unknown, Again):
            await asyncio.sleep(0.1)


def _unannounced(positions: Mapping[int, Stored]) -> Iterator[tuple[int, Outgoing]]:
    """The live messages of the last commit of every owner and lane, with the partition that has them.

    Each lane commits one after the other: whatever came before its last commit was sent.
    """
    last: dict[tuple[str, int], tuple[int, int, list[Any]]] = {}
    for number, stored in positions.items():
        body = read_position(stored)
        writer = body.get("owner", ""), body.get("lane", 0)
        last[writer] = max(last.get(writer, (0, 0, [])), (stored.sequence, number, body.get("live", [])))
    for _, number, live in last.values():
        for subject, headers, payload in live:
            yield number, Outgoing(subject, payload.encode(), headers)


def _take_inline(partition: _Partition, body: Mapping[str, Any]) -> None:
    partition.spread = body.get("spread", False)
    partition.inline = contexts_of(body)
    partition.inline_bytes = {key: _size(items) for key, items in partition.inline.items()}


def _contexts_of(partition: _Partition) -> dict[str, Any]:
    """What a position says about contexts."""
    said: dict[str, Any] = {"spread": True} if partition.spread else {}
    if partition.inline:
        said["ctx"] = written_contexts(partition.inline)
    return said


def _item_token(name: str) -> tuple[str, dict[str, str]]:
    """The subject token of an item, and the header that has its name where that is too long for one."""
    token = key_token(name)
    if len(token) <= 128:
        return token, {}
    # As JSON: a header as it is would come back without spaces at its ends, and without line breaks.
    return f"=h{hashlib.sha256(name.encode()).hexdigest()[:32]}", {_ITEM_HEADER: json.dumps(name)}


def _item_name(token: str, headers: Mapping[str, str]) -> str:
    return str(json.loads(headers[_ITEM_HEADER])) if _ITEM_HEADER in headers else key_from_token(token)


def _is_recent(stored: Iterable[Stored], fences: Mapping[str, int]) -> bool:
    """Whether the replica that answered has every commit up to these sequences of positions, by subject."""
    seen = {message.subject: message.sequence for message in stored}
    return all(seen.get(subject, 0) >= fence for subject, fence in fences.items())


def _size(items: Mapping[str, bytes]) -> int:
    return sum(len(k) + len(v) for k, v in items.items())
