"""kill -9 of host, guest and server at every point of a commit: nothing lost, doubled, wrong or torn."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker
from tests.conftest import guests_of
from tests.faults import ledger
from tests.faults.host import POINTS, start
from tests.running import connected


@contextmanager
def host(config: Path, url: str, point: str = "none", nth: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    process = start(config, url, point, nth)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def make_input(broker: Broker, retention: str) -> None:
    await broker.create_stream(
        {"name": "IN", "subjects": ["in.*"], "retention": retention, "allow_direct": True}
    )


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_host_killed_at_any_point_of_a_commit_loses_and_doubles_nothing(
    point: str, retention: str, nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """Two lives end at the same point, the third goes on: the result is that of one that never died."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, retention)
        sent = await ledger.feed(broker, 300, poison=3)
        for life in range(2):
            with host(config, nats_server_file.url, point, nth=1 + life) as process:
                await wait_until(lambda: process.poll() is not None, f"the host died {point}", 30)
                assert process.returncode == -signal.SIGKILL
        with host(config, nats_server_file.url) as process:
            await wait_until(lambda: ledger.settled(broker, "app", 300), "all inputs are settled", 30)
            process.terminate()
            await wait_until(lambda: process.poll() is not None, "the host has drained")
            assert process.returncode == 0
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)


async def test_guests_killed_at_any_time_lose_and_double_nothing(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """Guests die by SIGKILL while they work; their replacements go on from what is committed."""
    config = ledger.write_config(tmp_path, "app", retry="{attempts: 50}", breaker="{deaths: 1000}")
    sent: list[dict[str, object]] = []
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, "limits")
        with host(config, nats_server_file.url) as process:
            for _ in range(10):
                sent += await ledger.feed(broker, 60, first=len(sent))
                await wait_until(lambda: ledger.settled(broker, "app", 1), "the route has begun")
                guests = await wait_until(lambda: guests_of(process.pid), "a guest lives")
                for pid in guests:
                    with suppress(ProcessLookupError):  # its own host was faster
                        os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: ledger.settled(broker, "app", 600), "all inputs are settled", 30)
        assert not await ledger.examine(broker, "app", sent)


async def test_a_server_killed_at_any_time_loses_and_doubles_nothing(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The server dies by SIGKILL while commits are under way, five times; the host waits and goes on."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, "limits")
        sent = await ledger.feed(broker, 3000, poison=5)
        with host(config, nats_server_file.url) as process:
            for done in range(400, 2400, 400):
                await broker.connected()
                await wait_until(partial(ledger.settled, broker, "app", done), f"{done} are settled", 30)
                nats_server_file.kill()
                nats_server_file.restart()
            await wait_until(lambda: ledger.settled(broker, "app", 3000), "all inputs are settled", 60)
            assert process.poll() is None
        assert not await ledger.examine(broker, "app", sent)
