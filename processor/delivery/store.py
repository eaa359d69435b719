"""Where a worker keeps contexts and positions, whatever that is: see `Store`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from processor.audit import AuditEntry
from processor.context.late import Intent, Look
from processor.context.parked import ParkedMessage
from processor.context.position import Move
from processor.context.store import NONE
from processor.jetstream import Outgoing
from processor.model import ContextChange, Delivery


class Store(Protocol):
    """What one worker has of a route, claimed for its partitions: a `ContextStore`, or a `MemoryStore`.

    A method that is not described here does what `ContextStore` says of it.
    """

    @property
    def created(self) -> str:
        """When the input stream was created that the positions count in."""

    @property
    def owned(self) -> Collection[int]:
        """The partitions that this store commits for."""

    @property
    def epochs(self) -> Mapping[int, int]:
        """The epoch of each of them, as it was claimed last."""

    def fruitless_claims(self, partition: int) -> int:
        """How often the partition was claimed in a row, before this time, without a commit after it."""

    @property
    def tries(self) -> dict[int, int]:
        """The messages that were open at the last commit, with their tries until then."""

    @property
    def blocked(self) -> Mapping[str, int]:
        """The keys that were blocked at the last commit, with the tries of their first message."""

    @property
    def watermark(self) -> int:
        """Up to here the input was read for these partitions, by what was handed over to `commit`."""

    def partition(self, key: str) -> int:
        """The partition of `key`."""

    def place(self, delivery: Delivery, key: str) -> int:
        """The partition whose position counts a message."""

    def counted_by(self, number: int) -> int:
        """The partition that has what is kept for `number`."""

    def is_done(self, partition: int, sequence: int) -> bool:
        """Whether this input message is settled, as far as commits are confirmed."""

    @property
    def bytes_held(self) -> int:
        """Encoded size of the contexts that were loaded or changed and not forgotten since, in bytes."""

    @property
    def is_spread(self) -> bool:
        """Whether there are contexts whose reading takes time, which `unread` names."""

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are worth a `load` before they are needed."""

    async def load(self, keys: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """The committed contexts of `keys`, as encoded items; empty for a key that was never committed."""

    def forget(self, keys: Iterable[str]) -> None:
        """Drop what is remembered of these keys; they will be loaded when they are needed again."""

    def scattered(self, changes: Mapping[str, ContextChange]) -> int:
        """How many messages of a commit the changed contexts take that come whole and are kept by item."""

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
        """Store messages, changed contexts, audit entries and positions: all of it or none. Raises Fenced."""

    async def announce(self, partition: int, intent: Intent) -> None:
        """Write down a call that is about to be made."""

    async def look(self) -> Look:
        """What the audit chains of our partitions lack of what was written down beside commits."""

    async def leave(self, entries: Sequence[tuple[int, AuditEntry]]) -> None:
        """Store entries that cannot be committed any more, for whoever owns their partitions next."""

    async def due(self, after: int) -> tuple[list[ParkedMessage], int]:
        """Messages that are due, from behind a place on, and up to which place it has looked."""

    async def held(self, key: str, limit: int) -> tuple[list[ParkedMessage], bool]:
        """The first messages of a blocked key, at most `limit`, and whether there are more."""

    async def release(self) -> None:
        """Let others have the partitions at once."""
