"""What waits for a route in the app's stream, where a hop, a schedule or the commits of others put it.

The one who fills a route's inboxes removes from them, here, what the route is done with; people ask here how
much is left. What must stay true: a message is removed only when the position of its partition covers it and
does not have it open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from processor.context.position import InputStream, Position, by_partition
from processor.context.subjects import GraphSubjects, RouteSubjects, SubjectParts, app_stream
from processor.errors import BrokerError
from processor.jetstream import Broker, Stored
from processor.route import Route

InboxOf = Callable[[int | str], str]  # its subject for a partition; with "*" the pattern of all


def inboxes(route: Route) -> tuple[InboxOf, ...]:
    """Where a route's messages are in the app's stream: its own inbox, and for runs what workers send."""
    own = RouteSubjects(route.app, route.name).inbox
    return (own, GraphSubjects(route.app).externals) if route.input.codec == "run" else (own,)


class Backlog:
    """The messages of one route that were dealt to its partitions, or committed for them."""

    def __init__(self, broker: Broker, route: Route) -> None:
        self._broker = broker
        self._route = route.name
        self._subjects = RouteSubjects(route.app, route.name)
        self._inboxes = inboxes(route)
        self._stream = app_stream(route.app)
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
                for inbox in self._inboxes:
                    purge = {"filter": inbox(partition), "seq": first}
                    removals.append(self._broker.api(f"STREAM.PURGE.{self._stream}", purge))
        done = await asyncio.gather(*removals)
        return sum(counts.values()) - sum(int(reply["purged"]) for reply in done)

    async def waiting(self) -> int:
        """How many messages the route is not done with."""
        counts, needed = await self._look()
        found = 0
        for partition in counts:
            subjects = [inbox(partition) for inbox in self._inboxes]
            found += await self._broker.count(self._stream, subjects, needed.get(partition, 1))
        return found

    async def _look(self) -> tuple[dict[int, int], dict[int, int]]:
        """By partition, how many messages there are, and the first sequence that may not be done."""
        counts: dict[int, int] = {}
        for inbox in self._inboxes:
            info = await self._broker.api(f"STREAM.INFO.{self._stream}", {"subjects_filter": inbox("*")})
            for subject, count in (info["state"].get("subjects") or {}).items():
                number = SubjectParts.of(subject).partition
                if number is not None:
                    counts[number] = counts.get(number, 0) + int(count)
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
