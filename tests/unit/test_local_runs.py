"""Runs without a broker: what can run at the same time does, and nothing runs that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from processor.graphs.local import LocalRuns, WallClock
from processor.graphs.progress import Execution, GraphRun, Message
from tests.graphing import chain, plan_of, states


class Nodes:
    """Executes nodes as its functions say, and knows who began and who was cancelled."""

    def __init__(self, **functions: Any) -> None:
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.ended = {name: asyncio.Event() for name in functions}
        self._functions = functions

    async def __call__(self, executions: Sequence[Execution]) -> list[Message]:
        [each] = executions
        name = each.node.id
        self.began.append(name)
        try:
            result: Message = await self._functions[name](each)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.ended[name].set()
        return [result]


async def run(nodes: Nodes, written: list[dict[str, Any]], settle: Any = None, **keys: Any) -> GraphRun:
    plan = plan_of(written, retry_policy={"max_retries": 0}, **keys)
    local = LocalRuns({"g": plan}, nodes, WallClock(), lambda: 0.0, together=False, settle=settle)
    return await asyncio.wait_for(local.run({"v": 1, "t": "start", "run": "r", "graph": "g"}), 60)


FORK = [
    {"identifier": "top", "next_nodes": ["slow", "quick"]},
    {"identifier": "slow", "next_nodes": ["end"]},
    {"identifier": "quick", "next_nodes": ["after"]},
    {"identifier": "after", "next_nodes": ["end"]},
    {"identifier": "end", "unites": {"identifier": "top"}},
]


async def good(_: Execution) -> Message:
    return {"outputs": {}}


async def says(_: Execution) -> Message:
    return {"outputs": {"v": 1}}


async def forever(_: Execution) -> Message:
    await asyncio.Event().wait()
    raise AssertionError("it was cancelled")


async def test_branches_run_at_the_same_time_and_go_on_by_themselves() -> None:
    """What follows a quick branch runs while a slow one, which waits for it, is still at work."""

    async def slow(_: Execution) -> Message:
        await nodes.ended["after"].wait()
        return {"outputs": {}}

    nodes = Nodes(top=good, slow=slow, quick=good, after=good, end=good)
    ended = await run(nodes, FORK)
    assert set(states(ended).values()) == {"SUCCESS"}
    assert nodes.began == ["top", "slow", "quick", "after", "end"]


async def test_a_node_without_a_result_in_time_is_cancelled_and_tried_again() -> None:
    """Its `timeout_s` counts while others run, and each try has one of its own."""
    tries: list[int] = []

    async def slow(each: Execution) -> Message:
        tries.append(each.attempt)
        return await (forever(each) if each.attempt == 1 else good(each))

    nodes = Nodes(top=good, slow=slow, quick=good, after=good, end=good)
    retry = {"max_retries": 1, "strategy": "FIXED", "backoff_factor": 1}
    ended = await run(nodes, [FORK[0], {**FORK[1], "timeout_s": 0.2, "retry": retry}, *FORK[2:]])
    assert (ended.state, tries, nodes.cancelled) == ("SUCCESS", [1, 2], ["slow"])
    assert ended.executions["slow"].why[0]["code"] == "E710"


async def test_a_failure_that_stops_the_run_cancels_what_is_at_work() -> None:
    """Nothing of the run is left when it has ended."""

    async def bad(_: Execution) -> Message:
        return {"error": {"code": "E304", "text": "no"}}

    nodes = Nodes(top=good, slow=forever, quick=bad, after=good, end=good)
    ended = await run(nodes, FORK, on_error="stop")
    assert (ended.state, nodes.cancelled) == ("FAILED", ["slow"])
    assert states(ended) == {"top": "SUCCESS", "slow": "CANCELLED", "quick": "ERRORED"}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_the_driver_raises_ends_the_run_and_what_is_at_work() -> None:
    """It is an error of ours, and is not taken for one of a node."""

    async def broken(_: Execution) -> Message:
        raise OSError("disk full")

    nodes = Nodes(top=good, slow=forever, quick=broken, after=good, end=good)
    with pytest.raises(OSError, match="disk full"):
        await run(nodes, FORK)
    assert nodes.cancelled == ["slow"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_has_ended_is_settled_before_anything_follows() -> None:
    """Whoever keeps the results of a run has done so when the next node begins, and at the end."""
    seen: list[tuple[int, int]] = []

    async def turn() -> None: ...

    async def settle() -> None:
        before = (sum(event.is_set() for event in nodes.ended.values()), len(nodes.began))
        for _ in range(10):  # turns of the loop, in which what is ready would begin
            await asyncio.create_task(turn())
        seen.append(before)
        assert len(nodes.began) == before[1]

    nodes = Nodes(top=says, next=says, end=says)
    ended = await run(nodes, chain("top", "next", "end"), settle)
    assert (ended.state, seen) == ("SUCCESS", [(0, 0), (1, 1), (2, 2), (3, 3)])
