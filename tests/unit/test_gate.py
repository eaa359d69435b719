"""When a worker may run something: the breaker of its route, and the stop that nothing waits beyond."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from processor.capability.budgets import Budgets
from processor.delivery.breaker import Breaker
from processor.delivery.gate import Gate, GivenBack
from processor.telemetry import Telemetry


class Route:
    """A route of several workers, each with a gate of its own."""

    def __init__(self, pause_s: float = 60.0) -> None:
        self.breaker = Breaker(2, 10.0, pause_s)
        self.telemetry = Telemetry()
        self.said: list[tuple[str, dict[str, str]]] = []

    def gate(self) -> Gate:
        return Gate("r", self.breaker, Budgets("r"), self.telemetry.route("r"), self.say)

    async def say(self, what: str, more: Mapping[str, str]) -> None:
        self.said.append((what, dict(more)))

    @property
    def is_open(self) -> bool:
        return self.telemetry.numbers["processor_breaker_open"][("r",)] == 1


async def opened(route: Route, gate: Gate) -> None:
    for message in (1, 2):
        await gate.died("E312", "stopped after 2 s", message)


async def test_everything_passes_while_guests_live() -> None:
    """At once, and as much as there is."""
    route = Route()
    gate = route.gate()
    await gate.died("E312", "stopped", 1)
    await gate.lived()
    await gate.died("E312", "stopped", 2)
    await gate.let_through()
    assert not gate.is_narrow
    assert route.said == []


async def test_what_waits_at_an_open_breaker_is_given_back_when_its_route_stops() -> None:
    """Nothing is run, and nobody waits for the end of the pause."""
    route = Route()
    gate, other = route.gate(), route.gate()
    await opened(route, gate)
    waiting = asyncio.create_task(gate.let_through())
    await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()
    gate.stop()
    with pytest.raises(GivenBack):
        await waiting
    assert (gate.is_stopping, other.is_stopping) == (True, False)


async def test_one_worker_tries_for_all_when_the_pause_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """One message at a time; the others wait until it has been tried, and all go on once a guest lives."""
    caplog.set_level(logging.INFO)
    route = Route(pause_s=0.0)
    first, second = route.gate(), route.gate()
    await opened(route, first)
    assert route.is_open
    assert route.said == [("breaker_opened", {"code": "E312", "text": "stopped after 2 s"})]
    await first.let_through()
    assert first.is_narrow
    waiting = asyncio.create_task(second.let_through())
    await asyncio.wait({waiting}, timeout=0)
    assert not waiting.done()
    first.tried()
    await waiting
    await second.lived()
    assert not route.is_open
    assert not first.is_narrow
    assert route.said[1:] == [("breaker_closed", {})]
    assert [line.levelname for line in caplog.records] == ["ERROR", "INFO"]


async def test_a_breaker_that_stays_open_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its next pause is longer, and no second line or event says that guests keep dying."""
    route = Route(pause_s=0.0)
    gate = route.gate()
    await opened(route, gate)
    await gate.died("E312", "stopped after 2 s", 3)
    assert len(route.said) == len(caplog.records) == 1
    assert route.telemetry.numbers["processor_breaker_openings_total"][("r",)] == 2


async def test_a_pause_without_time_is_none() -> None:
    """Also while the route stops: who has nothing to wait for goes on."""
    gate = Route().gate()
    gate.stop()
    await gate.pause(0)
    with pytest.raises(GivenBack):
        await gate.pause(5)
