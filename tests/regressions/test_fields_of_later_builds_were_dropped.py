"""A position of a later build came back from this one without the fields that only that one knows."""

from __future__ import annotations

from typing import Any

import orjson

from processor.jetstream import EXPECTED, KEPT, Outgoing
from processor.operate.control import Control
from tests.running import COUNT, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out
  partitions: 2
"""
LATER = {"windows": {"open": [1, 2]}, "deal": "0.9"}


async def positions(running: Running) -> list[dict[str, Any]]:
    return [orjson.loads(s.payload) for s in await running.stored("p.app.pos.r.*")]


async def test_what_this_build_does_not_know_of_a_position_stays(processor: Start) -> None:
    """Over a claim, commits, a release and a reset, in every partition."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.documents("out", 1)
        await running.service.stop()
        await running.broker.commit(
            [
                Outgoing(s.subject, orjson.dumps({**orjson.loads(s.payload), **LATER}),
                        {**KEPT, EXPECTED: str(s.sequence)})
                for s in await running.stored("p.app.pos.r.*")
            ]
        )  # fmt: skip
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 2) == [{"i": 0, "n": 1}, {"i": 1, "n": 2}]
        await running.service.stop()
        found = await positions(running)
        assert [{name: body.get(name) for name in LATER} for body in found] == [LATER, LATER]
        await Control(running.broker, "app").reset("r", 1, keep_context=False)
        found = await positions(running)
        assert [{name: body.get(name) for name in LATER} for body in found] == [LATER, LATER]
        assert [(body["seq"], "ctx" in body) for body in found] == [(0, False)] * 2
