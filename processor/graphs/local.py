"""Runs without a broker: the same machine, with this process in place of streams, pools and timers.

`graph try`, recipes and tests give it what runs executions. Everything a run is told goes through one queue,
each result as soon as it is there; what is due comes at its time, or, where the clock may jump, when nothing
else is left to do.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from processor.graphs import machine
from processor.graphs.plan import Plan
from processor.graphs.progress import Execution, GraphRun, Message, Todo

# Gives for each execution a result message, without `t`, `run`, `x` and `a`.
Execute = Callable[[Sequence[Execution]], Awaitable[Sequence[Message]]]


class LocalClock(Protocol):
    """What time it is, and how to wait; where it is not real, it stands still while something is at work."""

    is_real: bool

    def now_ms(self) -> int: ...

    async def until(self, at_ms: int) -> None: ...


class WallClock:
    """The time of this machine."""

    is_real = True

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def until(self, at_ms: int) -> None:
        await asyncio.sleep(max(at_ms - self.now_ms(), 0) / 1000)


class JumpingClock:
    """A time of its own, in which waiting takes none; it begins after 0, which stands for never."""

    is_real = False

    def __init__(self, now_ms: int = 1000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    async def until(self, at_ms: int) -> None:
        self._now_ms = max(at_ms, self._now_ms)


class LocalRuns:
    """Runs of graphs in this process, with those of nested graphs and slices among them, by id.

    `plans` has the graphs by name; a nested graph that is not there fails with E706.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        execute: Execute,
        clock: LocalClock | None = None,
        luck: Callable[[], float] = random.random,
        *,
        together: bool = True,
        settle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """With `together` what is ready at the same time is given to `execute` at once; without it each
        execution by itself, all at the same time. One that nobody waits for any more is cancelled.

        `settle` is awaited when runs have changed, before anything begins that became ready by that.
        """
        self.runs: dict[str, GraphRun] = {}
        self._plans = plans
        self._execute = execute
        self._clock = clock or WallClock()
        self._luck = luck
        self._together = together
        self._settle = settle
        self._inbox: deque[Message] = deque()
        self._ready: list[Execution] = []
        self._at_work: dict[asyncio.Future[Sequence[Message]], list[Execution]] = {}
        self._timers: dict[tuple[str, str], tuple[int, int, Message]] = {}
        self._due: list[tuple[int, int, str, str]] = []
        self._count = 0
        self._shared: dict[tuple[str, int], Mapping[str, Any]] = {}

    async def run(self, message: Message) -> GraphRun:
        """Give this message to its run, and go on until nothing is left to do in any run; the run.

        One that is not ended then waits for a signal, or is paused. What `execute` raises is raised here.
        """
        self._inbox.append(message)
        try:
            while True:
                while self._inbox:
                    self._take(self._inbox.popleft())
                await self._stop([task for task, part in self._at_work.items() if not self._awaits(part)])
                if self._settle is not None:
                    await self._settle()
                self._begin_ready()
                at_ms = self._next_due_ms()
                if not self._at_work and at_ms is None:
                    return self.runs[message["run"]]
                await self._next(at_ms)
        finally:
            await self._stop(list(self._at_work))

    def _begin_ready(self) -> None:
        ready = [each for each in self._ready if machine.is_wanted(self.runs[each.run], each)]
        self._ready = []
        for each in ready:
            self._do(each.run, machine.dispatched(self.runs[each.run], each.x, self._clock.now_ms()))
        for part in [ready] if self._together and ready else [[each] for each in ready]:
            self._at_work[asyncio.ensure_future(self._execute(part))] = part

    def _awaits(self, part: Sequence[Execution]) -> bool:
        """Whether the result of any of these executions would still be taken."""
        found = ((self.runs[each.run].executions.get(each.x), each.attempt) for each in part)
        return any(each and each.is_open and each.attempt == attempt for each, attempt in found)

    async def _stop(self, tasks: Sequence[asyncio.Future[Sequence[Message]]]) -> None:
        for task in tasks:
            del self._at_work[task]
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    async def _next(self, at_ms: int | None) -> None:
        """Wait for the first that comes: results of what is at work, or what is due at `at_ms`."""
        timer: asyncio.Future[None] | None = None
        if at_ms is not None and (self._clock.is_real or not self._at_work):
            timer = asyncio.ensure_future(self._clock.until(at_ms))
        try:
            waiting: list[asyncio.Future[Any]] = [*self._at_work, *([timer] if timer else ())]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            is_due = timer is not None and timer.done()
        finally:
            if timer is not None:
                timer.cancel()
        for task in [task for task in self._at_work if task.done()]:
            part = self._at_work.pop(task)
            for each, result in zip(part, task.result(), strict=True):
                said = {"t": "result", "run": each.run, "x": each.x, "a": each.attempt}
                self._inbox.append({**result, **said})
        if is_due:
            _, _, run, name = heapq.heappop(self._due)
            self._inbox.append(self._timers.pop((run, name))[2])

    def _next_due_ms(self) -> int | None:
        """When the next thing is due; what was called back before is forgotten."""
        while self._due:
            at_ms, number, run, name = self._due[0]
            timer = self._timers.get((run, name))
            if timer is not None and timer[1] == number:
                return at_ms
            heapq.heappop(self._due)
        return None

    def _take(self, message: Message) -> None:
        id, now_ms = message["run"], self._clock.now_ms()
        run = self.runs.get(id)
        if run is not None:
            todo = machine.apply(self._plans[run.graph], run, message, now_ms, self._luck())
        elif message["t"] not in ("start", "slice"):
            self._inbox += machine.answer(message, None)
            return
        elif (plan := self._plans.get(message["graph"])) is None:
            self._inbox += machine.refused(message, "E706", f"there is no graph {message['graph']!r} here")
            return
        else:
            if "seen_at" in message:
                at = message["seen_at"]
                message = {**message, "seen": self._shared[at["run"], at["n"]]}
            self.runs[id], todo = machine.start(plan, id, message, now_ms)
        self._do(id, todo)

    def _do(self, id: str, todo: Todo) -> None:
        self._ready += todo.ready
        self._inbox += todo.sends
        if todo.has_more:
            self._inbox.append({"v": 1, "t": "go", "run": id})
        for name in todo.needless:
            self._timers.pop((id, name), None)
        for name, timer in todo.timers.items():
            self._count += 1
            self._timers[id, name] = (timer.at_ms, self._count, timer.message)
            heapq.heappush(self._due, (timer.at_ms, self._count, id, name))
        for number, seen in todo.seen:
            self._shared[id, number] = seen
