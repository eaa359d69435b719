"""What a worker publishes with beside its commits: see `Publisher`."""

from __future__ import annotations

from typing import Protocol

from processor.jetstream import Outgoing


class Publisher(Protocol):
    """What goes out without a commit: a `Broker`, or a `MemoryPublisher`."""

    @property
    def max_payload(self) -> int:
        """How many bytes one message may have, its headers included."""

    async def connected(self) -> None:
        """Return when something can be published."""

    async def publish(self, *messages: Outgoing) -> None:
        """Send messages to those who listen now."""

    async def publish_stored(self, message: Outgoing) -> int:
        """Store one message and return its sequence.

        Raises ApiError where it is refused, and Unknown where it may or may not be stored.
        """
