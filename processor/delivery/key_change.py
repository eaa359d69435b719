"""A route's `key` that is not the one with which its positions were made.

A position counts the messages of its partition, and which these are is what `key` says. By another key a
message that waits may belong to a partition whose position is past it already: it would be passed by in
silence. So a position records the setting, and a route goes on with another one only from a place where all
of its partitions stand alike, with nothing waiting before it. Where they do not stand alike, but all is done
up to the last of their positions, they are brought there here, in one commit.

What is dealt to a route is not concerned: it is dealt again, by the new key.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from processor.context.placement import Partition
from processor.context.position import InputStream, Position, by_partition
from processor.context.reading import patiently
from processor.context.subjects import RouteSubjects, app_stream
from processor.delivery.codec import Codec, codec_for, key_of
from processor.errors import BrokerError
from processor.jetstream import Again, Broker, Outgoing, Stored, Unknown, WrongLastSequence
from processor.model import Delivery, partition_of
from processor.route import KeySource, Route


class KeyChange:
    """What a changed `key` asks of one route whose input is the stream `source`."""

    def __init__(self, broker: Broker, route: Route, source: Mapping[str, Any]) -> None:
        self._broker = broker
        self._route = route
        self._source = source
        self._stream = app_stream(route.app)
        self._subjects = RouteSubjects(route.app, route.name)

    async def settle(self, is_there: Callable[[str], bool]) -> None:
        """Let the route be claimed with its `key`: where that has changed, from one place for all partitions.

        Raises BrokerError E410 where a message waits for its partition by the key before, and where an owner
        who `is_there` still runs by that; then nothing has changed.
        """
        while (found := await self._changed(partial(patiently, self._broker))) is not None:
            for owner in sorted({p.position.owner for p in found.values()}):
                if is_there(owner):
                    raise self._refusal(found, f"and processor {owner} still runs it with that")
            end = await self._common_end(found)
            try:
                # In the order of their last commits, by which a successor knows what was not sent.
                in_order = sorted(found.values(), key=lambda partition: partition.fence)
                await self._broker.commit([self._moved(partition, end) for partition in in_order])
            except (WrongLastSequence, Unknown, Again):
                await asyncio.sleep(0.1)

    async def check(self) -> None:
        """As `settle`, without changing anything, and whoever is there. Asks once.

        Raises Again or Unknown where positions cannot be read now, as before a first start.
        """
        if (found := await self._changed(self._broker.last_of)) is not None:
            await self._common_end(found)

    async def _changed(
        self, last_of: Callable[[str, Sequence[str]], Awaitable[list[Stored]]]
    ) -> dict[int, Partition] | None:
        """All partitions, where a position has another key; None, too, where none can be claimed."""
        if self._route.input.is_own:
            return None
        source = InputStream(self._source["config"]["name"], self._source["created"])
        stored = by_partition(await last_of(self._stream, [self._subjects.position()]))
        found = {n: Partition(n, Position.read(each), each.sequence) for n, each in stored.items()}
        if all(p.position.key in ("", str(self._route.key)) for p in found.values()):
            return None
        for partition in found.values():
            partition.position.check_usable(self._route.name, self._route.partitions)
            if partition.position.input != source:
                return None  # whoever claims it says so
        missing = set(range(self._route.partitions)) - found.keys()
        return found | {n: Partition(n, Position(source, self._route.partitions)) for n in missing}

    async def _common_end(self, found: Mapping[int, Partition]) -> int:
        """The sequence up to which all is done. Raises BrokerError E410 where something waits before it."""
        first = min(p.position.first_needed for p in found.values())
        last = max(p.position.sequence for p in found.values())
        try:
            keys = [KeySource.parse(key) for key in _keys_before(found, str(self._route.key))]
        except ValueError:
            raise self._refusal(found, "which this build cannot use") from None
        codecs = [codec_for(replace(self._route, key=key)) for key in keys]
        async with aclosing(self._between(first, last)) as messages:
            async for message in messages:
                if any(not self._is_done(message, codec, found) for codec in codecs):
                    raise self._refusal(
                        found,
                        f"and message {message.sequence} of stream {self._source['config']['name']} waits "
                        "for its partition by that: by the new key it could be passed by",
                    )
        return last

    def _is_done(self, message: Stored, codec: Codec, found: Mapping[int, Partition]) -> bool:
        name = self._source["config"]["name"]
        delivery = Delivery(
            message.subject, message.payload, message.headers, name, message.sequence, message.timestamp_s
        )
        number = partition_of(key_of(delivery, codec), self._route.partitions)
        return found[number].position.is_done(message.sequence)

    async def _between(self, first: int, last: int) -> AsyncGenerator[Stored, None]:
        """The messages of the input with these sequences that are still there."""
        name, subjects = self._source["config"]["name"], self._route.input.subjects
        if first > last:
            return
        if self._source["config"].get("retention", "limits") == "limits":
            async with aclosing(self._broker.history(name, subjects, start_sequence=first)) as history:
                async for message in history:
                    if message.sequence > last:
                        return
                    yield message
            return
        # A second consumer may not be had there; what is left of these is little.
        for subject in subjects:
            left = await self._broker.next_of(name, subject, first)
            while left is not None and left.sequence <= last:
                yield left
                left = await self._broker.next_of(name, subject, left.sequence + 1)

    def _moved(self, partition: Partition, end: int) -> Outgoing:
        position = partition.position
        position.key, position.sequence, position.open = str(self._route.key), end, {}
        position.epoch += 1
        position.commit_id = secrets.token_hex(8)
        return partition.message(self._subjects.position(partition.number))

    def _refusal(self, found: Mapping[int, Partition], why: str) -> BrokerError:
        before = ", ".join(_keys_before(found, str(self._route.key)))
        return BrokerError(
            "E410",
            f"route {self._route.name} has key {self._route.key} now and had {before} before, {why}",
            remedy=f"Set `key: {before}` again until `processor status` shows nothing behind, stop all its "
            "processors and change it then; or say where to begin: `processor reset`.",
        )


def _keys_before(found: Mapping[int, Partition], now: str) -> list[str]:
    return sorted({p.position.key for p in found.values()} - {"", now})
