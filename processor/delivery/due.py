"""The messages that are due for one worker: retries whose time has come, and redriven dead letters.

They are handed over as the app's stream brings them. Where more of them come than may wait here, and for what
came unannounced, they are read from there, page by page.

What must stay true:
- Each message is taken once, in the order of the app's stream.
- What waits here stays within its bounds, however many are due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from processor.context.parked import ParkedMessage

_WAITING_MAX = 2000
_WAITING_BYTES = 8 << 20

# Reads some of them from behind a place in the app's stream on, and says up to which place it has looked;
# an empty page that has looked no farther is the end.
ReadPage = Callable[[int], Awaitable[tuple[list[ParkedMessage], int]]]


class Due:
    """The messages that are due for some partitions, as one worker takes them."""

    def __init__(self, read_page: ReadPage) -> None:
        self._read_page = read_page
        self._waiting: deque[ParkedMessage] = deque()
        self._bytes = 0
        self._seen = 0  # up to this place in the app's stream all of them were taken or wait here
        self._is_behind = True  # behind that place there may be more than was handed over
        self._is_reading = False
        self.arrived = asyncio.Event()  # for the caller to clear before it takes

    def __bool__(self) -> bool:
        """Whether `take` is worth a call."""
        return bool(self._waiting) or self._is_behind

    def accept(self, kept: ParkedMessage) -> None:
        """One that the app's stream has brought; it waits here, or there if here is no room."""
        if kept.sequence <= self._seen:
            return
        # What is read comes before what is handed over meanwhile, and brings that too.
        if self._is_behind or self._is_reading or not self._has_room:
            self._is_behind = True
        else:
            self._append(kept)
            self._seen = kept.sequence
        self.arrived.set()

    def look(self) -> None:
        """Make the next `take` look in the app's stream: something may have come that was not handed over."""
        self._is_behind = True
        self.arrived.set()

    async def take(self, max_messages: int, max_bytes: int) -> list[ParkedMessage]:
        """The next messages, at least one where there is one; none that has the sequence of another.

        A batch tells its messages apart by their sequences, and what is due may come from several streams.
        """
        while self._is_behind and not self._waiting:
            await self._read_on()
        taken: list[ParkedMessage] = []
        sequences: set[int] = set()
        size = 0
        while self._waiting and len(taken) < max_messages:
            delivery = self._waiting[0].delivery
            size += len(delivery.payload)
            if delivery.sequence in sequences or (taken and size > max_bytes):
                break
            sequences.add(delivery.sequence)
            self._bytes -= len(delivery.payload)
            taken.append(self._waiting.popleft())
        return taken

    async def _read_on(self) -> None:
        self._is_behind, self._is_reading = False, True
        try:
            found, seen = await self._read_page(self._seen)
        finally:
            self._is_reading = False
        for kept in found:
            self._append(kept)
        if seen > self._seen:
            self._seen, self._is_behind = seen, True

    @property
    def _has_room(self) -> bool:
        return len(self._waiting) < _WAITING_MAX and self._bytes < _WAITING_BYTES

    def _append(self, kept: ParkedMessage) -> None:
        self._waiting.append(kept)
        self._bytes += len(kept.delivery.payload)
