"""Which keys wait for another try of their first message, and the messages behind it.

A worker asks here before it runs a message of a key. A key *waits* for a short time with its messages in
memory, or is *blocked* with them kept in the app stream; either way no later message of it overtakes the
first. Time is the caller's: nothing here reads a clock, so that delays can be tested exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from processor.model import Delivery

# Messages in memory behind keys that wait; when there are more, nothing new is taken for the moment.
HELD_MAX = 1000


@dataclass(slots=True)
class _Queue:
    due_s: float
    deliveries: deque[Delivery] = field(default_factory=deque)


class Waiting:
    """The waiting and the blocked keys of one worker."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._blocked: dict[str, float] = {}
        self._held = 0

    def __bool__(self) -> bool:
        return bool(self._queues or self._blocked)

    def __len__(self) -> int:
        """Messages that are held in memory."""
        return self._held

    @property
    def is_full(self) -> bool:
        """Whether so many messages are held that nothing new should be taken."""
        return self._held >= HELD_MAX

    @property
    def blocked(self) -> int:
        """How many keys are blocked."""
        return len(self._blocked)

    def waits(self, key: str) -> bool:
        """Whether the key's messages are held in memory."""
        return key in self._queues

    def is_blocked(self, key: str) -> bool:
        """Whether the key's messages are kept in the app stream."""
        return key in self._blocked

    def wait(self, key: str, delivery: Delivery, until_s: float) -> None:
        """The key waits with this message at its head, until a time of the caller's clock."""
        self._queues[key] = _Queue(until_s, deque((delivery,)))
        self._held += 1

    def follow(self, key: str, delivery: Delivery) -> None:
        """A later message of a key that waits."""
        self._queues[key].deliveries.append(delivery)
        self._held += 1

    def take(self, key: str) -> list[Delivery]:
        """The messages of a key that waited, in order; it waits no more."""
        queue = self._queues.pop(key)
        self._held -= len(queue.deliveries)
        return list(queue.deliveries)

    def block(self, key: str, until_s: float) -> None:
        """The key is blocked, and to be tried at that time."""
        self._blocked[key] = until_s

    def unblock(self, key: str) -> None:
        """The key goes on."""
        self._blocked.pop(key, None)

    def due(self, now_s: float) -> Iterator[str]:
        """The keys whose time has come, those that waited longest first."""
        ready = [(queue.due_s, key) for key, queue in self._queues.items() if queue.due_s <= now_s]
        ready += [(due_s, key) for key, due_s in self._blocked.items() if due_s <= now_s]
        return (key for _, key in sorted(ready))

    def next_s(self) -> float | None:
        """When the next key is due; None while none waits."""
        times = [queue.due_s for queue in self._queues.values()]
        return min([*times, *self._blocked.values()], default=None)
