"""The server, or the way to it, is in trouble while messages flow: nothing is lost, doubled or torn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Unknown
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import frozen, waited
from tests.faults import ledger
from tests.faults.cable import cable
from tests.running import connected

SOON_S = 1.0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are given up soon, so that a test need not wait for what never comes."""
    monkeypatch.setattr("processor.jetstream.connection._REQUEST_TIMEOUT_S", SOON_S)


@asynccontextmanager
async def running(config: Path, url: str) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry()
    service = Service(load(config, {"NATS_URL": url}), telemetry)
    try:
        await service.start(wait=False)
        yield telemetry
    finally:
        await service.stop()


async def make_input(broker: Broker, **more: Any) -> None:
    await broker.create_stream({"name": "IN", "subjects": ["in.*"], "allow_direct": True, **more})


async def silence(broker: Broker) -> None:
    """Return when this client has asked and was not answered; the trouble may need a moment to begin."""
    with suppress(Unknown):
        while await broker.api("INFO"):
            pass


async def test_late_lost_and_cut_answers_do_no_harm(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any, impatient: None
) -> None:
    """The line is slow, keeps back the answers of commits that were stored, is cut, and is hung up."""
    config = ledger.write_config(tmp_path, "app")
    url = nats_server_file.url
    async with connected(url) as broker, cable(url) as line, connected(line.url) as beside:
        await make_input(broker)
        sent: list[dict[str, object]] = []

        async def more(count: int = 300) -> None:
            nonlocal sent
            sent += await ledger.feed(broker, count, poison=1, first=len(sent))

        async def some_are_settled() -> None:
            done = len(sent) - 280
            await wait_until(partial(ledger.settled, broker, "app", done), f"{done} are settled", 20)

        async with running(config, line.url) as telemetry:
            line.lateness_s = 0.05
            await more()
            await some_are_settled()
            line.lateness_s = 0.0
            for trouble in (line.hold_answers, line.cut, line.cut):
                await more()
                await some_are_settled()
                trouble()
                await silence(beside)
                if trouble == line.cut:
                    line.hang_up()
                line.heal()
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "all are settled", 30)
            await wait_until(lambda: telemetry.readiness.blocks == {}, "it is ready again")
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)


async def test_a_server_that_restarts_freezes_and_dies_interrupts_nothing_but_time(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any, impatient: None
) -> None:
    """A clean restart, a frozen server that does not answer, and a kill, each in the middle of the work."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 1500, poison=3)
        async with running(config, nats_server_file.url) as telemetry:
            for number, trouble in enumerate(("restart", "freeze", "kill", "freeze"), 1):
                await broker.connected()
                done = number * 200
                await wait_until(partial(ledger.settled, broker, "app", done), f"{done} are settled", 30)
                if trouble == "freeze":
                    async with frozen(nats_server_file.pid):
                        await silence(broker)
                    continue
                if trouble == "kill":
                    await asyncio.to_thread(nats_server_file.kill)
                    await wait_until(lambda: "nats" in telemetry.readiness.blocks, "readiness is red")
                await asyncio.to_thread(nats_server_file.restart)
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "all are settled", 30)
            await wait_until(lambda: telemetry.readiness.blocks == {}, "it is ready again", 20)
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)


async def test_a_stop_waits_for_no_answer_of_a_frozen_server(
    nats_server_file: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after `drain_s` as not clean, though requests would wait for their answers for an hour."""
    config = ledger.write_config(tmp_path, "app")
    config.write_text(config.read_text() + "drain_s: 0.2\n")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 100)
        service = Service(load(config, {"NATS_URL": nats_server_file.url}), Telemetry())
        await service.start(wait=False)
        await waited(partial(ledger.settled, broker, "app", len(sent)), "all are settled", 30)
        monkeypatch.setattr("processor.jetstream.connection._REQUEST_TIMEOUT_S", 3600.0)
        async with frozen(nats_server_file.pid):
            assert not await asyncio.wait_for(service.stop(), 60)


async def test_who_is_cut_off_is_replaced_and_cannot_commit_when_he_returns(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The other of two processors takes all. Healed, the first drops what it had and takes its part."""
    config = ledger.write_config(tmp_path, "app")
    url = nats_server_file.url
    async with connected(url) as broker, cable(url) as line:
        await make_input(broker)
        async with running(config, line.url), running(config, url) as staying:
            await wait_until(partial(ledger.has_owners, broker, "app", 2), "both have a part")
            sent = await ledger.feed(broker, 400, poison=2)
            await wait_until(lambda: ledger.settled(broker, "app", 50), "they work")
            line.cut()
            sent += await ledger.feed(broker, 400, poison=2, first=len(sent))
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "one has done all", 20)
            assert await ledger.has_owners(broker, "app", 1)
            line.heal()
            await wait_until(partial(ledger.has_owners, broker, "app", 2), "both have a part again", 20)
            sent += await ledger.feed(broker, 200, first=len(sent))
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "all are settled", 20)
            assert staying.readiness.blocks == {}
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)
