"""Chains of the audit that belong to no partition of a route: where they end, and how they go on.

The chain of a partition ends where its position says. These end where one record says that is kept beside
them, `{"v": 1, "n", "head", "cid"}`, which every commit to the chain replaces, with a fence: of two that
write at the same time one is refused, and follows the other.

What must stay true: an entry that was appended is in the chain once, whatever answers were lost. A chain
never begins again while the audit's stream has a record of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

import orjson

from processor.audit import GENESIS, AuditEntry, AuditRecord, ChainHead, chained
from processor.context.subjects import (
    RouteSubjects,
    SubjectParts,
    app_stream,
    audit_stream,
    audit_subject,
    chain_record,
)
from processor.errors import BrokerError
from processor.jetstream import EXPECTED, KEPT, Again, Broker, Outgoing, Stored, Unknown, WrongLastSequence

VERSION = 1
_SPARE_BYTES = 2048  # what headers and the server need of a message
_PAUSE_S = 0.02
_PAUSE_MAX_S = 1.0


class Chain:
    """One such chain of an app, to be gone on with by whoever has something to say."""

    def __init__(self, broker: Broker, app: str, name: str, ttl_s: float) -> None:
        """The app's own stream keeps its records for `ttl_s`, in which the audit's stream copies them."""
        self._broker = broker
        self._app = app
        self.name = name
        self._ttl = record_ttl(ttl_s)

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Return when the entries are stored behind what others stored, in one commit.

        Tries for as long as the server does not answer. Raises BrokerError where it refuses, and E415 where
        nobody can say where the chain ends.
        """
        commit, pause_s = secrets.token_hex(8), _PAUSE_S
        while True:
            try:
                head, fence, last = await self._end()
                if last == commit:
                    return
                said = list(entries)
                if head != GENESIS and not fence:
                    said.insert(0, rebuilt())
                await self._broker.commit(self._messages(said, head, fence, commit))
                return
            except WrongLastSequence:
                pass  # another was faster, or an answer to us was lost: the end says which
            except (Again, Unknown):
                await self._broker.connected()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _messages(
        self, entries: Sequence[AuditEntry], head: ChainHead, fence: int, commit: str
    ) -> list[Outgoing]:
        records, head = chained(entries, self.name, head, commit, self._broker.max_payload - _SPARE_BYTES)
        subject = audit_subject(self._app, self.name)
        end = {"v": VERSION, "n": head.number, "head": head.digest.hex(), "cid": commit}
        return [
            *(Outgoing(subject, record.encoded(), {"Nats-TTL": self._ttl}) for record in records),
            Outgoing(chain_record(self._app, self.name), orjson.dumps(end), {**KEPT, EXPECTED: str(fence)}),
        ]

    async def _end(self) -> tuple[ChainHead, int, str]:
        """Where the chain ends, the fence of that, and the commit that wrote it."""
        subject = chain_record(self._app, self.name)
        stored = await self._broker.last_from_leader(app_stream(self._app), subject)
        if stored is None:
            return await copied_head(self._broker, self._app, self.name), 0, ""
        try:
            body = orjson.loads(stored.payload)
            return ChainHead.read(body), stored.sequence, str(body.get("cid"))
        except ValueError as err:
            raise BrokerError(
                "E415",
                f"where the audit's chain {self.name} ends cannot be read (message {stored.sequence} of "
                f"{app_stream(self._app)}: {err})",
                remedy="See what `processor audit verify` says, and remove that message: the chain goes on "
                "behind its last copied record.",
            ) from err


async def copied_head(broker: Broker, app: str, chain: str) -> ChainHead:
    """Where a chain ends in the audit's stream; GENESIS where that has none of it, or is not there.

    Raises BrokerError E415 for a last record that cannot be read.
    """
    stream = audit_stream(app)
    if await broker.stream(stream) is None:
        return GENESIS
    stored = await broker.last_from_leader(stream, audit_subject(app, chain))
    return GENESIS if stored is None else _head_of(stored, stream, chain)


def _head_of(stored: Stored, stream: str, chain: str) -> ChainHead:
    try:
        return AuditRecord.decode(stored.payload).head
    except ValueError as err:
        raise BrokerError(
            "E415",
            f"the last record of the audit's chain {chain} cannot be read (message {stored.sequence} of "
            f"{stream}: {err})",
        ) from err


async def copied_heads(broker: Broker, app: str, route: str) -> dict[int, ChainHead]:
    """Where the chains of a route's partitions end in the audit's stream, by partition.

    Raises BrokerError E415 for a last record that cannot be read.
    """
    stream, found = audit_stream(app), dict[int, ChainHead]()
    if await broker.stream(stream) is None:
        return found
    for stored in await broker.last_of(stream, [RouteSubjects(app, route).audit("*")]):
        partition = SubjectParts.of(stored.subject).partition
        if partition is not None:
            found[partition] = _head_of(stored, stream, f"{route}.{partition}")
    return found


def rebuilt() -> AuditEntry:
    """The first entry of a chain that goes on behind what was copied of it: its own end was lost."""
    return AuditEntry("rebuilt", moment_us=time.time_ns() // 1000)


def record_ttl(ttl_s: float) -> str:
    """`Nats-TTL` of an audit record: the server takes no days."""
    return f"{round(ttl_s)}s"
