"""Three servers with replicated streams lose their leaders, in good order and by SIGKILL."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.jetstream import Again, ApiError, Broker, Unknown
from tests.contracts.conftest import Storage, cluster
from tests.faults import host, ledger
from tests.faults.test_server_trouble import make_input
from tests.running import connected


async def leader_of(broker: Broker, stream: str) -> str:
    """The name of the server that leads a stream; empty while none does."""
    try:
        info = await broker.stream(stream)
    except (Again, Unknown, ApiError):
        return ""
    return str(info["cluster"].get("leader", "")) if info else ""


async def has_other_leader(broker: Broker, stream: str, old: str) -> bool:
    return await leader_of(broker, stream) not in ("", old)


async def has_committed(broker: Broker, total: int) -> bool:
    return await ledger.count(broker, "p.app.out.>") >= total


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Storage]:
    """A cluster for this test alone, which kills and starts servers of it."""
    (tmp_path / "cluster").mkdir()
    with cluster(tmp_path / "cluster") as storage:
        yield storage


@pytest.mark.timeout(300)
async def test_leaders_that_step_down_or_die_lose_and_double_nothing(
    three: Storage, tmp_path: Path, wait_until: Any
) -> None:
    """The leaders of the app's stream and of the input step down; then the app's leader is killed, and
    starts again: commits that nobody answered are looked up, and what was in hand goes on."""
    config = ledger.write_config(tmp_path, "app")
    config.write_text(config.read_text().replace("http: off", "http: off\nnats: {replicas: 3}"))
    nodes = {f"n{number}": process for number, process in enumerate(three.servers)}
    process = host.start(config, three.urls)
    try:
        async with connected(three.urls) as broker:
            await make_input(broker, num_replicas=3)
            sent = await ledger.feed(broker, 2000, poison=5)
            for done, stream in ((100, "P_app"), (300, "IN"), (500, "P_app")):
                await wait_until(partial(has_committed, broker, done), f"{done} are done", 30)
                leader = await wait_until(partial(leader_of, broker, stream), "it has a leader", 20)
                await broker.api(f"STREAM.LEADER.STEPDOWN.{stream}")
                await wait_until(partial(has_other_leader, broker, stream, leader), "another leads", 20)
            await wait_until(partial(has_committed, broker, 700), "700 are done", 30)
            leader = await wait_until(partial(leader_of, broker, "P_app"), "it has a leader", 20)
            nodes[leader].kill()
            nodes[leader].wait()
            await wait_until(partial(has_other_leader, broker, "P_app", leader), "another leads", 30)
            await wait_until(partial(has_committed, broker, 1000), "two servers go on", 30)
            nodes[leader] = subprocess.Popen(nodes[leader].args)  # noqa: ASYNC220 - it returns at once
            # A server waits 30 s for the answer that a dead one owes before it asks the next for copies.
            await wait_until(partial(ledger.settled, broker, "app", len(sent)), "all are settled", 100)
            assert process.poll() is None
            assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)
    finally:
        for each in (process, *nodes.values()):
            each.kill()
            each.wait()
