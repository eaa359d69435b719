"""The same configuration, started more than once: partitions are shared, handed over, and never had twice."""

from __future__ import annotations

import asyncio
import collections
from functools import partial
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.context.subjects import app_stream
from processor.delivery.members import share
from processor.service import Service
from processor.telemetry import Telemetry
from tests.running import COUNT, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 16
  output: out.{key}
"""
KEYS = 20


class Replica:
    """One more processor with the configuration of a running one."""

    def __init__(self, running: Running) -> None:
        self.telemetry = Telemetry()
        config = load(running.path, {"NATS_URL": running.broker.address})
        self.service = Service(config, self.telemetry)

    async def __aenter__(self) -> Replica:
        await self.service.start(wait=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()


async def owners(running: Running, route: str = "r") -> collections.Counter[str]:
    stored = await running.broker.last_of(app_stream("app"), [f"p.app.pos.{route}.*"])
    return collections.Counter(orjson.loads(s.payload)["owner"] for s in stored)


async def has_shares(running: Running, *shares: int) -> bool:
    """Whether there are as many owners, with so many partitions each."""
    return sorted((await owners(running)).values()) == list(shares)


async def publish(running: Running, first: int, count: int) -> None:
    for i in range(first, first + count):
        await running.publish(f"in.k{i % KEYS}", {"i": i})


async def check(running: Running, count: int) -> None:
    """Every message of every key once, in order, numbered by its context."""
    outputs = await running.documents("out.*", count)
    assert len(outputs) == count
    by_key: dict[int, list[dict[str, int]]] = collections.defaultdict(list)
    for output in outputs:
        by_key[output["i"] % KEYS].append(output)
    for key, found in by_key.items():
        assert [o["i"] for o in found] == list(range(key, count, KEYS))
        assert [o["n"] for o in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("members", [1, 2, 3, 5, 16, 20])
def test_shares_are_even_and_complete(members: int) -> None:
    """Every partition has one owner, and nobody has more than its part."""
    names = [f"m{n}" for n in range(members)]
    shares = [share(names, name, "r", 16) for name in names]
    assert sorted(p for mine in shares for p in mine) == list(range(16))
    assert max(map(len, shares)) <= -(-16 // members)
    assert share(names, "stranger", "r", 16) == []


def test_few_partitions_move_when_a_member_leaves() -> None:
    """What the others had, they mostly keep."""
    names = [f"m{n}" for n in range(5)]
    before = {p: name for name in names for p in share(names, name, "r", 64)}
    after = {p: name for name in names[1:] for p in share(names[1:], name, "r", 64)}
    moved = sum(1 for p, name in before.items() if name != "m0" and after[p] != name)
    assert moved <= 16


async def test_a_joiner_takes_its_part_and_a_leaver_hands_over(processor: Start, wait_until: Any) -> None:
    """Messages flow all the while; none is lost, doubled or out of order."""
    async with processor(ROUTE, count=COUNT) as running:
        await publish(running, 0, 100)
        async with Replica(running):
            flow = asyncio.create_task(publish(running, 100, 300))
            await wait_until(partial(has_shares, running, 8, 8), "two owners with 8 partitions each")
            await flow
            await check(running, 400)
            flow = asyncio.create_task(publish(running, 400, 200))
        await wait_until(partial(has_shares, running, 16), "one owner of all")
        await flow
        await check(running, 600)


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_a_stream_that_deletes_has_one_reader(
    processor: Start, wait_until: Any, retention: str
) -> None:
    """One processor has all partitions of it; when it goes, the other goes on."""
    async with processor(ROUTE.replace(", create: true", ""), count=COUNT) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": retention})
        await running.until_ready()
        await publish(running, 0, 50)
        await running.documents("out.*", 50)
        async with Replica(running) as replica:
            await wait_until(lambda: replica.telemetry.readiness.blocks == {}, "the replica is ready")
            await publish(running, 50, 50)
            await check(running, 100)
            assert len(await owners(running)) == 1
            await running.service.stop()
            await publish(running, 100, 50)
            await check(running, 150)


async def test_a_route_that_only_one_processor_has_is_all_its_own(processor: Start, wait_until: Any) -> None:
    """In the middle of a rollout configurations differ: nobody is given partitions of a route it lacks."""
    async with processor(ROUTE + ROUTE.replace("r:", "s:").replace("out.", "other."), count=COUNT) as running:
        running.path.write_text(running.path.read_text().split("  s:")[0])
        async with Replica(running):
            await wait_until(partial(has_shares, running, 8, 8), "route r is shared")
            assert len(await owners(running, "s")) == 1
