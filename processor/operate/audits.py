"""The audit of an app, read: entries that somebody looks for, and whether all of it is what was written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import orjson

from processor.audit import SEALS, AuditRecord, ChainHead, Seal, document_of
from processor.config import Config
from processor.context.subjects import (
    RouteSubjects,
    SubjectParts,
    app_stream,
    audit_stream,
    audit_subject,
    chain_of,
    chain_record,
    every,
)
from processor.errors import BrokerError
from processor.jetstream import Broker, Reader, Stored
from processor.model import Delivery
from processor.notes import VerifierKey, public_key_of, read_private_key
from processor.operate.control import Control
from processor.operate.proof import AuditReport, Claims, Verifier

# How long what was committed may take to be copied before it counts as missing.
_COPIED_S = 10.0
_LOOK_S = 0.1
_TAKEN = 500


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are meant; empty means all. `actor` and `on` may have `*` for any text."""

    events: frozenset[str] = frozenset()
    actor: str = ""
    route: str = ""
    decision: str = ""
    on: str = ""
    since_us: int = 0
    until_us: int = 0

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry is meant, by what its line says."""
        moment_us = entry.get("t", 0)
        return (
            (not self.events or entry["e"] in self.events)
            and (not self.decision or entry["d"] == self.decision)
            and (not self.route or entry.get("route") == self.route)
            and (not self.actor or fnmatchcase(str(entry.get("actor", "")), self.actor))
            and (not self.on or fnmatchcase(str(entry.get("on", "")), self.on))
            and (not self.since_us or moment_us >= self.since_us)
            and (not self.until_us or moment_us <= self.until_us)
        )


class Audits:
    """The audit of one app, in the stream that keeps it."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._config = config
        self._is_own = config.audit.stream == "own"
        # Where others keep the copy, we have what the app's own stream still has.
        self.stream = audit_stream(config.app) if self._is_own else app_stream(config.app)
        self.keep_s = config.audit.keep if self._is_own else config.audit.copy_ttl

    async def entries(self, which: AuditFilter) -> AsyncGenerator[dict[str, Any], None]:
        """The entries that are meant, oldest first, each with its `chain`, as they are now.

        Raises BrokerError E401 where there is no audit. A record that cannot be read is passed by: `verify`
        names it.
        """
        await self._info()
        start = 1
        if which.since_us:
            at = datetime.fromtimestamp(which.since_us / 1e6, UTC)
            start = await Control(self._broker, self._config.app).sequence_at(self.stream, self._subject, at)
        async with aclosing(self.records(start)) as records:
            async for record in records:
                for entry in self.entries_in(record):
                    if which.takes(entry):
                        yield entry

    async def follow(self, which: AuditFilter) -> AsyncGenerator[dict[str, Any], None]:
        """The entries that are meant from now on, as they come. Raises BrokerError E401 without an audit."""
        info = await self._info()
        reader = Reader(
            self._broker,
            self.stream,
            [self._subject],
            created=info["created"],
            retention="limits",
            name="processor-audit-tail",
            start_sequence=info["state"]["last_seq"] + 1,
            prefetch=_TAKEN,
        )
        await reader.open()
        try:
            while True:
                for delivery in await reader.take(_TAKEN, 1 << 20):
                    for entry in self.entries_in(delivery):
                        if which.takes(entry):
                            yield entry
        finally:
            await reader.close()

    def entries_in(self, record: Stored | Delivery) -> list[dict[str, Any]]:
        """The entries of a message of the stream; none for a seal, or what cannot be read."""
        chain = chain_of(self._config.app, record.subject)
        if chain in ("", SEALS):
            return []
        try:
            lines = AuditRecord.decode(record.payload).lines
        except ValueError:
            return []
        return [{"chain": chain, **document_of(line)} for line in lines]

    async def records(self, start: int = 1) -> AsyncGenerator[Stored, None]:
        """The records of all chains, and the seals, in the order of their stream."""
        history = self._broker.history(self.stream, [self._subject], start_sequence=start)
        async with aclosing(history):
            async for stored in history:
                yield stored

    @property
    def _subject(self) -> str:
        return audit_subject(self._config.app, ">")

    async def verify(self, keys: Sequence[VerifierKey]) -> AuditReport:
        """Whether the audit is all that was written. Raises what the broker raises."""
        claims = await self.claims(keys)
        verifier = Verifier(claims)
        if claims.created:
            async with aclosing(self.records()) as records:
                async for stored in records:
                    chain = chain_of(self._config.app, stored.subject)
                    if chain != SEALS:
                        place = f"{self.stream} sequence {stored.sequence}"
                        verifier.take(stored.sequence, chain, stored.payload, place)
        report = verifier.finish(await self._ends() if verifier.unclaimed else None)
        if not claims.created:
            report.faults.insert(0, f"stream {self.stream} is not there")
        return report

    async def claims(self, keys: Sequence[VerifierKey]) -> Claims:
        """What the records are to be held against; it is waited for until they are copied."""
        ends = await self._ends()
        last_seal = await self._last_seal()
        info = await self._broker.stream(self.stream)
        if info is not None:
            await self._copied(ends)
        seals = []
        if info is not None:
            subject = audit_subject(self._config.app, SEALS)
            async with aclosing(self._broker.history(self.stream, [subject])) as history:
                async for stored in history:
                    seals.append((f"{self.stream} sequence {stored.sequence}", stored.payload))
        created = str(info["created"]) if info is not None else ""
        now_us = time.time_ns() // 1000
        keep_us = round(self.keep_s * 1e6)
        return Claims(ends, seals, last_seal, self.stream, created, keep_us, now_us, tuple(keys))

    async def _info(self) -> dict[str, Any]:
        info = await self._broker.stream(self.stream)
        if info is None:
            raise BrokerError(
                "E401",
                f"there is no stream {self.stream}",
                remedy="The app has not run with an audit: set audit.level, or a policy.",
            )
        return info

    async def _ends(self) -> dict[str, ChainHead]:
        """Where each chain ends, as positions and the records beside them say."""
        app, found = self._config.app, dict[str, ChainHead]()
        positions = RouteSubjects(app, "*").position("*")
        for stored in await self._broker.last_of(app_stream(app), [positions, every(app, "chain")]):
            kind, route, partition, _ = SubjectParts.of(stored.subject)
            if partition is None or f"{route}.{partition}" == SEALS:
                continue
            try:
                body = orjson.loads(stored.payload)
                head = ChainHead.read(body.get("audit") if kind == "pos" else body)
            except (ValueError, AttributeError):
                continue  # a chain without an end is named where it has records
            if head.number:
                found[f"{route}.{partition}"] = head
        return found

    async def _last_seal(self) -> Seal | None:
        stored = await self._broker.last_of(
            app_stream(self._config.app), [chain_record(self._config.app, SEALS)]
        )
        try:
            return Seal.decode(stored[0].payload) if stored else None
        except ValueError:
            return None

    async def _copied(self, ends: Mapping[str, ChainHead]) -> None:
        """Return when the stream has come to these ends, or has had the time to."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + _COPIED_S:
            last = {
                chain_of(self._config.app, stored.subject): stored.payload
                for stored in await self._broker.last_of(self.stream, [self._subject])
            }
            if all(_last_number(last.get(chain)) >= end.number for chain, end in ends.items()):
                return
            await asyncio.sleep(_LOOK_S)


def _last_number(payload: bytes | None) -> int:
    try:
        return AuditRecord.decode(payload).head.number if payload is not None else 0
    except ValueError:
        return 0


def own_key(config: Config) -> VerifierKey | None:
    """The public half of the key that signs the app's seals, where that can be read here."""
    if config.audit.key_file is None:
        return None
    try:
        with open(config.audit.key_file, "rb") as file:
            return VerifierKey(config.audit_origin, public_key_of(read_private_key(file.read())))
    except (OSError, ValueError):
        return None
