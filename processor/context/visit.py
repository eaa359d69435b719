"""Some contexts of a route, and their positions, from one view: to be changed from outside of their owner.

What must stay true: an edit changes the contexts in a position, its epoch and its fence, and leaves all else
as it is: the owner's next commit is refused, and it goes on from there with the edit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from processor.audit import AuditEntry
from processor.context.placement import Items, Partition, Placement
from processor.context.position import Position, by_partition
from processor.context.reading import patiently
from processor.context.route_chains import RouteChains
from processor.context.subjects import RouteSubjects, SubjectParts, app_stream
from processor.errors import BrokerError
from processor.jetstream import Broker, Outgoing
from processor.model import ContextChange


class Visit:
    """The contexts of some keys as they were at one moment; owns nothing."""

    def __init__(
        self, subjects: RouteSubjects, placement: Placement, partitions: Mapping[int, Partition]
    ) -> None:
        self._subjects = subjects
        self._placement = placement
        self._partitions = partitions
        self.contexts: dict[str, Items] = {}

    @classmethod
    async def of(cls, broker: Broker, app: str, route: str, partitions: int, keys: Collection[str]) -> Visit:
        """Look at the contexts of `keys`.

        Raises BrokerError E401 where a partition of theirs has no position yet, and E410, E412 or E421 where
        one cannot be changed.
        """
        subjects, stream = RouteSubjects(app, route), app_stream(app)
        visited: dict[int, Partition] = {}
        placement = Placement(subjects, partitions, visited)
        visited |= {number: Partition(number) for number in sorted({placement.partition(k) for k in keys})}
        asked = [*placement.patterns(keys), *map(subjects.position, visited)]
        stored = await patiently(broker, stream, asked)
        for message in stored:
            kind, _, number, _ = SubjectParts.of(message.subject)
            if kind == "pos" and number is not None:
                position = Position.read(message)
                position.check_usable(route, partitions)
                visited[number].take(position, message.sequence)
        missing = [number for number, partition in visited.items() if not partition.fence]
        if missing:
            for message in by_partition(await patiently(broker, stream, [subjects.position()])).values():
                Position.read(message).check_usable(route, partitions)
            raise BrokerError(
                "E401",
                f"partition {missing[0]} of route {route} has no position in {stream}",
                remedy="It has not run yet: start the route once.",
            )
        visit = cls(subjects, placement, visited)
        visit.contexts = {key: placement.inline(key) for key in keys}
        placement.read(stored, visit.contexts)
        return visit

    @property
    def is_held(self) -> bool:
        """Whether an owner of a visited position asks edits to wait for its next commit."""
        return any(partition.position.holds for partition in self._partitions.values())

    @property
    def epochs(self) -> dict[int, int]:
        """The epoch of each visited partition, as it was seen or rewritten last."""
        return {number: partition.position.epoch for number, partition in self._partitions.items()}

    def recorded(
        self,
        entries: Mapping[int, Sequence[AuditEntry]],
        chains: RouteChains,
        commit_id: str,
        max_payload: int,
    ) -> list[Outgoing]:
        """The records that add entries to the audit chains of visited partitions.

        They belong before what `rewrite` makes afterwards: the positions in that have the chains' new heads.
        """
        return [
            record
            for number, added in entries.items()
            for record in chains.records(self._partitions[number], added, commit_id, max_payload)
        ]

    def rewrite(self, changes: Mapping[str, ContextChange | None], commit_id: str) -> list[Outgoing]:
        """The messages that change contexts as they were seen (None: that remove one), for one commit.

        The positions are the last of them; their fences refuse the commit where anything was committed since.
        """
        messages: list[Outgoing] = []
        for key, change in changes.items():
            written = self._placement.removed(key) if change is None else self._placement.written(key, change)
            messages += written
        for number in sorted({self._placement.partition(key) for key in changes}):
            partition = self._partitions[number]
            position = partition.position
            position.epoch += 1
            position.commit_id, position.holds = commit_id, False
            messages.append(partition.message(self._subjects.position(number)))
        return messages
