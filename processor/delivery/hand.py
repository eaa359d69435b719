"""The messages that one worker has in hand: which of them are still to run, and how often each was tried.

The parts of a worker share one `Hand`. Nothing here decides or waits; what a message in hand was settled with
is told by whoever settled it, and nothing of the message is left here then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from processor.delivery.waiting import Waiting
from processor.model import Delivery


class Hand:
    """Everything that was taken and is not settled, as far as more must be known of it than its bytes."""

    def __init__(self, tries: dict[int, int]) -> None:
        """`tries` are those of messages that an owner before us has left open; it is kept, and changed."""
        self.tries = tries  # of messages that failed or wait, by sequence
        self.waiting = Waiting()
        self.unblocking: str | None = None  # the blocked key whose messages are being tried
        self.announced: set[int] = set()  # those whose start was published
        self.waited: set[int] = set()  # those that have waited for a budget, which counts as no try
        self.coming: list[Sequence[Delivery]] = []  # taken and not processed yet, the next ones last

    def attempt(self, delivery: Delivery) -> int:
        """The number of the try that is under way or comes next, counted from 1."""
        return self.tries.get(delivery.sequence, 0) + 1

    @property
    def first_left(self) -> int | None:
        """The lowest sequence of the input that is still to be processed; None where nothing is left."""
        left = (delivery.sequence for part in self.coming for delivery in part if not delivery.kept)
        return min(left, default=None)

    def settled(self, deliveries: Iterable[Delivery]) -> None:
        """Forget messages that are settled."""
        if self.tries or self.announced or self.waited:
            for delivery in deliveries:
                self.tries.pop(delivery.sequence, None)
                self.announced.discard(delivery.sequence)
                self.waited.discard(delivery.sequence)
