"""Routes for which nothing comes: what watches over them does not even look, until something does."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from processor.delivery.lanes import Lanes
from processor.embedded import EmbeddedServer
from processor.telemetry import Telemetry
from tests.running import COUNT, Start, connected
from tests.web import answer, serving

ASK = """
import requests

class Runnable:
    def process(self, queries):
        for query in queries:
            requests.get(query["url"])
"""
ROUTES = """
idle:
  input: {{subject: "idle.*", create: true}}
  runnable: ask.py
slow:
  input: {{subject: "slow.*", create: true}}
  runnable: ask.py
  batch: {{max_messages: 1}}
  limits: {{wall_s: 300}}
  outbound: {{allowed_domains: ["{host}"], timeout_s: 300}}
"""


async def test_lag_is_measured_of_routes_that_are_not_idle(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of the gauges goes by a route that has nothing to do, until something comes for it."""
    monkeypatch.setattr("processor.operate.lag._ROUND_S", 0.01)
    looked: Counter[Lanes] = Counter()
    is_idle = Lanes.is_idle.fget
    assert is_idle is not None

    def counted(lanes: Lanes) -> bool:
        looked[lanes] += 1
        return bool(is_idle(lanes))

    monkeypatch.setattr(Lanes, "is_idle", property(counted))
    gate = asyncio.Event()

    async def say(asked: Any) -> bytes:
        await gate.wait()
        return answer()

    def grown(before: Counter[Lanes]) -> Counter[Lanes]:
        return looked - before

    async with serving(say) as web, processor(ROUTES.format(host=web.host), ask=ASK) as running:
        lag = "processor_lag_messages"
        await running.publish("slow.a", *[{"url": web.url}] * 3)
        await wait_until(lambda: running.metric(lag, route="slow") == 2, "one is in hand, and two wait")
        said = running.telemetry.numbers[lag]
        await wait_until(lambda: said.get(("idle",)) == 0, "nothing waits for the other")
        before = looked.copy()
        await wait_until(lambda: max(grown(before).values(), default=0) >= 5, "five rounds have gone by")
        assert len(grown(before)) == 1
        before = looked.copy()
        await running.publish("idle.a", {"url": "no URL"})
        await wait_until(lambda: len(grown(before)) == 2, "the other route is looked at, too")
        gate.set()
        await wait_until(lambda: running.metric(lag, route="slow") == 0, "nothing waits any more")


async def test_copies_are_looked_for_when_something_was_committed(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the app's stream ends where it did when all was copied, a round ends with that one look."""
    monkeypatch.setattr("processor.delivery.watch._COPIES_S", 0.01)
    rounds, asked = 0, Counter[str]()
    made = Telemetry.made

    def counted(telemetry: Telemetry, route: str) -> float:
        nonlocal rounds
        rounds += 1
        return made(telemetry, route)

    monkeypatch.setattr(Telemetry, "made", counted)

    async def hear(delivery: Any) -> None:
        asked[delivery.subject] += 1

    async def passes(count: int) -> None:
        """Return when the end of the app's stream was looked at so often."""
        end = asked["$JS.API.STREAM.INFO.P_app"] + count
        await wait_until(lambda: asked["$JS.API.STREAM.INFO.P_app"] >= end, "the watch goes on")

    async def is_settled() -> bool:
        before = rounds
        await passes(5)
        return rounds == before

    routes = "r: {input: {subject: in.*, create: true}, runnable: count.py, output: out}"
    async with (
        processor(routes, count=COUNT) as running,
        connected(nats_server.url) as listener,
    ):
        await listener.listen("$JS.API.STREAM.INFO.P_app", hear)
        await listener.flush()
        await running.publish("in.a", {"i": 0})
        await running.documents("out", 1)
        await wait_until(is_settled, "no round goes further than the end of the app's stream")
        before = rounds
        await running.publish("in.a", {"i": 1})
        await running.documents("out", 2)
        await wait_until(lambda: rounds > before, "what was committed is looked for")
        await wait_until(is_settled, "all is copied again")
        assert running.metric("processor_copy_waiting_messages", subject="out") == 0
