"""The capability calls of one run of a guest: made at the same time, counted, and recorded when they ended.

What must stay true:
- A call gets one answer, or a refusal, under the id that the guest gave it, unless the guest is gone.
- No call outlives its run: `close` waits for what is cut off.
- What a guest has asked for and has not read is at most so many answers as it may have calls open.
- Nothing is recorded of a call but where it went, how it ended and how much it was; no path, query, header or
  body, which may hold what is not for a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from typing import Any

from processor.address import parse_url
from processor.errors import ProcessorError
from processor.model import Call, Group, Limits
from processor.sandbox import objects, wire
from processor.sandbox.link import Link

log = logging.getLogger("processor")

# Calls over limits.requests are answered with a refusal, but not for ever: each one costs the host time.
REFUSED_CALLS = 1000

# The group of the run whose call a task makes.
GROUP: ContextVar[int] = ContextVar("group", default=0)

Perform = Callable[[str, dict[str, Any]], Awaitable[Any]]
# Who makes the calls of one run: gets the group that calls, the name, the arguments, and what makes the call.
Answer = Callable[[int, str, dict[str, Any], Callable[[dict[str, Any]], Awaitable[Any]]], Awaitable[Any]]


class RunCalls:
    """The calls of one run: every message may make `limits.calls`, of which `limits.requests` may leave the
    host. `made` is what was made of them, in the order in which they ended.
    """

    def __init__(
        self,
        limits: Limits,
        groups: Sequence[Group],
        answer: Answer | None,
        local: Collection[str] = (),
        uncounted: Collection[str] = (),
    ) -> None:
        """`local` are the capabilities whose calls do not leave the host, and `uncounted` those whose calls
        go on with another one.
        """
        self.answer = answer
        self.counts = [0] * len(groups)
        self.requests = [0] * len(groups)
        self._local = local
        self._uncounted = uncounted
        self.refused = 0
        self.made: list[Call] = []
        self.granted: set[tuple[str, str]] = set()  # methods and types of objects that were asked for
        self._limits = limits
        self._groups = groups

    def making(
        self, group: int, name: str, perform: Perform | None
    ) -> Callable[[dict[str, Any]], Awaitable[Any]]:
        """What makes a call of a group. It raises ProcessorError E322 beyond what its messages may make."""

        async def make(arguments: dict[str, Any]) -> Any:
            GROUP.set(group)
            if perform is not None and name in self._uncounted:
                return await perform(name, arguments)
            self._count(group, name)
            if perform is None:
                raise ProcessorError("E317", f"{name}: this Runnable has no such capability")
            code, answer, started_s = "E314", None, time.perf_counter()
            try:
                answer = await perform(name, arguments)
                code = ""
                return answer
            except ProcessorError as err:
                code = err.code
                raise
            finally:
                self.made.append(_call(group, name, arguments, answer, code, time.perf_counter() - started_s))

        return make

    def _count(self, group: int, name: str) -> None:
        messages, limits = len(self._groups[group].documents), self._limits
        whose = "one message" if messages == 1 else f"each of {messages} messages"
        self.counts[group] += 1
        if self.counts[group] > (most := max(limits.calls, limits.requests)) * messages:
            raise ProcessorError("E322", f"{name}: more than {most} calls for {whose} (limits.calls)")
        if name in self._local:
            return
        self.requests[group] += 1
        if self.requests[group] > limits.requests * messages:
            what = f"{name}: more than {limits.requests} requests for {whose} (limits.requests)"
            raise ProcessorError("E322", what)


class OpenCalls:
    """The calls of one run that are being made, each in a task of its own."""

    def __init__(self, link: Link, nonce: int, calls: RunCalls, most: int, perform: Perform | None) -> None:
        """A guest may have `most` of them open at a time."""
        self._link = link
        self._nonce = nonce
        self._calls = calls
        self._most = most
        self._perform = perform
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[bytes]] = {}  # by the id of the call
        self._begun = self._cancelled = 0

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def begin(self, frame: wire.Frame) -> None:
        """Begin to make a call, unless its guest has died over it. Raises Violation."""
        group, name, arguments = wire.read_call(frame, self._begun + 1, len(self._calls.counts))
        self._begun += 1
        # Also those whose answers it has not taken: an honest guest reads one before it calls again.
        if len(self._tasks) + self._link.unsent >= self._most:
            raise wire.Violation("more calls at once than it may have open")
        if self._calls.refused > REFUSED_CALLS:
            raise wire.Violation("calls without an end")
        if self._link.alive:
            call = self._begun
            task = self._tasks[call] = self._loop.create_task(self._made(call, group, name, arguments))
            task.add_done_callback(partial(self._ended, call))

    def cancel(self, frame: wire.Frame) -> None:
        """Cut a call off, for which nobody in the guest waits. It is answered. Raises Violation."""
        call = wire.read_cancel(frame, self._begun)
        self._cancelled += 1
        if self._cancelled > self._begun:
            raise wire.Violation("more cancellations than calls")
        if (task := self._tasks.get(call)) is not None:  # else its answer is on its way
            self._loop.call_soon(task.cancel)  # once it has begun: it counts as one that was made

    def interrupt(self) -> None:
        """Cut all of them off: the guest has ended."""
        for task in self._tasks.values():
            task.cancel()

    async def close(self) -> None:
        """Cut off what is still made, and wait for it: the run is over."""
        self.interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _made(self, call: int, group: int, name: str, arguments: dict[str, Any]) -> bytes:
        """The frame that answers a call."""
        calls = self._calls
        make = calls.making(group, name, self._perform)
        try:
            answer = await (calls.answer(group, name, arguments, make) if calls.answer else make(arguments))
            reply = wire.write_answer(self._nonce, call, answer)
        except ProcessorError as err:
            calls.refused += 1
            return wire.write_refusal(self._nonce, call, err.code, str(err), _about(err))
        except Exception:  # a wall: what it was about came from a guest
            calls.refused += 1
            log.exception("an unexpected error in a call of %s; please report it", name)
            why = f"{name}: an error of Processor's own, which its log has; please report it"
            return wire.write_refusal(self._nonce, call, "E365", why)
        if name == objects.HEAP:  # it may be done for the rest of the run
            calls.granted.add((str(arguments.get("method")), str(arguments.get("type"))))
        return reply

    def _ended(self, call: int, task: asyncio.Task[bytes]) -> None:
        del self._tasks[call]
        if task.cancelled():
            reply = wire.write_refusal(self._nonce, call, "E317", "the call was cancelled")
        else:
            reply = task.result()
        if self._tasks:  # others may end in this turn of the loop, too
            self._link.write_soon(reply)
        else:
            self._link.write(reply)


def _about(err: ProcessorError) -> dict[str, Any]:
    """What a guest's exception has as attributes."""
    return {**(asdict(err.about) if err.about else {}), "remedy": err.remedy}


def _call(
    group: int, name: str, arguments: Mapping[str, Any], answer: Any, code: str, seconds: float
) -> Call:
    """What is recorded of a call; nothing of a path, a query, a header or a body."""
    url, sent = arguments.get("url"), arguments.get("body")
    host, status, bytes_in = "", None, 0
    if type(url) is str:
        with contextlib.suppress(ValueError):
            host = parse_url(url).host
    if isinstance(answer, wire.Attached):
        bytes_in = len(answer.body)
        status = answer.value.get("status")
        code = "E317" if "failed" in answer.value else code
    bytes_out = len(sent) if type(sent) is bytes else 0
    return Call(
        group, name, host, status if type(status) is int else None, code, seconds, bytes_out, bytes_in
    )
