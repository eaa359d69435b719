"""The ledger of budgets in an app's stream: processes that race for it, and one that is killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from processor.context.ledger import LAPSE_US, AppLedger, Claim, Lease, LedgerError, accounts
from processor.context.subjects import app_stream, budget_record
from processor.embedded import EmbeddedServer
from processor.jetstream import KEPT, Broker, Outgoing
from processor.policy import Budget
from tests.running import connected

LIMIT = 300
BUDGET = Budget("policy.toml:1", "race", "requests", LIMIT, "life")
# Once it is told to, uses one unit of its lease at a time until nothing is left; says each.
RACER = """
import asyncio, sys, time
from processor.context.ledger import AppLedger, Claim, Lease
from processor.policy import Budget
from tests.running import connected

async def race(url, holder, limit):
    budget = Budget("policy.toml:1", "race", "requests", limit, "life")
    async with connected(url) as broker:
        ledger, lease = AppLedger(broker, "app"), Lease()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        while not lease.is_refused:
            claim = Claim(holder, lease, min(lease.amount, 1), 1)
            lease = await ledger.settle(budget, "race", claim, time.time_ns() // 1000)
            if lease.amount:
                print("used", flush=True)

asyncio.run(race(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def now_us() -> int:
    return time.time_ns() // 1000


@asynccontextmanager
async def app_on(server: EmbeddedServer) -> AsyncIterator[Broker]:
    """A client of a server that has an app's stream."""
    async with connected(server.url) as found:
        config = {"name": app_stream("app"), "subjects": ["p.app.>"], "allow_direct": True,
                  "allow_rollup_hdrs": True, "allow_msg_ttl": True}  # fmt: skip
        await found.api(f"STREAM.CREATE.{app_stream('app')}", config)
        yield found


async def racer(url: str, holder: str) -> asyncio.subprocess.Process:
    """A process that waits to be told to begin."""
    command = [sys.executable, "-c", RACER, url, holder, str(LIMIT)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_processes_that_race_never_use_more_than_the_limit(nats_server: EmbeddedServer) -> None:
    """Four of them share one budget to its last unit, and none of it is given away twice."""
    async with app_on(nats_server) as broker:
        racing = [await racer(nats_server.url, f"p{number}") for number in range(4)]
        said = await asyncio.gather(*(process.communicate(b"go\n") for process in racing))
        assert [process.returncode for process in racing] == [0] * 4
        used = [out.count(b"used") for out, _ in said]
        assert sum(used) == LIMIT
        assert sum(count > 0 for count in used) > 1  # they did race
        account = (await accounts(broker, "app"))["race"]
        assert (account.used, account.held) == (LIMIT, {})


async def test_a_process_that_is_killed_costs_at_most_its_lease(nats_server: EmbeddedServer) -> None:
    """What it held is given to nobody: after 60 s it counts as used, and the rest is there for others."""
    async with app_on(nats_server) as broker:
        killed = await racer(nats_server.url, "killed")
        assert killed.stdin is not None
        assert killed.stdout is not None
        killed.stdin.write(b"go\n")
        for _ in range(20):
            await killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
        used = 20 + (await killed.communicate())[0].count(b"used")
        held = (await accounts(broker, "app"))["race"].held
        ledger, lease, ours = AppLedger(broker, "app"), Lease(), 0
        while not lease.is_refused:
            claim = Claim("other", lease, lease.amount, 1)
            lease = await ledger.settle(BUDGET, "race", claim, now_us() + 2 * LAPSE_US)
            ours += lease.amount
        account = (await accounts(broker, "app"))["race"]
        assert (account.used, account.held) == (LIMIT, {})
        assert ours > 0
        assert used + ours <= LIMIT <= used + ours + sum(amount for amount, _ in held.values())


async def test_a_record_that_is_none_begins_anew_and_names_stay_apart(nats_server: EmbeddedServer) -> None:
    """An odd record hurts its own budget alone."""
    async with app_on(nats_server) as broker:
        await broker.publish_stored(Outgoing(budget_record("app", "race"), b"[1]", KEPT))
        ledger = AppLedger(broker, "app")
        lease = await ledger.settle(BUDGET, "race", Claim("a", Lease(), 0, 7), now_us())
        await ledger.settle(replace(BUDGET, name="b"), "b.enrich", Claim("a", Lease(), 0, 1), now_us())
        found = await accounts(broker, "app")
        assert lease.amount == 15
        assert {name: account.taken for name, account in found.items()} == {"race": 15, "b.enrich": 15}


async def test_an_account_that_cannot_be_reached_is_said_to_be(nats_server: EmbeddedServer) -> None:
    """Without the app's stream there is no ledger, and nothing is given away."""
    async with connected(nats_server.url) as alone:
        with pytest.raises(LedgerError):
            await AppLedger(alone, "app").settle(BUDGET, "race", Claim("a", Lease(), 0, 1), now_us())
