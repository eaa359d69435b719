"""A source, a store and a publisher in memory: a worker runs on them as it does on NATS, without a server.

`Memory` is what the stream of an app would hold for as long as this process lives; every `MemoryStore` of it
sees what the ones before it have committed, and fences them. `try` runs on these, and so do tests.

What must stay true:
- A commit happens as a whole or, where it is fenced, not at all.
- Nothing happens by itself: what is to be sent later is sent by `Memory.fire`, when the caller says so.
- Only what a route reads again is kept. Everything that is committed is handed to `committed`, in order.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from processor.audit import AuditEntry, AuditRecord
from processor.context import parked
from processor.context.late import Intent, Look
from processor.context.parked import ParkedMessage
from processor.context.placement import Partition
from processor.context.position import InputStream, Move, Position
from processor.context.reading import counted_by
from processor.context.route_chains import RouteChains
from processor.context.store import NONE
from processor.context.subjects import RouteSubjects, SubjectParts
from processor.errors import Fenced
from processor.jetstream import EXPECTED, Outgoing, Stored
from processor.model import ContextChange, Delivery, RawHeaders, partition_of
from processor.route import NO_AUDIT
from processor.subject import app_root, matches

MAX_PAYLOAD = 1 << 20  # what a NATS server takes unless it is told otherwise
_READ_AGAIN = ("due", "held", "later", "emit")
_DUE_PAGE = 2000


@dataclass(slots=True)
class _Kept:
    """What a route has: a position for each partition, and its contexts."""

    positions: dict[int, Position]
    contexts: dict[str, dict[str, bytes]]
    audit: list[Outgoing] = field(default_factory=list)  # the records of its audit chains


class Memory:
    """What the stream of an app would hold: positions, contexts, and messages that wait."""

    def __init__(self, app: str, committed: Callable[[Sequence[Outgoing]], None] = lambda _: None) -> None:
        """`committed` is called with the messages of each commit, without positions and contexts."""
        self.app = app
        self._committed = committed
        self._routes: dict[str, _Kept] = {}
        # By subject, in the order of their commits: what is due, held, or to be sent later.
        self._waiting: dict[str, Stored] = {}
        self._last = 0

    def kept(self, route: str) -> _Kept:
        """What a route has, to be read and changed by its store."""
        return self._routes.setdefault(route, _Kept({}, {}))

    def contexts(self, route: str) -> Mapping[str, Mapping[str, bytes]]:
        """The committed contexts of a route by key, as encoded items."""
        return self.kept(route).contexts

    def audit(self, route: str) -> Sequence[AuditRecord]:
        """What the audit has of a route, in the order of its commits."""
        return [AuditRecord.decode(message.payload) for message in self.kept(route).audit]

    def waiting(self, pattern: str) -> list[Stored]:
        """The messages that wait under a pattern of the app's subjects, in the order of their commits."""
        return [stored for subject, stored in self._waiting.items() if matches(pattern, subject)]

    def fits(self, messages: Iterable[Outgoing]) -> bool:
        """Whether all that these messages expect to replace is there, and the last of its subject."""
        expected = ((m.subject, m.headers[EXPECTED]) for m in messages if EXPECTED in m.headers)
        return all(str(self._sequence(subject)) == sequence for subject, sequence in expected)

    def store(self, messages: Sequence[Outgoing]) -> int:
        """Store messages and return the sequence of the last; each replaces the one that waits there."""
        for message in messages:
            self._last += 1
            if message.subject.startswith(f"{app_root(self.app)}."):
                self._keep(message)
        self._committed(messages)
        return self._last

    def _keep(self, message: Outgoing) -> None:
        """Keep the message that was stored last, in place of the one of its subject, if it is read again."""
        self._waiting.pop(message.subject, None)
        if SubjectParts.of(message.subject).kind not in _READ_AGAIN:
            return
        headers = message.headers
        if not isinstance(headers, RawHeaders):
            headers = RawHeaders.of(headers)
        stored = Stored(message.subject, self._last, message.payload, headers, time.time())
        if "Nats-Schedule" in headers or parked.read(stored) is not None:
            self._waiting[message.subject] = stored

    @property
    def next_s(self) -> float | None:
        """When the first of the messages is to be sent that are sent later, seconds since 1970."""
        return min((at_s for at_s, _ in self._scheduled()), default=None)

    def fire(self, now_s: float) -> int:
        """Send what is to be sent by that time to where it is due, in order; how many messages these are."""
        ready = sorted((at_s, s.sequence, s) for at_s, s in self._scheduled() if at_s <= now_s)
        for _, _, stored in ready:
            del self._waiting[stored.subject]
            headers = stored.headers.without(lambda name: name.startswith(b"Nats-Schedule"))
            self.store([Outgoing(stored.headers["Nats-Schedule-Target"], stored.payload, headers)])
        return len(ready)

    def _scheduled(self) -> list[tuple[float, Stored]]:
        return [
            (datetime.fromisoformat(at.removeprefix("@at ")).timestamp(), stored)
            for stored in self._waiting.values()
            if (at := stored.headers.get("Nats-Schedule"))
        ]

    def _sequence(self, subject: str) -> int:
        stored = self._waiting.get(subject)
        return stored.sequence if stored is not None else 0


class MemoryStore:
    """The contexts and positions of one route in memory, for the partitions of one worker."""

    def __init__(
        self,
        memory: Memory,
        route: str,
        partitions: int,
        owner: str,
        owned: Iterable[int] | None = None,
    ) -> None:
        self._memory = memory
        self._kept = memory.kept(route)
        self._subjects = RouteSubjects(memory.app, route)
        self._chains = RouteChains(self._subjects, NO_AUDIT.copy_ttl_s)
        self._of = partitions
        self._owner = owner
        self._owned = tuple(range(partitions) if owned is None else owned)
        self._epochs: dict[int, int] = {}
        self._claims: dict[int, int] = {}
        self._input = InputStream("", "")
        self._sizes: dict[str, int] = {}
        self._watermark = 0

    async def claim(self, source: InputStream, start_after: int) -> int:
        """Own the partitions, and return the first input sequence that may not be done.

        `start_after` is where a partition begins that has no position yet. Raises BrokerError E407 where the
        positions count in another stream, and E410 for a changed number of partitions.
        """
        self._input = source
        route, positions = self._subjects.route, self._kept.positions
        for number in self._owned:
            if number in positions:
                positions[number].check_usable(route, self._of)
                positions[number].check_input(route, source)
        for number in self._owned:
            position = positions.setdefault(number, Position(source, self._of, start_after))
            position.epoch += 1
            position.claims += position.owner != self._owner
            position.owner = self._owner
            self._epochs[number] = position.epoch
        owned = [positions[number] for number in self._owned]
        self._watermark = min(position.sequence for position in owned)
        return min(position.first_needed for position in owned)

    @property
    def created(self) -> str:
        return self._input.created

    @property
    def owned(self) -> Collection[int]:
        return self._owned

    @property
    def epochs(self) -> dict[int, int]:
        return dict(self._epochs)

    def fruitless_claims(self, partition: int) -> int:
        return self._kept.positions[partition].claims - 1

    @property
    def tries(self) -> dict[int, int]:
        return {s: tries for position in self._positions() for s, tries in position.open.items()}

    @property
    def blocked(self) -> dict[str, int]:
        return {key: tries for position in self._positions() for key, tries in position.blocked.items()}

    @property
    def watermark(self) -> int:
        return self._watermark

    def partition(self, key: str) -> int:
        return partition_of(key, self._of)

    def place(self, delivery: Delivery, key: str) -> int:
        return self.partition(key) if delivery.dealt is None else self.counted_by(delivery.dealt)

    def counted_by(self, number: int) -> int:
        return counted_by(number, self._of)

    def is_done(self, partition: int, sequence: int) -> bool:
        return self._kept.positions[partition].is_done(sequence)

    @property
    def bytes_held(self) -> int:
        return sum(self._sizes.values())

    @property
    def is_spread(self) -> bool:
        return False

    def unread(self, keys: Iterable[str]) -> list[str]:
        return []

    async def load(self, keys: Iterable[str]) -> dict[str, dict[str, bytes]]:
        loaded = {key: dict(self._kept.contexts.get(key, {})) for key in keys}
        for key, items in loaded.items():
            self._sizes[key] = sum(len(name) + len(value) for name, value in items.items())
        return loaded

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._sizes.pop(key, None)

    def scattered(self, changes: Mapping[str, ContextChange]) -> int:
        return 0

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
        """As `Store.commit`; `live` is sent by nobody else, for nobody outlives this process."""
        positions, contexts = self._kept.positions, self._kept.contexts
        is_ours = all(positions[number].epoch == self._epochs.get(number) for number in moves)
        if not is_ours or not self._memory.fits(messages):
            raise Fenced(
                "E405",
                f"another store has claimed partitions of route {self._subjects.route} that this one had",
                remedy="What this one had in hand is done there; nothing is lost.",
            )
        for key, change in changes.items():
            if change.gone:
                contexts.pop(key, None)
                self._sizes.pop(key, None)
                continue
            before = {} if change.whole else contexts.get(key, {})
            after = {**before, **change.items}
            contexts[key] = {name: value for name, value in after.items() if value is not None}
            self._sizes[key] = change.size
        for number, added in entries.items():
            partition = Partition(number, positions[number])
            self._kept.audit += self._chains.records(partition, added, secrets.token_hex(8), MAX_PAYLOAD)
        for number, move in moves.items():
            positions[number].apply(move)
        reached = max((move.sequence for move in moves.values()), default=0)
        if first_left is not None:
            reached = min(reached, first_left - 1)
        self._watermark = max(self._watermark, reached)
        self._memory.store(messages)
        return len(messages) + len(moves)

    async def announce(self, partition: int, intent: Intent) -> None:
        """Nothing outlives this process that could look for it."""

    async def look(self) -> Look:
        return Look()

    async def leave(self, entries: Sequence[tuple[int, AuditEntry]]) -> None:
        """Nobody comes next."""

    async def due(self, after: int) -> tuple[list[ParkedMessage], int]:
        waiting = self._memory.waiting(self._subjects.every("due"))
        stored = [each for each in waiting if each.sequence > after][:_DUE_PAGE]
        ours = [s for s in stored if self._keeps(SubjectParts.of(s.subject).partition)]
        found = [kept for kept in map(parked.read, ours) if kept is not None]
        return found, stored[-1].sequence if stored else after

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        stored = self._memory.waiting(self._subjects.held(self.partition(key), key))
        found = [kept for kept in map(parked.read, stored) if kept is not None]
        return found[:limit], len(found) > limit

    async def release(self) -> None:
        """Let others have the partitions, moved to where the input is."""
        moves = {number: Move(self._watermark) for number in self._owned}
        await self.commit((), {}, moves)
        for position in self._positions():
            position.owner = ""

    def _keeps(self, partition: int | None) -> bool:
        return partition is not None and self.counted_by(partition) in self._owned

    def _positions(self) -> list[Position]:
        return [self._kept.positions[number] for number in self._owned]


class MemorySource:
    """Hands out deliveries as they were given to it, then waits for more. Nothing is to be acknowledged."""

    def __init__(self, deliveries: Iterable[Delivery] = ()) -> None:
        self._deliveries = deque(deliveries)
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self.taken = 0

    def give(self, delivery: Delivery) -> None:
        """Have `take` hand out one more, whose sequence is above those before it."""
        self._deliveries.append(delivery)
        self._drained.clear()
        self._arrived.set()

    async def drained(self) -> None:
        """Return when everything was taken, and more is asked for."""
        await self._drained.wait()

    @property
    def waiting(self) -> int:
        return len(self._deliveries)

    def peek(self, max_messages: int) -> list[Delivery]:
        return list(islice(self._deliveries, max_messages))

    async def take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        while not self._deliveries:
            self._drained.set()
            self._arrived.clear()
            await self._arrived.wait()
        taken: list[Delivery] = []
        size = 0
        while self._deliveries and len(taken) < max_messages:
            size += len(self._deliveries[0].payload)
            if taken and size > max_bytes:
                break
            taken.append(self._deliveries.popleft())
        self.taken = taken[-1].sequence
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing waits for it."""


class MemoryPublisher:
    """Gives what is for listeners to `hear`, and stores the rest in a memory."""

    def __init__(
        self,
        memory: Memory,
        hear: Callable[[Outgoing], None] = lambda _: None,
        max_payload: int = MAX_PAYLOAD,
    ) -> None:
        self._memory = memory
        self._hear = hear
        self._max_payload = max_payload

    @property
    def max_payload(self) -> int:
        return self._max_payload

    async def connected(self) -> None:
        """There is nothing that could be lost."""

    async def publish(self, *messages: Outgoing) -> None:
        for message in messages:
            self._hear(message)

    async def publish_stored(self, message: Outgoing) -> int:
        return self._memory.store([message])
