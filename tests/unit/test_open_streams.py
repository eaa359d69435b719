"""The open streams of a run: what a pull brings, how many there are, and that none outlives its run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from processor.capability.streams import ALL_OPEN_MAX, OPEN_MAX, OpenStreams, Pulled, StreamEntry
from processor.errors import ProcessorError
from processor.sandbox.calls import GROUP
from tests.web import refusal


class Source:
    """Items that the test puts, as a stream; an exception among them is raised, None ends it."""

    def __init__(self, *items: Any) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = 0
        for item in items:
            self.items.put_nowait(item)

    async def all(self) -> AsyncIterator[Any]:
        while (item := await self.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    async def close(self) -> None:
        self.closed += 1


def opened(streams: OpenStreams, source: Source) -> int:
    with streams.room():
        return streams.open(source.all(), source.close)


async def test_a_pull_brings_what_has_arrived() -> None:
    """All items that are there come with one pull, and an empty stream waits for its next item or its end."""
    streams, source = OpenStreams(), Source(b"a", b"b")
    number = opened(streams, source)
    assert await streams.next(number) == Pulled([b"a", b"b"], False)
    waiting = asyncio.create_task(streams.next(number))
    source.items.put_nowait({"n": 1})
    assert await waiting == Pulled([{"n": 1}], False)
    assert not source.closed
    source.items.put_nowait(b"c")
    source.items.put_nowait(None)
    assert await streams.next(number) == Pulled([b"c"], True)
    assert source.closed == 1
    assert "the stream 1 is closed" in await refusal("E317", streams.next(number))
    await streams.close(number)
    assert source.closed == 1


async def test_a_failure_comes_after_what_came_before_it() -> None:
    """A stream that breaks off gives what it had, then its error, once, and is closed."""
    streams, source = OpenStreams(), Source(b"a", ValueError("cut"))
    number = opened(streams, source)
    assert await streams.next(number) == Pulled([b"a"], False)
    with pytest.raises(ValueError, match="cut"):
        await streams.next(number)
    assert source.closed == 1
    await refusal("E317", streams.next(number))


async def test_a_pull_that_is_cut_off_loses_nothing() -> None:
    """What it waited for is brought by the next pull."""
    streams, source = OpenStreams(), Source()
    number = opened(streams, source)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await streams.next(number)
    source.items.put_nowait(b"a")
    assert await streams.next(number) == Pulled([b"a"], False)
    await streams.close_all()


async def test_a_stream_may_be_closed_while_it_is_pulled() -> None:
    """The pull is refused, and nothing is left that waits."""
    streams, source = OpenStreams(), Source()
    number = opened(streams, source)
    pull = asyncio.create_task(streams.next(number))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.shield(pull)
    await streams.close(number)
    assert "closed while it was pulled" in await refusal("E317", pull)
    assert source.closed == 1


async def test_a_number_that_means_nothing_is_refused_by_itself() -> None:
    """Unknown numbers, and a second pull beside the first, leave the other streams alone."""
    streams, source = OpenStreams(), Source()
    number = opened(streams, source)
    for unknown in (0, -1, number + 1):
        assert "none of this run" in await refusal("E317", streams.next(unknown))
        await streams.close(unknown)
    first, second = (asyncio.create_task(streams.next(number)) for _ in range(2))
    assert "being pulled already" in await refusal("E317", second)
    source.items.put_nowait(b"a")
    assert (await first).items == [b"a"]
    await streams.close_all()


async def test_a_run_has_so_many_streams_open() -> None:
    """One more than OPEN_MAX is E322, also while answers are on their way, until one is closed."""
    streams = OpenStreams()
    sources = [Source() for _ in range(OPEN_MAX)]
    numbers = [opened(streams, source) for source in sources[1:]]
    with streams.room():
        full = "E322 a call of `process` has at most 4 streams open"
        with pytest.raises(ProcessorError, match=full), streams.room():
            pass
        numbers.append(streams.open(sources[0].all(), sources[0].close))
    with pytest.raises(ProcessorError, match="E322"), streams.room():
        pass
    await streams.close(numbers[0])
    with streams.room():
        pass
    await streams.close_all()
    assert [source.closed for source in sources] == [1] * OPEN_MAX


async def test_each_group_of_a_run_has_streams_of_its_own() -> None:
    """One that leaves none of its places free takes none of another's; all together have a bound, too."""
    streams = OpenStreams()

    async def take(group: int) -> None:
        GROUP.set(group)
        opened(streams, Source())

    for number in range(ALL_OPEN_MAX):
        await asyncio.create_task(take(number // OPEN_MAX))
    with pytest.raises(ProcessorError, match="E322 a run has at most 64 streams open"):
        await asyncio.create_task(take(ALL_OPEN_MAX))
    await streams.close_all()
    await asyncio.create_task(take(0))
    await streams.close_all()


async def test_the_end_of_a_run_closes_what_it_left_open() -> None:
    """OpenStreams that are waited for are ended with it, and their numbers mean nothing to the next run."""
    streams, source = OpenStreams(), Source()
    number = opened(streams, source)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await streams.next(number)
    await streams.close_all()
    assert source.closed == 1
    assert opened(streams, Source()) == number + 1
    await refusal("E317", streams.next(number))
    await streams.close_all()


def test_an_entry_is_completed_once() -> None:
    """Its digest and size are those of the whole answer, and the first end counts."""
    completed: list[tuple[str, int, str, dict[str, Any]]] = []

    def complete(said: StreamEntry) -> None:
        completed.append((said.digest, said.size, said.code, {**said.details}))

    entry = StreamEntry(200, complete)
    entry.add(b"a")
    entry.add(b"bc")
    entry.end("E323", {"tokens": [1, 2]})
    entry.end()
    # sha256(b"200\n" + b"abc")
    assert completed == [("ab1511669ebbf2ae56a0af8371835d03", 3, "E323", {"tokens": [1, 2]})]
