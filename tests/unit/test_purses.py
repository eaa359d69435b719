"""Budgets of a route in one process: what lanes that run side by side take out of the same leases."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.capability.budgets import Budgets, Tab
from processor.context.ledger import Claim, Lease, MemoryLedger
from processor.errors import ProcessorError
from processor.policy import Ask, Budget, load, window_at

ASK = Ask("http", "get", "https://a.example/")


class SlowLedger(MemoryLedger):
    """Others run while it answers, before it has written and after."""

    async def settle(self, budget: Budget, account: str, claim: Claim, now_us: int) -> Lease:
        for _ in range(random.randint(0, 3)):
            await asyncio.to_thread(int)
        lease = await super().settle(budget, account, claim, now_us)
        for _ in range(random.randint(0, 3)):
            await asyncio.to_thread(int)
        return lease


@pytest.fixture
def budgets(tmp_path: Path) -> Callable[..., Budgets]:
    """Budgets of a route in a process, by the lines of its policy."""

    def made(text: str, holder: str = "h", ledger: MemoryLedger | None = None) -> Budgets:
        (tmp_path / "policy.toml").write_text(text)
        return Budgets("r", load([tmp_path / "policy.toml"]), ledger, holder, is_waited_for=True)

    return made


def line(kind: str, limit: int, window: str, more: str = "") -> str:
    return f'[[budget]]\nname = "{kind}"\nkind = "{kind}"\nlimit = {limit}\nwindow = "{window}"\n{more}\n'


@pytest.mark.parametrize("seed", range(5))
def test_lanes_and_processes_never_take_more_than_there_is(
    seed: int, budgets: Callable[..., Budgets], run_async: Any
) -> None:
    """Whatever runs while the ledger is asked, all of the limit is used, and nothing beyond it."""
    random.seed(seed)
    ledger, limit = SlowLedger(), 300
    processes = [budgets(line("requests", limit, "life"), f"p{number}", ledger) for number in range(2)]

    async def lane(process: Budgets) -> int:
        taken = 0
        while True:
            need = random.randint(1, 5)
            try:
                await process.reserve({"requests": need}, ASK)
            except ProcessorError as err:
                if err.code == "E332":
                    return taken
                raise
            taken += need
            await asyncio.to_thread(int)

    async def race() -> int:
        return sum(await asyncio.gather(*(lane(process) for process in processes for _ in range(4))))

    used = run_async(race())
    assert limit - 5 * len(processes) - limit // 20 <= used <= limit


def test_a_call_takes_of_all_its_budgets_or_of_none(budgets: Callable[..., Budgets], run_async: Any) -> None:
    """What one budget gave is put back where another has too little."""

    async def main() -> None:
        made = budgets(line("requests", 10, "life") + line("bytes", 100, "life"))
        with pytest.raises(ProcessorError, match="budget bytes: 0 of 100 bytes used in all"):
            await made.reserve({"requests": 1, "bytes": 101}, ASK)
        await made.reserve({"requests": 1, "bytes": 100}, ASK)
        assert [(await made.states(kind))[0].used for kind in ("requests", "bytes")] == [1, 100]

    run_async(main())


def test_a_window_that_ends_takes_its_leases_with_it(budgets: Callable[..., Budgets], run_async: Any) -> None:
    """What was used and refused in it is forgotten, and the route goes on."""

    async def main() -> None:
        made = budgets(line("requests", 2, "month", 'then = "wait"'))
        await made.reserve({"requests": 2}, ASK)
        assert made.wait_s() == 0
        with pytest.raises(ProcessorError, match="2 of 2 requests used this month"):
            await made.reserve({"requests": 1}, ASK)
        assert made.wait_s() > 0
        [purse] = made._purses
        _, ends_us = window_at("month", time.time_ns() // 1000)
        assert ends_us is not None
        assert purse.waits_until(ends_us - 1) == ends_us
        assert purse.waits_until(ends_us) is None
        assert purse.state(ends_us).used == 0

    run_async(main())


def test_calls_at_the_same_time_share_what_a_run_may_use(
    budgets: Callable[..., Budgets], run_async: Any
) -> None:
    """What one of them waits for is taken before; one that is refused has used nothing."""

    class Slow(MemoryLedger):
        is_asked, answers = asyncio.Event(), asyncio.Event()

        async def settle(self, budget: Budget, account: str, claim: Claim, now_us: int) -> Lease:
            self.is_asked.set()
            await self.answers.wait()
            return await super().settle(budget, account, claim, now_us)

    async def main() -> None:
        ledger = Slow()
        tab = Tab(
            budgets(
                "[budgets]\nrequests = 3\n"
                + line("requests", 2, "life").replace('name = "requests"', 'name = "all"'),
                "h",
                ledger,
            )
        )
        first = asyncio.create_task(tab.reserve({"requests": 2}, ASK))
        await ledger.is_asked.wait()
        with pytest.raises(ProcessorError, match="2 of 3 requests used in this run, and this call needs 2"):
            await tab.reserve({"requests": 2}, ASK)
        ledger.answers.set()
        await first
        with pytest.raises(ProcessorError, match="2 of 2 requests used in all, and this call needs 1"):
            await tab.reserve({"requests": 1}, ASK)
        with pytest.raises(ProcessorError, match="2 of 3 requests used in this run, and this call needs 2"):
            await tab.reserve({"requests": 2}, ASK)

    run_async(main())


def test_a_run_counts_for_itself(budgets: Callable[..., Budgets], run_async: Any) -> None:
    """Its budgets begin anew with it, and what it has lowered ends with it."""

    async def main() -> None:
        tab = Tab(budgets("[budgets]\nrequests = 3\n"))
        tab.lower("requests", 1)
        await tab.reserve({"requests": 1}, ASK)
        with pytest.raises(ProcessorError, match="1 of 1 requests used in this run, and this call needs 1"):
            await tab.reserve({"requests": 1}, ASK)
        with pytest.raises(ProcessorError, match="E337 the run may use 1 requests, and not 2"):
            tab.lower("requests", 2)
        tab.begin()
        await tab.reserve({"requests": 3}, ASK)
        assert (await tab.said("requests"))["left"] == 0

    run_async(main())
