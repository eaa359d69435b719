"""The event loop of plain guests: it has no descriptors, and waits for answers of the host or lets time pass.

`prepare` makes it, in a zygote, what `asyncio.run` and all else uses; the zygotes of the dialect never import
this module. `finish` runs a coroutine that an entry point has returned to its end, and all that it began: a
task that is left over is cancelled, as `asyncio.run` does. One loop stays for all of these, so that a lock or
a client that an instance keeps can be used in its next run, too.

What loops have descriptors and threads for cannot be in a guest. So `run_in_executor`, on which
`asyncio.to_thread` stands, makes its call in the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import Any

from processor.sandbox import locks, wire
from processor.sandbox.channel import GuestCalls


class _Waiter:
    """What a loop waits with: for the next of the answers that are to come, or for a time."""

    def __init__(self, calls: GuestCalls | None) -> None:
        self._calls = calls

    def select(self, timeout: float | None = None) -> list[Any]:
        if self._calls is not None and self._calls.are_open:
            self._calls.take_in(timeout)
        elif timeout is None:
            raise RuntimeError("the event loop has nothing left to do, and nothing can wake it")
        elif timeout > 0:
            time.sleep(timeout)
        return []

    def close(self) -> None:
        """Nothing is held."""


class GuestLoop(asyncio.BaseEventLoop):
    """A loop whose tasks may call the host, and go on while it answers."""

    def __init__(self, calls: GuestCalls | None) -> None:
        super().__init__()
        self._calls = calls
        self._selector = _Waiter(calls)
        self._room: asyncio.Semaphore | None = None

    async def call(self, name: str, arguments: dict[str, Any], body: bytes | None = None) -> Any:
        """What the host answers: a value, or with a `body` a value and bytes. Raises AuthorityKernelError.

        As many calls are open at a time as may be; the others wait for their turn.
        """
        calls = self._calls
        assert calls is not None  # a loop of a guest
        if self._room is None:
            self._room = asyncio.Semaphore(calls.most)
        async with self._room:
            answer: asyncio.Future[wire.Frame] = self.create_future()
            number = calls.begin(name, arguments, body, partial(_hear, answer))
            try:
                frame = await answer
            except BaseException:
                calls.cancel(number)
                raise
        return calls.read(name, frame, has_body=body is not None)

    def run_forever(self) -> None:
        with nullcontext() if self._calls is None else self._calls.in_loop():
            super().run_forever()

    def finish(self, coroutine: Awaitable[Any]) -> Any:
        """What a coroutine returns, or raises; nothing that it began is left when it has ended."""
        try:
            return self.run_until_complete(coroutine)
        finally:
            if left := asyncio.all_tasks(self):
                for task in left:
                    task.cancel()
                self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            for generator in list(self._asyncgens):  # type: ignore[attr-defined]
                self.run_until_complete(generator.aclose())

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """What a call comes to that is made in the next turn of the loop: there are no threads."""
        return self.create_task(_made(func, args))

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There is nobody else who could wake it."""


async def _made(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return func(*args)


def _hear(answer: asyncio.Future[wire.Frame], frame: wire.Frame) -> None:
    if not answer.done():
        answer.set_result(frame)


class _Policy(asyncio.DefaultEventLoopPolicy):
    """Makes loops for a guest."""

    calls: GuestCalls | None = None  # from the namespace of its program on

    def new_event_loop(self) -> GuestLoop:
        return GuestLoop(self.calls)


_policy = _Policy()
_kept: GuestLoop | None = None


def prepare() -> None:
    """Let asyncio make the loops of this module, in this process and those that are forked from it."""
    asyncio.set_event_loop_policy(_policy)


def bring_calls(calls: GuestCalls | None) -> None:
    """This process is a guest, and makes its calls by these."""
    _policy.calls = calls
    if calls is not None:
        locks.install(calls)


def finish(made: Any) -> Any:
    """What a coroutine that user code has returned comes to, or what an asynchronous generator yields, one by
    one; anything else as it is.
    """
    global _kept
    if type(made) is not CoroutineType and type(made) is not AsyncGeneratorType:
        return made
    if _kept is None:
        _kept = GuestLoop(_policy.calls)
    return _kept.finish(made) if type(made) is CoroutineType else _items(_kept, made)


def _items(loop: GuestLoop, generator: AsyncGeneratorType[Any, Any]) -> Iterator[Any]:
    try:
        while True:
            try:
                item = loop.run_until_complete(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        loop.finish(generator.aclose())


async def call(name: str, arguments: dict[str, Any], body: bytes | None) -> Any:
    """What the host answers to a call that is awaited. Raises RuntimeError in a loop of another kind."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, GuestLoop):
        raise RuntimeError(f"calls are awaited in a loop that asyncio has made, not in {type(loop).__name__}")
    return await loop.call(name, arguments, body)
