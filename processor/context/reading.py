"""Reading an app's stream so that all that was committed is seen: patiently, and past a replica that lags.

`read` is for somebody who owns nothing; `ParkedReader` is how an owner finds what was put aside. Nothing here
changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence

from processor.context import parked
from processor.context.parked import ParkedMessage
from processor.context.placement import Items, Partition, items_outside
from processor.context.position import Position, by_partition
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Stored, Unknown
from processor.model import key_from_token, partition_of

_DUE_PAGE = 2000  # messages that are due, in one answer
_READ_KEYS = 50  # contexts outside of positions that somebody who looks at all of them holds in memory


async def patiently(broker: Broker, stream: str, subjects: Sequence[str]) -> list[Stored]:
    """`Broker.last_of`, however long the server needs to answer."""
    while True:
        await broker.connected()
        try:
            return await broker.last_of(stream, subjects)
        except (Unknown, Again):
            await asyncio.sleep(0.1)


async def newest(broker: Broker, stream: str, subject: str) -> Stored | None:
    """The last message of a subject as the stream's leader has it, however long that takes."""
    while True:
        try:
            return await broker.last_from_leader(stream, subject)
        except (Unknown, Again):
            await broker.connected()
            await asyncio.sleep(0.05)


async def is_missing(broker: Broker, stream: str, subject: str, sequence: int) -> bool:
    """Whether the stream's leader has what another replica had not: the one that answered lags behind."""
    info = await broker.stream(stream)
    if info is not None and info["config"].get("num_replicas", 1) == 1:
        return False
    try:
        return await broker.next_of(stream, subject, sequence) is not None
    except BrokerError as err:
        if err.code == "E403":  # said by the service; who may not ask takes the answer that there was
            return False
        raise


async def read(
    broker: Broker, app: str, route: str, key: str | None = None
) -> AsyncGenerator[tuple[str, Items], None]:
    """Every committed context of a route (or that of `key`), as encoded items; owns nothing.

    Each is as one commit left it. Raises BrokerError E421, after all that can be read, where a position
    cannot be. Those that are in positions come first, by key, then the others by partition and key; a few of
    these are in memory at a time.
    """
    stream, subjects = app_stream(app), RouteSubjects(app, route)
    if key is not None:
        asked = [subjects.position(), subjects.context("*", key)]
        stored = await patiently(broker, stream, asked)
        contexts = _contexts_in(stored)
        if key in contexts:
            yield key, contexts[key]
            return
        _require_positions(stored)
        return
    positions = await patiently(broker, stream, [subjects.position()])
    inline = _contexts_in(positions)
    for name in sorted(inline):
        yield name, inline[name]
    spread = [n for n, stored in by_partition(positions).items() if Position.remains(stored).is_spread]
    for partition in sorted(spread):
        tokens = sorted(await _key_tokens(broker, stream, subjects.contexts(partition)))
        for start in range(0, len(tokens), _READ_KEYS):
            some = [key_from_token(token) for token in tokens[start : start + _READ_KEYS]]
            asked = [subjects.position(partition), *(subjects.context(partition, name) for name in some)]
            contexts = _contexts_in(await patiently(broker, stream, asked))
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
        kind, _, partition, _ = SubjectParts.of(message.subject)
        if kind == "pos" and partition is not None:
            Position.read(message)


def _contexts_in(stored: Iterable[Stored]) -> dict[str, Items]:
    contexts: dict[str, Items] = {}
    for message in stored:
        kind, _, partition, rest = SubjectParts.of(message.subject)
        if kind == "pos" and partition is not None:
            for name, items in Position.remains(message).contexts.items():
                contexts.setdefault(name, {}).update(items)
        elif kind == "ctx" and message.payload:
            token, item = rest
            contexts.setdefault(key_from_token(token), {}).update(items_outside(item, message))
    return contexts


class ParkedReader:
    """Reads what an owner's partitions have aside: messages that are due, and those of blocked keys."""

    def __init__(
        self,
        broker: Broker,
        subjects: RouteSubjects,
        of: int,
        partitions: Mapping[int, Partition],
        wait_for_replica: Callable[[Partition], Awaitable[None]],
    ) -> None:
        """`wait_for_replica` gives a replica that lags a moment; Fenced where the stream is gone."""
        self._broker = broker
        self._stream = app_stream(subjects.app)
        self._subjects = subjects
        self._of = of
        self._partitions = partitions
        self._wait_for_replica = wait_for_replica

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
                if not await is_missing(self._broker, self._stream, subject, after + 1):
                    return [], after
            await self._wait_for_replica(next(iter(self._partitions.values())))

    def _keeps(self, partition: int | None) -> bool:
        return partition is not None and counted_by(partition, self._of) in self._partitions

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        """The first messages of a blocked key, at most `limit`, and whether there are more. Raises Fenced."""
        partition = self._partitions[partition_of(key, self._of)]
        subject = self._subjects.held(partition.number, key)
        position = self._subjects.position(partition.number)
        while True:
            await self._broker.connected()
            found: list[ParkedMessage] = []
            last: Stored | None = None
            try:
                async for stored in self._broker.history(self._stream, [subject, position]):
                    kept = parked.read(stored)
                    if kept is not None and len(found) == limit:
                        return found, True
                    if kept is not None:
                        found.append(kept)
                    last = stored  # the position is the last of what we committed
                if last is not None and last.subject == position and last.sequence >= partition.fence:
                    return found, False
                await self._wait_for_replica(partition)
            except (Unknown, Again, ApiError):
                await asyncio.sleep(0.1)


def counted_by(partition: int, of: int) -> int:
    """The partition that has what is kept for `partition`: the first for one beyond the last, which the dead
    letters of a hop name.
    """
    return partition if partition < of else 0
