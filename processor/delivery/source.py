"""What a worker takes its deliveries from, however the stream is read: see `Source`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from processor.model import Delivery


class Source(Protocol):
    """Where deliveries come from: a `Reader`, or a `Lane` of one that several workers share."""

    @property
    def taken(self) -> int:
        """Up to this sequence of the stream everything that is for this worker was taken."""

    @property
    def waiting(self) -> int:
        """Messages that `take` would return at once."""

    def peek(self, max_messages: int) -> list[Delivery]:
        """The first of those, left where they are."""

    async def take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """The next messages, as `Reader.take`; none where only `taken` went on, far."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """As `Reader.ack`."""
