"""Runs without a broker: the same machine, with this process in place of streams, pools and timers.

`graph try` and tests give it what runs executions. Everything a run is told goes through one queue, in order;
what is due comes when nothing else is left to do, at once where the clock may jump.
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
    """What time it is, and how to wait."""

    def now_ms(self) -> int: ...

    async def until(self, at_ms: int) -> None: ...


class WallClock:
    """The time of this machine."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def until(self, at_ms: int) -> None:
        await asyncio.sleep(max(at_ms - self.now_ms(), 0) / 1000)


class JumpingClock:
    """A time of its own, in which waiting takes none; it begins after 0, which stands for never."""

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
    ) -> None:
        self.runs: dict[str, GraphRun] = {}
        self._plans = plans
        self._execute = execute
        self._clock = clock or WallClock()
        self._luck = luck
        self._inbox: deque[Message] = deque()
        self._ready: list[Execution] = []
        self._timers: dict[tuple[str, str], tuple[int, int, Message]] = {}
        self._due: list[tuple[int, int, str, str]] = []
        self._count = 0
        self._shared: dict[tuple[str, int], Mapping[str, Any]] = {}

    async def run(self, message: Message) -> GraphRun:
        """Give this message to its run, and go on until nothing is left to do in any run; the run.

        One that is not ended then waits for a signal, or is paused.
        """
        self._inbox.append(message)
        while self._inbox or self._ready or self._timers:
            while self._inbox:
                self._take(self._inbox.popleft())
            if self._ready:
                await self._run_ready()
            elif not self._inbox:
                await self._await_due()
        return self.runs[message["run"]]

    async def _run_ready(self) -> None:
        ready = [each for each in self._ready if machine.is_wanted(self.runs[each.run], each)]
        self._ready = []
        if not ready:
            return
        results = await self._execute(ready)
        for each, result in zip(ready, results, strict=True):
            self._inbox.append({**result, "t": "result", "run": each.run, "x": each.x, "a": each.attempt})

    async def _await_due(self) -> None:
        while self._due:
            at_ms, number, run, name = heapq.heappop(self._due)
            timer = self._timers.get((run, name))
            if timer is not None and timer[1] == number:
                del self._timers[run, name]
                await self._clock.until(at_ms)
                self._inbox.append(timer[2])
                return

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
