"""Chapter 6: code changes, processes end, servers go away; the route goes on from its last commit."""

from __future__ import annotations

from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.errors import Faults
from tests.running import Start

ROUTE = """
r:
  input: {subject: "in", create: true}
  runnable: count.py
  output: out
"""
COUNT = """
class Runnable:
    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] = self.context.get("n", 0) + 1
            outputs.append({"n": self.context["n"], "version": 1})
        return outputs
"""


async def test_a_new_version_takes_over_with_the_old_context(processor: Start) -> None:
    """A changed Runnable is loaded while the process runs; the count goes on."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {})
        await running.documents("out", 1)
        assert await running.reload(count=COUNT.replace('"version": 1', '"version": 2')) == ["r"]
        await running.publish("in", {})
        assert await running.documents("out", 2) == [{"n": 1, "version": 1}, {"n": 2, "version": 2}]


async def test_a_version_with_a_fault_changes_nothing(processor: Start) -> None:
    """Every fault is named with file, line and column, and the old version goes on."""
    broken = (
        "import os\n\nclass Runnable:\n    def process(self, queries):\n        return open('/etc/passwd')\n"
    )
    async with processor(ROUTE, count=COUNT) as running:
        with pytest.raises(Faults) as refused:
            await running.reload(count=broken)
        assert [(fault.line, fault.code) for fault in refused.value.faults] == [(1, "E203"), (5, "E202")]
        await running.publish("in", {})
        assert await running.documents("out", 1) == [{"n": 1, "version": 1}]


async def test_a_second_life_goes_on_where_the_first_ended(processor: Start) -> None:
    """What was published in between is processed once, with the context of the first life."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {}, {})
        await running.documents("out", 2)
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {})
        assert [d["n"] for d in await running.documents("out", 3)] == [1, 2, 3]


async def test_another_app_starts_anew(processor: Start) -> None:
    """The app's name is the name of what it keeps: two apps on one input know nothing of each other."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {})
        await running.documents("out", 1)
    other = ROUTE.replace("output: out", "output: other")
    async with processor(other, app="second", count=COUNT) as running:
        assert [d["n"] for d in await running.documents("other", 1)] == [1]


async def test_a_server_that_goes_away_is_waited_for(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """The route is not ready meanwhile, reconnects for ever, and loses nothing."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {})
        await running.documents("out", 1)
        nats_server.kill()
        await wait_until(lambda: "nats" in running.telemetry.readiness.blocks, "readiness says so")
        nats_server.restart()
        await wait_until(lambda: not running.telemetry.readiness.blocks, "the route is ready again", 20)
        await running.broker.connected()
        await running.publish("in", {})
        assert [d["n"] for d in await running.documents("out", 2)] == [1, 2]


async def test_messages_that_were_removed_unread_are_said(processor: Start, caplog: Any) -> None:
    """Retention took what the route had not read: it goes on with what is left and says so once (E409)."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in", {})
        await running.documents("out", 1)
    async with processor(ROUTE.replace("output: out", "output: other"), app="second", count=COUNT) as running:
        await running.publish("in", {}, {}, {})
        await running.documents("other", 4)
        await running.broker.api("STREAM.PURGE.app-in", {"seq": 4})
    async with processor(ROUTE, count=COUNT) as running:
        assert [d["n"] for d in await running.documents("out", 2)] == [1, 2]
    said = [record.getMessage() for record in caplog.records if "E409" in record.getMessage()]
    assert len(said) == 1
    assert "stream app-in begins at 4, after position 1" in said[0]


async def test_an_input_stream_that_was_made_anew_stops_its_route(processor: Start, wait_until: Any) -> None:
    """A position counts in one stream; in another one of the same name it would skip messages (E407)."""
    async with processor(ROUTE.replace(", create: true", ""), count=COUNT) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in"]})
        await running.publish("in", {})
        await running.documents("out", 1)
        await running.broker.api("STREAM.DELETE.IN")
        await wait_until(
            lambda: "E401" in running.telemetry.readiness.blocks.get("route r", ""), "it is missed", 30
        )
        await running.broker.create_stream({"name": "IN", "subjects": ["in"]})
        await wait_until(
            lambda: "E407" in running.telemetry.readiness.blocks.get("route r", ""), "readiness says why", 30
        )
