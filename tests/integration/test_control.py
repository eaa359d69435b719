"""Pause, resume and reset: what people do to a route that runs, and what it does then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from processor.context.position import InputStream
from processor.context.subjects import app_stream
from processor.errors import BrokerError
from processor.jetstream import Outgoing
from processor.operate.control import Control, ResetStep
from tests.running import COUNT, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 4
  output: out.{key}
"""


def control(running: Running) -> Control:
    return Control(running.broker, "app")


async def numbers(running: Running, count: int) -> list[tuple[int, int]]:
    return [(o["i"], o["n"]) for o in await running.documents("out.*", count)]


async def test_a_pause_outlives_a_restart(processor: Start, wait_until: Any) -> None:
    """What is in hand is settled, nothing new is taken, and going on loses nothing."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.documents("out.a", 1)
        await control(running).pause("r", is_paused=True, reason="maintenance")
        await wait_until(lambda: running.metric("processor_route_paused") == 1, "the route is paused")
        await running.publish("in.a", {"i": 1})
    async with processor(ROUTE, count=COUNT) as running:
        assert (await control(running).pauses())["r"].reason == "maintenance"
        assert running.telemetry.readiness.blocks == {}
        await running.publish("in.a", {"i": 2})
        assert await numbers(running, 1) == [(0, 1)]
        await control(running).pause("r", is_paused=False)
        assert await numbers(running, 3) == [(0, 1), (1, 2), (2, 3)]
        assert running.metric("processor_route_paused") == 0


async def test_a_reset_reads_again_with_or_without_the_context(processor: Start) -> None:
    """While the route runs: its owner is fenced, claims anew, and goes on from there."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(4)))
        await numbers(running, 4)
        assert await control(running).reset("r", 3, keep_context=True) == 4
        assert (await numbers(running, 6))[4:] == [(2, 5), (3, 6)]
        assert await control(running).reset("r", 1, keep_context=False) == 4
        assert (await numbers(running, 10))[6:] == [(0, 1), (1, 2), (2, 3), (3, 4)]
        await running.publish("in.a", {"i": 4})
        assert (await numbers(running, 11))[10:] == [(4, 5)]
        assert await running.contexts("r") == {"a": {"n": 5}}


async def test_a_start_after_a_reset_claims_once(processor: Start, wait_until: Any) -> None:
    """A reset of an earlier life is no news: the route is not stopped and started again for it."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await numbers(running, 1)
        await control(running).reset("r", 1, keep_context=True)
        await numbers(running, 2)
    async with processor(ROUTE, count=COUNT) as running:
        first = {part.epoch for part in await control(running).parts("r")}
        await control(running).pause("other", is_paused=True)
        told = "processor_route_paused"
        await wait_until(lambda: running.metric(told, route="other") == 1, "what was said is known")
        await running.publish("in.a", {"i": 1})
        await numbers(running, 3)
        assert {part.epoch for part in await control(running).parts("r")} == first


async def test_a_reset_can_begin_in_another_stream(processor: Start, wait_until: Any) -> None:
    """The input was deleted and made anew: the position counts in the old one until somebody says so."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0}, {"i": 1})
        await numbers(running, 2)
        name = await running.broker.find_stream("in.*")
        await running.broker.api(f"STREAM.DELETE.{name}")

        def is_said() -> bool:
            return "E407" in running.telemetry.readiness.blocks.get("route r", "")

        await wait_until(is_said, "the route says that it is another stream")
        assert name is not None
        made = await running.broker.stream(name)
        assert made is not None
        await control(running).reset("r", 1, keep_context=True, source=InputStream(name, made["created"]))
        await running.until_ready()
        await running.publish("in.a", {"i": 2})
        assert (await numbers(running, 3))[2:] == [(2, 3)]


async def test_nonsense_in_place_of_a_pause_is_ignored(processor: Start, wait_until: Any) -> None:
    """It pauses nothing, and what is said after it is heard; also by the next start."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.broker.publish_stored(Outgoing("p.app.ctl.r", b"{}"))
        await control(running).pause("other", is_paused=True)
        told = "processor_route_paused"
        await wait_until(lambda: running.metric(told, route="other") == 1, "what was said after it is known")
        await running.publish("in.a", {"i": 0})
        assert await numbers(running, 1) == [(0, 1)]
    async with processor(ROUTE, count=COUNT) as running:
        await control(running).pause("r", is_paused=True)
        await wait_until(lambda: running.metric(told, route="r") == 1, "the route is paused")


async def test_half_a_reset_is_never_run_on(processor: Start, wait_until: Any) -> None:
    """The marked position cannot be claimed; finishing the reset lets the route go on by itself."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await numbers(running, 1)
        await control(running)._move("r", ResetStep(resetting=0), keep_context=True)

        def is_said() -> bool:
            return "E412" in running.telemetry.readiness.blocks.get("route r", "")

        await running.publish("in.a", {"i": 1})
        await wait_until(is_said, "the route says why it stands still")
        assert await numbers(running, 1) == [(0, 1)]
        await control(running).reset("r", 1, keep_context=False)
        assert (await numbers(running, 3))[1:] == [(0, 1), (1, 2)]


async def test_a_time_is_found_in_the_input(processor: Start) -> None:
    """The first message that was stored then or later; the end where there is none."""
    async with processor(ROUTE, count=COUNT) as running:
        for i in range(3):
            await running.broker.publish_stored(Outgoing("in.a", orjson.dumps({"i": i})))
        first, *_ = await running.stored("in.a")
        name = await running.broker.find_stream("in.*")
        assert name is not None
        find = control(running).sequence_at
        assert await find(name, "in.*", datetime.fromtimestamp(first.timestamp_s, UTC)) == 1
        assert await find(name, "in.*", datetime.now(UTC) + timedelta(days=1)) == 4


async def test_a_route_without_a_position_cannot_be_reset(processor: Start) -> None:
    """There is nothing to move."""
    async with processor(ROUTE, count=COUNT) as running:
        with pytest.raises(BrokerError, match="E401 route other has no position"):
            await control(running).reset("other", 1, keep_context=False)


async def test_status_names_members_and_parts(processor: Start) -> None:
    """Who is there, and what each partition's last commit said."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await numbers(running, 1)
        [member] = await control(running).members()
        parts = await control(running).parts("r")
        assert [part.partition for part in parts] == [0, 1, 2, 3]
        assert {part.owner for part in parts} == {member}
        assert max(part.position for part in parts) == 1
        assert await running.broker.stream(app_stream("app")) is not None
