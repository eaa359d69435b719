"""What waits for a route in the app's stream, where a hop or a schedule put it.

The one who fills a route's inboxes removes from them, here, what the route is done with; people ask here how
much is left. What must stay true: a message is removed only when the position of its partition covers it and
does not have it open.
"""

from __future__ import annotations

import asyncio

from processor.context.position import InputStream, Position, by_partition
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream
from processor.errors import BrokerError
from processor.jetstream import Broker, Stored


class Backlog:
    """The messages of one route that were dealt to its partitions."""

    def __init__(self, broker: Broker, app: str, route: str) -> None:
        self._broker = broker
        self._route = route
        self._subjects = RouteSubjects(app, route)
        self._stream = app_stream(app)
        self._removed: dict[int, int] = {}  # by partition, the sequence below which nothing is left

    async def check(self) -> None:
        """Raise BrokerError E407 where the route's positions do not count what was dealt to it.

        Else a hop would take from the input what the route, as long as it cannot run, may have to read there.
        """
        for stored in by_partition(await self._positions()).values():
            counted = Position.read(stored).input.stream
            if counted != self._stream:
                raise BrokerError(
                    "E407",
                    f"the position of route {self._route} counts in stream {counted}, which it read itself "
                    "until its input was to be dealt to its partitions",
                    remedy="Take `repartition` back, or say where to begin: `processor reset`.",
                )

    async def tidy(self) -> int:
        """Remove what the route is done with, and return how many messages are left."""
        counts, needed = await self._look()
        removals = []
        for partition, first in needed.items():
            if partition in counts and first > self._removed.get(partition, 1):
                self._removed[partition] = first
                purge = {"filter": self._subjects.inbox(partition), "seq": first}
                removals.append(self._broker.api(f"STREAM.PURGE.{self._stream}", purge))
        done = await asyncio.gather(*removals)
        return sum(counts.values()) - sum(int(reply["purged"]) for reply in done)

    async def waiting(self) -> int:
        """How many messages the route is not done with."""
        counts, needed = await self._look()
        found = 0
        for partition in counts:
            subject = self._subjects.inbox(partition)
            found += await self._broker.count(self._stream, [subject], needed.get(partition, 1))
        return found

    async def _look(self) -> tuple[dict[int, int], dict[int, int]]:
        """By partition, how many messages there are, and the first sequence that may not be done."""
        every = self._subjects.inbox()
        info = await self._broker.api(f"STREAM.INFO.{self._stream}", {"subjects_filter": every})
        subjects = info["state"].get("subjects") or {}
        numbered = {SubjectParts.of(subject).partition: int(count) for subject, count in subjects.items()}
        counts = {number: count for number, count in numbered.items() if number is not None}
        if not counts:
            return {}, {}
        counted = InputStream(self._stream, info["created"])
        positions = by_partition(await self._positions())
        return counts, {number: _first_needed(s, counted) for number, s in positions.items()}

    async def _positions(self) -> list[Stored]:
        return await self._broker.last_of(self._stream, [self._subjects.position()])


def _first_needed(stored: Stored, counted: InputStream) -> int:
    """The first sequence that a partition may not be done with; 1 where its position does not say."""
    position = Position.remains(stored)
    is_said = position.is_readable and position.resetting is None and position.input == counted
    return position.first_needed if is_said else 1
