"""More messages than can be processed, and processes that are told to end in the middle of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.jetstream.protocol import encode
from tests.conftest import guests_of, waited
from tests.faults import ledger
from tests.faults.test_server_trouble import make_input, running
from tests.running import connected

BACKLOG = 200_000
PADDING = "x" * 400  # 100 MB and more in all, if somebody held it
BOUND_BYTES = 40 << 20  # measured 2 MB, with a million waiting as well
SLOW = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        for query in queries:
            self.context["n"] += 1 + 0 * sum(range(20000))
            yield {"n": self.context["n"]}
"""
HANGS = "class Runnable:\n    def process(self, queries):\n        while True:\n            pass\n"
# Of many messages it is not done with all before it can be told to end.
UNHURRIED = "import time\n" + ledger.RUNNABLE.replace(
    "for query in queries:", "for query in queries:\n            time.sleep(0.02 if query['id'] > 500 else 0)"
)
COUNTS = (
    "class Runnable:\n    def process(self, queries):\n        return [query['i'] for query in queries]\n"
)


@asynccontextmanager
async def processor(config: Path, url: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """`processor run` in a process of its own, once it is connected."""
    log = config.with_suffix(".log")
    with log.open("ab") as stderr:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "processor", "run", str(config)],
            env={**os.environ, "NATS_URL": url, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=stderr,
        )
    started = log.read_bytes().count(b"route started")
    try:
        await waited(lambda: log.read_bytes().count(b"route started") > started, "the route runs", 20)
        yield process
    finally:
        process.kill()
        process.wait()


def resident_bytes(pid: int, kind: str) -> int:
    """`VmRSS`, what a process holds now, or `VmHWM`, the most that it ever held."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) << 10


async def fill(broker: Broker, count: int) -> None:
    """Publish that many messages quickly."""
    for first in range(0, count, 2000):
        documents = ({"i": i, "pad": PADDING} for i in range(first, first + 2000))
        await broker.send([encode(Outgoing(f"in.{d['i']}", orjson.dumps(d)), "") for d in documents])
        await broker.flush()


async def test_a_backlog_of_hundreds_of_thousands_does_not_fill_the_memory(
    nats_server: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """A slow guest, and far more waiting than it can do: the process holds a few batches of it at most."""
    (tmp_path / "slow.py").write_text(SLOW)
    config = tmp_path / "config.yaml"
    config.write_text("app: app\nhttp: off\nroutes:\n  r: {input: in.*, runnable: slow.py, output: out.r}\n")
    async with connected(nats_server.url) as broker:
        await make_input(broker)
        async with processor(config, nats_server.url) as process:
            await broker.publish(Outgoing("in.0", b"{}"))
            await wait_until(partial(has, broker, 1), "it has worked once")
            idle = resident_bytes(process.pid, "VmRSS")
            await fill(broker, BACKLOG)
            await wait_until(partial(has, broker, 2000), "it works on the backlog", 60)
            assert resident_bytes(process.pid, "VmHWM") - idle < BOUND_BYTES
            assert await ledger.count(broker, "out.r") < BACKLOG // 2
            process.send_signal(signal.SIGTERM)
            await wait_until(lambda: process.poll() is not None, "it has drained")
            assert process.returncode == 0


async def has(broker: Broker, count: int) -> bool:
    return await ledger.count(broker, "out.r") >= count


async def test_a_sigterm_in_the_middle_of_the_work_leaves_nothing_in_doubt(
    nats_server: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The process ends with 0, owning nothing and with nothing open; another goes on where it stood."""
    config = ledger.write_config(tmp_path, "app")
    (tmp_path / "counter.py").write_text(UNHURRIED)
    async with connected(nats_server.url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 2000)
        async with processor(config, nats_server.url) as process:
            await wait_until(partial(ledger.settled, broker, "app", 300), "300 are settled", 30)
            process.send_signal(signal.SIGTERM)
            await wait_until(lambda: process.poll() is not None, "it has drained")
            assert process.returncode == 0
        positions = [orjson.loads(s.payload) for s in await broker.last_of("P_app", ["p.app.pos.r.*"])]
        assert {(p["owner"], str(p.get("open", {}))) for p in positions} == {("", "{}")}
        assert not await ledger.settled(broker, "app", len(sent))
        (tmp_path / "counter.py").write_text(ledger.RUNNABLE)
        async with running(config, nats_server.url):
            await wait_until(partial(ledger.settled, broker, "app", len(sent)), "all are settled", 30)
        assert not await ledger.examine(broker, "app", sent)


async def test_a_guest_that_hangs_does_not_outlive_the_deadline_of_a_stop(
    nats_server: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The process ends with 4 after `drain_s`, long before the guest's own limit, as `docker stop` wants it;
    what hung is not lost, and runs again in the next life."""
    runnable, config = tmp_path / "hangs.py", tmp_path / "config.yaml"
    runnable.write_text(HANGS)
    config.write_text(
        "app: app\nhttp: off\ndrain_s: 0.5\nroutes:\n"
        "  r: {input: in.*, runnable: hangs.py, output: out.r, limits: {wall_s: 60, cpu_s: 60}}\n"
    )
    async with connected(nats_server.url) as broker:
        await make_input(broker)
        async with processor(config, nats_server.url) as process:
            await broker.publish(Outgoing("in.a", b'{"i": 7}'))
            await wait_until(partial(is_busy, process.pid), "the guest works", 20)
            process.send_signal(signal.SIGTERM)
            await wait_until(lambda: process.poll() is not None, "it gives up")
            assert process.returncode == 4
        runnable.write_text(COUNTS)
        async with processor(config, nats_server.url):
            await wait_until(partial(has, broker, 1), "the message was run again")
        stored = [s.payload async for s in broker.history("app-out-r", ["out.r"])]
        assert stored == [b"7"]


def is_busy(pid: int) -> bool:
    """Whether a guest of that process has used a tenth of a second of CPU."""
    for guest in guests_of(pid):
        fields = Path(f"/proc/{guest}/stat").read_text().rpartition(")")[2].split()
        if int(fields[11]) > 10:
            return True
    return False
