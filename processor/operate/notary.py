"""The notary: follows an app's audit, checks it as it comes, and seals it.

One process of an app is its notary. It reads the records in the order of their stream, holds each against its
chain, and adds every entry to one Merkle tree. After so many entries, or so long after the first that is not
sealed, it commits a seal: the tree's size and root in a note, signed where there is a key, the tree's
frontier, and where each chain was. Whoever is the notary next goes on from the last seal.

What must stay true: a seal is of exactly the entries up to its place in the stream, each once, in its order.
Of two that seal at the same time one is refused. A fault of the audit stops neither sealing nor the routes:
it is said once, and shown (`processor_audit_broken`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processor.audit import SEALS, ChainHead, Seal
from processor.config import Config
from processor.context.chains import record_ttl
from processor.context.subjects import (
    app_stream,
    audit_stream,
    audit_subject,
    chain_of,
    chain_record,
)
from processor.delivery.audit_copy import prepare_audit
from processor.errors import ProcessorError
from processor.jetstream import (
    EXPECTED,
    KEPT,
    Again,
    ApiError,
    Broker,
    Outgoing,
    Reader,
    Unknown,
    WrongLastSequence,
)
from processor.model import Delivery
from processor.notes import Checkpoint, Frontier, read_private_key
from processor.operate.proof import Chains
from processor.telemetry import Telemetry

log = logging.getLogger("processor")

_LOOK_S = 1.0
_GATHER_S = 0.2  # between two looks at what has come: a route commits a hundred times a second
_TAKEN = 500
_SPARE_BYTES = 2048  # what headers and the server need of a message
_FAULTS_SAID = 20  # chains that are named in the log


@dataclass(slots=True)
class _Progress:
    """What is sealed, and what was read since."""

    stream: str
    created: str
    sequence: int  # read up to here
    tree: Frontier
    chains: Chains
    last: Seal | None
    fence: int  # of the record that holds the last seal
    known: dict[str, ChainHead]  # entries that are sealed, of a stream that was made anew
    unsealed: int = 0
    since_s: float = 0.0  # when the first of these was read


class Notary:
    """Seals the audit of an app while this process is the one that has to."""

    def __init__(
        self, broker: Broker, config: Callable[[], Config], telemetry: Telemetry, is_mine: Callable[[], bool]
    ) -> None:
        self._broker = broker
        self._config = config
        self._telemetry = telemetry
        self._is_mine = is_mine
        self._said: set[str] = set()
        key_file = config().audit.key_file
        self._key = read_private_key(Path(key_file).read_bytes()) if key_file else None

    async def run(self) -> None:
        """Seal, until cancelled."""
        trouble = ""
        while True:
            if self._is_due():
                try:
                    await self._seal_on()
                except WrongLastSequence:
                    log.debug("another processor has sealed the audit")
                except (ProcessorError, Unknown, Again, ApiError) as err:
                    if str(err) != trouble:
                        log.warning("the audit cannot be sealed now: %s", err)
                    trouble = str(err)
            await asyncio.sleep(_LOOK_S)

    def _is_due(self) -> bool:
        return self._config().audit_level != "off" and self._is_mine()

    async def _seal_on(self) -> None:
        """Read and seal for as long as we are to. Raises WrongLastSequence where another process does."""
        progress = await self._begin()
        reader = Reader(
            self._broker,
            progress.stream,
            [audit_subject(self._config().app, ">")],
            created=progress.created,
            retention="limits",
            name=f"{progress.stream}-notary",
            start_sequence=progress.sequence + 1,
            prefetch=_TAKEN,
        )
        await reader.open()
        try:
            while self._is_due():
                await asyncio.sleep(_GATHER_S)
                for delivery in await self._taken(reader, progress):
                    self._take(progress, delivery)
                settings = self._config().audit.seal
                is_old = progress.unsealed and time.monotonic() >= progress.since_s + settings.seconds
                if is_old or progress.unsealed >= settings.entries:
                    await self._seal(progress)
        finally:
            await reader.close()

    async def _taken(self, reader: Reader, progress: _Progress) -> list[Delivery]:
        wait_s = _LOOK_S
        if progress.unsealed:
            due_s = progress.since_s + self._config().audit.seal.seconds
            wait_s = min(wait_s, max(0.001, due_s - time.monotonic()))
        try:
            async with asyncio.timeout(wait_s):
                return await reader.take(_TAKEN, 1 << 20)
        except TimeoutError:
            return []

    async def _begin(self) -> _Progress:
        """The log as the last seal left it."""
        config = self._config()
        is_own = config.audit.stream == "own"
        await prepare_audit(self._broker, config)
        name = audit_stream(config.app) if is_own else app_stream(config.app)
        info = await self._broker.stream(name)
        if info is None:
            raise Again(f"stream {name} is gone")
        created = str(info["created"])
        record = await self._broker.last_from_leader(app_stream(config.app), chain_record(config.app, SEALS))
        last, fence = None, 0
        if record is not None:
            last, fence = _seal(record.payload), record.sequence
        if last is None:  # of an app whose own stream was lost
            copied = await self._broker.last_from_leader(name, audit_subject(config.app, SEALS))
            last = _seal(copied.payload) if copied is not None else None
        if last is None:
            return _Progress(name, created, 0, Frontier(), Chains(), None, fence, {})
        self._telemetry.sealed(last.frontier.size)
        tree = last.frontier.copy()
        if (last.stream, last.created) == (name, created):
            return _Progress(name, created, last.sequence, tree, Chains(last.heads), last, fence, {})
        if last.stream == name:
            self._broken(
                name,
                f"stream {name} was made anew: its seals count in the one created at {last.created}, and of "
                "what that held only what the app's own stream still has is there",
            )
        return _Progress(name, created, 0, tree, Chains(last.heads), last, fence, dict(last.heads))

    def _take(self, progress: _Progress, delivery: Delivery) -> None:
        progress.sequence = delivery.sequence
        chain = chain_of(self._config().app, delivery.subject)
        if chain in ("", SEALS) or self._is_sealed(progress, chain, delivery.payload):
            return
        lines, fault = progress.chains.take(chain, delivery.payload)
        # The chains that moved last come last: a seal without room for all has these.
        if chain in progress.chains.heads:
            progress.chains.heads[chain] = progress.chains.heads.pop(chain)
        if fault:
            where = f"{progress.stream} sequence {delivery.sequence}"
            self._broken(chain, f"chain {chain} breaks at {fault} ({where})")
        if not progress.unsealed:
            progress.since_s = time.monotonic()
        for line in lines:
            progress.tree.add(line)
        progress.unsealed += len(lines)

    def _is_sealed(self, progress: _Progress, chain: str, payload: bytes) -> bool:
        """Whether a record is sealed already, of a stream that is read again from its start."""
        head = progress.known.get(chain)
        if head is None:
            return False
        probe = Chains()
        probe.take(chain, payload)
        found = probe.heads.get(chain)
        if found is not None and found.number <= head.number:
            return True
        del progress.known[chain]
        return False

    async def _seal(self, progress: _Progress) -> None:
        config, before = self._config(), progress.last
        checkpoint = Checkpoint(config.audit_origin, progress.tree.size, progress.tree.root)
        seal = Seal(
            time.time_ns() // 1000,
            (before.frontier.size, before.moment_us) if before is not None else (0, 0),
            progress.stream,
            progress.created,
            progress.sequence,
            progress.tree.copy(),
            dict(reversed(progress.chains.heads.items())),
            checkpoint.note(self._key),
        )
        payload = seal.encoded(self._broker.max_payload - _SPARE_BYTES)
        headers = {"Nats-TTL": record_ttl(config.audit.copy_ttl)}
        progress.fence = await self._broker.commit(
            [
                Outgoing(audit_subject(config.app, SEALS), payload, headers),
                Outgoing(chain_record(config.app, SEALS), payload, {**KEPT, EXPECTED: str(progress.fence)}),
            ]
        )
        progress.last, progress.unsealed = seal, 0
        self._telemetry.sealed(progress.tree.size)
        signed = "signed" if self._key is not None else "unsigned"
        # The log pipeline is a witness: what it has cannot be sealed otherwise later.
        log.info("audit sealed size=%d root=%s %s", checkpoint.size, checkpoint.root.hex(), signed)

    def _broken(self, what: str, fault: str) -> None:
        self._telemetry.audit_broken()
        if what not in self._said and len(self._said) < _FAULTS_SAID:
            self._said.add(what)
            log.error("E415 the audit is broken: %s", fault, extra={"code": "E415"})


def _seal(payload: bytes) -> Seal | None:
    try:
        return Seal.decode(payload)
    except ValueError as err:
        log.error("E415 a seal of the audit cannot be read: %s", err, extra={"code": "E415"})
        return None
