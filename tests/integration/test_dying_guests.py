"""A route whose guests keep dying pauses, says so, loses nothing, and goes on by itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import guests_of, processes, waited
from tests.running import Running, Start

# A guest that runs out of memory dies in milliseconds (E313).
WORK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            if query.get("kill"):
                "x" * (1 << 40)
        return queries
"""
DEADLY = WORK.replace('query.get("kill")', "True")
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  output: out
  events: happened
  breaker: {deaths: 3, window_s: 60, pause_s: %s}
"""


async def opened(running: Running, route: str = "r") -> str:
    """What readiness says, as soon as the breaker of the route is open."""
    await waited(lambda: f"breaker {route}" in running.telemetry.readiness.blocks, "the breaker is open")
    return running.telemetry.readiness.blocks[f"breaker {route}"]


async def test_a_route_whose_every_message_kills_pauses_and_loses_nothing(
    processor: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It opens after one dead letter, not after all; a reload ends the pause at once and does the rest."""
    async with processor(ROUTE % 600, work=DEADLY) as running:
        await running.publish("in.a", *({"i": i} for i in range(20)))
        sentence = await opened(running)
        assert sentence.startswith("E503 the guests of route r keep dying, the last of E313 (")
        assert "UTC, when one message is tried again" in sentence
        assert running.metric("processor_breaker_open", route="r") == 1
        assert running.metric("processor_breaker_openings_total", route="r") == 1
        assert running.metric("processor_route_stopped", route="r") == 0
        [letter] = await running.dead_letters("r")
        assert orjson.loads(letter.payload) == {"i": 0}
        assert [record.levelname for record in caplog.records if "E503" in record.getMessage()] == ["ERROR"]
        await running.reload(work=WORK)
        assert await running.documents("out", 19) == [{"i": i} for i in range(1, 20)]
        assert len(await running.dead_letters("r")) == 1
        await running.until_ready()
        assert running.metric("processor_breaker_open", route="r") == 0
    assert "not drained" not in caplog.text


async def test_stopping_does_not_wait_for_the_pause(
    processor: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in hand is left to the next life, which has all of it."""
    async with processor(ROUTE % 600, work=DEADLY) as running:
        await running.publish("in.a", *({"i": i} for i in range(5)))
        await opened(running)
    assert "not drained" not in caplog.text
    async with processor(ROUTE % 600, work=WORK) as running:
        assert await running.documents("out", 4) == [{"i": i} for i in range(1, 5)]


async def test_it_closes_by_itself_when_a_guest_lives_again(processor: Start) -> None:
    """After the pause one message is tried at a time; each has its tries, and the sound ones are done."""
    async with processor(ROUTE % 0.05, work=WORK) as running:
        documents: list[dict[str, Any]] = [{"i": i, "kill": i < 3} for i in range(10)]
        await running.publish("in.a", *documents)
        assert await running.documents("out", 7) == documents[3:]
        letters = await running.dead_letters("r", 3)
        assert [orjson.loads(letter.payload) for letter in letters] == documents[:3]
        assert {letter.headers["x-delivery-count"] for letter in letters} == {"3"}
        await running.until_ready()
        assert running.metric("processor_breaker_open", route="r") == 0
        assert running.metric("processor_breaker_openings_total", route="r") > 1
        events = [e["event"] for e in await running.documents("happened", 5)]
        assert events.count("breaker_opened") == events.count("breaker_closed") == 1
        assert events.count("dead_lettered") == 3


async def test_after_the_pause_one_message_is_tried(processor: Start) -> None:
    """Even where many wait: the first run after the breaker opened has one message, the next has the rest."""
    source = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                if query["kill"]:
                    "x" * (1 << 40)
            return [{"i": query["i"], "beside": len(queries)} for query in queries]
    """
    route = ROUTE.replace("deaths: 3", "deaths: 2") % 0.05 + "  retry: {attempts: 1}\n"
    async with processor(route, work=source) as running:
        await running.publish("in.a", *({"i": i, "kill": i in (4, 5)} for i in range(12)))
        outputs = await running.documents("out", 10)
        assert {o["i"]: o["beside"] for o in outputs}[6] == 1
        assert running.metric("processor_breaker_openings_total", route="r") > 0


async def test_deaths_that_are_far_apart_do_not_open_it(processor: Start) -> None:
    """A guest that dies now and then, over one message after the other, is not one that keeps dying."""
    route = ROUTE.replace("deaths: 3, window_s: 60", "deaths: 2, window_s: 0.1") % 600
    async with processor(route + "  retry: {attempts: 1}\n  limits: {wall_s: 0.1}\n", work=DEADLY) as running:
        for i in range(3):
            await running.publish("in.a", {"i": i})
            await running.dead_letters("r", i + 1)
            died_s = time.monotonic()
            await waited(lambda since_s=died_s: time.monotonic() > since_s + 0.4, "the window is over")
        assert running.metric("processor_breaker_openings_total", route="r") == 0


async def test_one_poison_message_among_many_does_not_open_it(processor: Start) -> None:
    """The guest dies for each half of the batch and for each try, and the route goes on."""
    async with processor(ROUTE % 600, work=WORK) as running:
        await running.publish("in.a", *({"i": i, "kill": i % 100 == 50} for i in range(300)))
        assert len(await running.documents("out", 297)) == 297
        assert len(await running.dead_letters("r", 3)) == 3
        assert running.metric("processor_breaker_openings_total", route="r") == 0
        assert running.metric("processor_guest_restarts_total", route="r", reason="E313") > 9


async def test_a_guest_that_cannot_be_started_opens_it_and_costs_no_message(
    processor: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is judged for what the machine refuses; when it allows it again, everything is done."""
    async with processor(ROUTE % 0.3, work=WORK) as running:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        for pid in zygotes():
            os.kill(pid, signal.SIGKILL)
        await waited(lambda: not guests_of(os.getpid()), "the guests died with their zygote")
        await running.publish("in.a", *({"i": i} for i in range(5)))
        assert "the last of E502 (" in await opened(running)
        assert await running.stored("p.app.dlq.r.>") == []
        monkeypatch.undo()
        assert await running.documents("out", 5) == [{"i": i} for i in range(5)]
        await running.until_ready()
        assert await running.stored("p.app.dlq.r.>") == []


def zygotes() -> list[int]:
    """Our children that guests are forked from."""
    return [
        pid
        for pid, _, _ in processes().get(os.getpid(), [])
        if b"processor.sandbox.guest" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
