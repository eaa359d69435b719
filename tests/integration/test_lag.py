"""What the gauges of lag say: of routes that wait, are slow, stand still, or are run by others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from processor.operate.control import Control
from tests.running import Running, Start, connected, starter
from tests.web import answer, serving

ASK = """
import requests

class Runnable:
    def process(self, queries):
        for query in queries:
            requests.get(query["url"])
"""
SLOW = """
r:
  input: {{subject: "in.*", create: true}}
  runnable: ask.py
  batch: {{max_messages: 1}}
  limits: {{wall_s: 300}}
  {more}
  outbound: {{allowed_domains: ["{host}"], timeout_s: 300}}
"""
DEADLINE_S = 30


def gauges(running: Running) -> tuple[float | None, float | None]:
    """Messages and seconds of lag; None where the route has no such gauge."""
    numbers = running.telemetry.numbers
    return (
        numbers["processor_lag_messages"].get(("r",)),
        numbers["processor_lag_seconds"].get(("r",)),
    )


async def test_an_idle_route_has_no_lag(processor: Start, wait_until: Any) -> None:
    """It says so before its first message, and without asking the server."""
    async with processor(SLOW.format(host="a.example", more=""), ask=ASK) as running:
        await wait_until(lambda: gauges(running) == (0, 0), "nothing waits", DEADLINE_S)


async def grows_old(running: Running, wait_until: Any) -> None:
    """Return when the oldest message is known to wait longer than it did."""
    _, before = gauges(running)
    assert before is not None
    await wait_until(lambda: (gauges(running)[1] or 0) > before > 0, "the oldest grows old", DEADLINE_S)


@pytest.mark.parametrize("more", ["", "key: subject.2\n  concurrency: 2"])
async def test_the_lag_of_a_slow_route_rises_with_its_input(
    processor: Start, wait_until: Any, more: str
) -> None:
    """A route that is busy with one message reads no further, and knows all the same what waits behind it."""
    gate = asyncio.Event()

    async def say(asked: Any) -> bytes:
        await gate.wait()
        return answer()

    async with (
        serving(say) as web,
        processor(SLOW.format(host=web.host, more=more), ask=ASK) as running,
    ):
        await running.publish("in.a", *[{"url": web.url}] * 50)
        await wait_until(lambda: gauges(running)[0] == 49, "one is in hand, and 49 wait", DEADLINE_S)
        await running.publish("in.a", *[{"url": web.url}] * 30)
        await wait_until(lambda: gauges(running)[0] == 79, "79 wait", DEADLINE_S)
        await grows_old(running, wait_until)
        gate.set()
        await wait_until(lambda: gauges(running) == (0, 0), "nothing waits any more", DEADLINE_S)


async def test_the_lag_of_a_paused_route_is_counted(processor: Start, wait_until: Any) -> None:
    """Its messages, and the age of the oldest, while nobody reads them."""
    async with processor(SLOW.format(host="a.example", more=""), ask=ASK) as running:
        control = Control(running.broker, "app")
        await control.pause("r", is_paused=True)
        is_paused = "processor_route_paused"
        await wait_until(lambda: running.metric(is_paused, route="r"), "it is paused", DEADLINE_S)
        await running.publish("in.a", {}, {}, {})
        await wait_until(lambda: gauges(running)[0] == 3, "three wait", DEADLINE_S)
        await grows_old(running, wait_until)
        await running.publish("in.a", {})
        await wait_until(lambda: gauges(running)[0] == 4, "four wait", DEADLINE_S)
        await control.pause("r", is_paused=False)
        await wait_until(lambda: gauges(running) == (0, 0), "nothing waits any more", DEADLINE_S)


async def test_a_standby_leaves_the_lag_to_who_runs_the_route(
    tmp_path: Path, nats_server: Any, wait_until: Any
) -> None:
    """One of two processors has a work queue: it alone says what waits, and the other when it takes over."""
    route = SLOW.format(host="a.example", more="").replace(", create: true", "")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": "workqueue"})
    one, two = (starter(tmp_path / name, nats_server.url) for name in ("one", "two"))

    def said(*of: Running) -> list[tuple[float | None, float | None]]:
        return sorted(map(gauges, of), key=str)

    async with one(route, ask=ASK) as first:
        async with two(route, ask=ASK) as second:
            alone = [(0, 0), (None, None)]
            await wait_until(lambda: said(first, second) == alone, "one of both says it", DEADLINE_S)
        await wait_until(lambda: said(first) == [(0, 0)], "the one that is left says it", DEADLINE_S)
