"""The audit of a route: the records that a commit adds to the chains of its partitions.

    p.<app>.audit.<route>.<partition>    a record: see `processor.audit`

What must stay true: the head of a chain is in the position of its partition, and changes in the commit that
stores the records before it. So of two that believe they own a partition only one can extend its chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from processor.audit import AuditEntry, chained
from processor.context.chains import record_ttl
from processor.context.placement import Partition
from processor.context.subjects import RouteSubjects
from processor.jetstream import Outgoing

_HEADERS_BYTES = 1024  # of a member of a commit, at most


class RouteChains:
    """Writes the entries of one route's partitions down."""

    def __init__(self, subjects: RouteSubjects, keep_s: float) -> None:
        """The app's stream keeps records for `keep_s` seconds."""
        self._subjects = subjects
        self._headers = {"Nats-TTL": record_ttl(keep_s)}

    def records(
        self, partition: Partition, entries: Sequence[AuditEntry], commit_id: str, max_payload: int
    ) -> list[Outgoing]:
        """The messages that add entries to the chain of a partition, whose position goes on by them."""
        chain = f"{self._subjects.route}.{partition.number}"
        position = partition.position
        room = max_payload - _HEADERS_BYTES
        records, position.chain = chained(entries, chain, position.chain, commit_id, room)
        subject = self._subjects.audit(partition.number)
        return [Outgoing(subject, record.encoded(), self._headers) for record in records]
