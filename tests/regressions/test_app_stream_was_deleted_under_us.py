"""Whoever deleted the app's stream stopped its routes until a restart, and the streams of outputs for good.

A stream that copies goes on behind the sequence that it copied last, and the new stream counted from 1: what
was committed there was not copied until it had passed the old one. Now the processors make it anew by
themselves, with sequences above all of the old one's.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.context.subjects import app_stream
from processor.embedded import EmbeddedServer
from processor.operate.control import Control
from processor.service import Service
from processor.telemetry import Telemetry
from tests.running import COUNT, Running, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 4
  output: out.{key}
quiet:
  input: {subject: "in.*"}
  runnable: count.py
  key: subject.2
  output: quiet
"""


async def sequences(running: Running) -> list[int]:
    return [stored.sequence for stored in await running.stored("p.app.pos.r.*")]


async def test_a_deleted_app_stream_is_made_anew(
    processor: Start, wait_until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By one of two processors; the input is read again, a pause stays, and all that is new is copied."""
    async with processor(ROUTE, count=COUNT) as running:
        other = Service(load(running.path, {"NATS_URL": running.broker.address}), Telemetry())
        await other.start(wait=False)
        try:
            await Control(running.broker, "app").pause("quiet", is_paused=True, reason="kept")
            await running.publish("in.a", {"i": 0}, {"i": 1})
            await running.documents("out.a", 2)
            highest = max(await sequences(running))
            caplog.set_level(logging.WARNING, logger="processor")
            await running.broker.api(f"STREAM.DELETE.{app_stream('app')}")

            async def is_anew() -> bool:
                found = await sequences(running)
                return len(found) == 4 and min(found) > highest

            await wait_until(is_anew, "all partitions are claimed in a new stream", 20)
            await running.publish("in.a", {"i": 2})

            async def copied() -> list[tuple[int, int]]:
                found = [orjson.loads(stored.payload) for stored in await running.stored("out.a")]
                return [(o["i"], o["n"]) for o in found] if len(found) >= 5 else []

            again = [(0, 1), (1, 2), (2, 3)]
            assert await wait_until(copied, "the new outputs are copied", 30) == [(0, 1), (1, 2), *again]
            assert (await Control(running.broker, "app").pauses())["quiet"].reason == "kept"
            assert await running.stored("quiet") == []
            assert running.telemetry.readiness.blocks == {}

            def is_said() -> bool:
                said = [
                    r for r in caplog.records if r.getMessage().startswith("E406 stream P_app was deleted")
                ]
                return [record.levelno for record in said] == [logging.ERROR] * 2

            await wait_until(is_said, "both processors have said it")
        finally:
            await other.stop()


async def test_a_stream_that_was_deleted_while_nobody_ran_is_copied_from_again(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """That it was there before is seen by the streams that copy from it."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(20)))
        await running.documents("out.a", 20)
    async with connected(nats_server.url) as broker:
        await broker.api(f"STREAM.DELETE.{app_stream('app')}")
    async with processor(ROUTE, count=COUNT) as running:
        await wait_until(partial(has, running, "out.a", 40), "what was read again is copied", 30)


async def has(running: Running, subject: str, count: int) -> bool:
    return len(await running.stored(subject)) == count
