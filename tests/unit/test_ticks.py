"""One timer for all who look now and then whether something is late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from processor.jetstream.ticks import Ticks
from tests.conftest import waited

EVERY_S = 0.05


async def test_many_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred who look cost one timer a tick, and none when all of them have left."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def counted(at_s: float, call: Callable[..., Any], *args: Any, **more: Any) -> asyncio.TimerHandle:
        handle = call_at(at_s, call, *args, **more)
        if getattr(call, "__self__", None) is ticks:
            timers.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_at", counted)
    ticks = Ticks(EVERY_S)
    looked = dict.fromkeys(range(100), 0)

    def look(number: int) -> None:
        looked[number] += 1

    looks = [partial(look, number) for number in looked]
    for each in looks:
        ticks.add(each)
    await waited(lambda: min(looked.values()) >= 3, "everyone has looked three times")
    assert len(set(looked.values())) == 1
    assert len(timers) < len(looked)  # and not three for each
    for each in looks:
        ticks.discard(each)
    assert timers[-1].cancelled()


async def test_a_tick_that_comes_late_is_left_out() -> None:
    """What has come while the process stood still has not been read: nobody looks before that is done."""
    loop, looked = asyncio.get_running_loop(), list[float]()

    def look() -> None:
        looked.append(loop.time())

    ticks = Ticks(EVERY_S)
    ticks.add(look)
    until_s = loop.time() + 5 * EVERY_S
    while loop.time() < until_s:  # the process stands still
        pass
    stood_s = loop.time()
    await waited(lambda: looked, "the next tick comes in time")
    assert looked[0] // EVERY_S > stood_s // EVERY_S
    ticks.discard(look)
