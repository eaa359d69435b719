"""What watches over routes ended, without a word, over one record that it could not read.

The position of a later version has fields of its own. The gauges of lag of every route stood still from then
on.
"""

from __future__ import annotations

import asyncio
import logging

import pytest

from processor import service
from processor.jetstream import KEPT, Outgoing
from processor.operate.control import Control
from tests.conftest import waited
from tests.running import COUNT, Start

ROUTES = """
a:
  input: {subject: in.a, create: true}
  runnable: work.py
  output: out.a
b:
  input: {subject: in.b, create: true}
  runnable: work.py
  output: out.b
"""


async def test_a_position_of_a_later_version_hides_no_lag(processor: Start) -> None:
    """Its route says E410 and stands still; what waits for the others is counted on."""
    async with processor(ROUTES, work=COUNT) as running:
        await Control(running.broker, "app").pause("a", is_paused=True)
        await running.broker.commit([Outgoing("p.app.pos.a.0", b'{"v":2,"at":7}', KEPT)])
        await Control(running.broker, "app").pause("b", is_paused=True)
        await running.publish("in.a", {"i": 0})
        lag = "processor_lag_messages"
        await waited(lambda: running.metric(lag, route="a") == 1, "what waits for the one is counted")
        await running.publish("in.b", {"i": 0}, {"i": 1})
        await waited(lambda: running.metric(lag, route="b") == 2, "and what waits for the other")


async def test_a_watch_that_fails_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is begun again, and the log has the error once, with its traceback."""
    monkeypatch.setattr(service, "_RETRY_S", 0.01)
    begun = 0
    goes_on = asyncio.Event()

    async def watch() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise KeyError("gone")
        goes_on.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(service.supervised("watch-lag", watch))
    await asyncio.wait_for(goes_on.wait(), 10)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "an unexpected error in watch-lag; please report it"
    assert record.exc_info is not None
