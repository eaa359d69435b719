"""The open streams of one lane's run: answers that its guest pulls as they come, each by its number.

A performer opens one (`open`) and hands its number to the guest, which pulls (`next`) until the end. A pull
brings whatever has arrived, at least one item or the end. Nothing is read ahead but one item, so a guest that
does not pull lets its server wait.

What must stay true: no stream outlives its run (`close_all`), whatever became of that; a number that means
nothing is a refusal of its own call. Of an answer that the audit has there is one entry, made when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from processor.errors import ProcessorError
from processor.sandbox.calls import GROUP

OPEN_MAX = 4  # of one group of a run, which is a call of `process`
ALL_OPEN_MAX = 64  # of all of them: groups of other keys run while one waits
ITEMS_MAX = 1000  # of one pull
PULL_BYTES = 256 << 10  # of items that are bytes, about: the last of them is taken whole

Close = Callable[[], Awaitable[None]]
_END = object()


class Pulled(NamedTuple):
    """What one pull brings; with the end nothing more will come, and the number means nothing any more."""

    items: list[Any]
    is_end: bool
    are_bytes: bool = True


class OpenStreams:
    """The open streams of a lane, which does one run at a time."""

    def __init__(self) -> None:
        self._open: dict[int, _Stream] = {}
        self._coming: list[int] = []  # groups that wait for answers that will be streams, if they come
        self._opened = 0

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keep a place for a stream until it is opened. Raises ProcessorError E322 where there is none."""
        group = GROUP.get()
        places = [*self._coming, *(stream.group for stream in self._open.values())]
        for taken, most, whose in (
            (places.count(group), OPEN_MAX, "a call of `process`"),
            (len(places), ALL_OPEN_MAX, "a run"),
        ):
            if taken >= most:
                what = f"{whose} has at most {most} streams open"
                remedy = "Read one to its end, or close it, before the next."
                raise ProcessorError("E322", what, remedy=remedy)
        self._coming.append(group)
        try:
            yield
        finally:
            self._coming.remove(group)

    def open(self, items: AsyncIterator[Any], close: Close, *, are_bytes: bool = True) -> int:
        """The number of a new stream of these items, bytes or JSON values; the caller has `room`.

        What `items` raises is raised by the pull that would have brought it, and ends the stream. `close` is
        called once, at the end or before.
        """
        self._opened += 1
        self._open[self._opened] = _Stream(GROUP.get(), items, close, are_bytes)
        return self._opened

    async def next(self, number: int) -> Pulled:
        """What has arrived of a stream. Raises ProcessorError E317 for a number of none, and for a stream
        that another call is pulling, and what the stream itself raises.
        """
        stream = self._open.get(number)
        if stream is None:
            was = 0 < number <= self._opened
            raise _refused(f"the stream {number} is {'closed' if was else 'none of this run'}")
        if stream.is_pulled:
            raise _refused(f"the stream {number} is being pulled already")
        try:
            pulled = await stream.next()
        except Exception:
            await self.close(number)
            raise
        if pulled.is_end:
            await self.close(number)
        return pulled

    async def close(self, number: int) -> None:
        """Close a stream, where it is open."""
        if (stream := self._open.pop(number, None)) is not None:
            await stream.close()

    async def close_all(self) -> None:
        """Close all of them: the run is over. Numbers are not used again."""
        for number in list(self._open):
            await self.close(number)


class _Stream:
    """One stream, of which at most one item is read that was not pulled."""

    def __init__(self, group: int, items: AsyncIterator[Any], close: Close, are_bytes: bool) -> None:
        self.group = group
        self.is_pulled = False
        self._are_bytes = are_bytes
        self._items = items
        self._close = close
        self._coming: asyncio.Task[Any] | None = None

    async def next(self) -> Pulled:
        items: list[Any] = []
        size = 0
        self.is_pulled = True
        try:
            while len(items) < ITEMS_MAX and size < PULL_BYTES:
                if self._coming is None:
                    self._coming = asyncio.create_task(self._one())
                coming = self._coming
                if not items:
                    # A pull that is cut off leaves what it waited for to the next one.
                    await asyncio.wait((coming,))
                elif not coming.done():
                    await asyncio.sleep(0)  # what is there already needs no more than its turn
                    if not coming.done():
                        break
                if coming.cancelled():
                    raise _refused("the stream was closed while it was pulled")
                if items and coming.exception() is not None:
                    break  # it is raised by the next pull
                item, self._coming = coming.result(), None
                if item is _END:
                    return Pulled(items, True, self._are_bytes)
                items.append(item)
                size += len(item) if isinstance(item, bytes) else 0
            return Pulled(items, False, self._are_bytes)
        finally:
            self.is_pulled = False

    async def close(self) -> None:
        coming, self._coming = self._coming, None
        try:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        finally:
            await self._close()

    async def _one(self) -> Any:
        return await anext(self._items, _END)


class StreamEntry:
    """What the audit is to have of an answer that comes in pieces: `end` completes its entry, once."""

    def __init__(self, status: int, complete: Callable[[StreamEntry], None] | None = None) -> None:
        """`status` is that of the answer, 0 where it has none."""
        self.status = status
        self.size = 0
        self.code = ""  # of why it broke off
        self.details: Mapping[str, Any] = {}
        self._hash = hashlib.sha256(b"%d\n" % status)
        self._complete = complete

    @property
    def digest(self) -> str:
        """Of the status and all that was added, as that of an answer which is read whole."""
        return self._hash.hexdigest()[:32]

    def add(self, piece: bytes) -> None:
        """Count a piece that is handed out."""
        if self._complete is not None:
            self._hash.update(piece)
        self.size += len(piece)

    def end(self, code: str = "", details: Mapping[str, Any] | None = None) -> None:
        """It has ended, or broke off with this code. Idempotent: the first time counts."""
        complete, self._complete = self._complete, None
        if complete is not None:
            self.code, self.details = code, details or {}
            complete(self)


def _refused(what: str) -> ProcessorError:
    return ProcessorError("E317", what)
