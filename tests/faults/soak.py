"""A storm of faults over replicas at work, and a ledger at its end.

    python tests/faults/soak.py --messages 300000 --faults 300 [--cluster] [--replicas 3] [--seed 1]

Keyed counters on several processors of one app, fed all the while. At random: a host, a guest or the server
dies by SIGKILL, a host is stopped and goes on as a zombie, all hosts are replaced one by one with a changed
Runnable. Then everything must be there once, right, and in order. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Message, Unknown
from tests.conftest import guests_of
from tests.contracts.conftest import cluster
from tests.faults import host, ledger

PATIENCE_S = 180


@dataclass(frozen=True)
class Plan:
    """What is to happen. `weights` say how often each fault comes, in relation."""

    messages: int
    faults: int
    replicas: int = 3
    keys: int = 50
    poison: int = 20
    seed: int = 1
    pause_s: tuple[float, float] = (0.1, 0.8)
    weights: tuple[tuple[str, int], ...] = (
        ("kill host", 5),
        ("kill guest", 5),
        ("zombie", 3),
        ("kill server", 2),
        ("rolling restart", 1),
    )


class Soak:
    """One run: hosts, faults, feeding."""

    def __init__(self, plan: Plan, folder: Path, urls: str, servers: Servers) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._servers = servers
        self._urls = urls
        self._config = ledger.write_config(
            folder, "soak", partitions="16", retry="{attempts: 3, base_ms: 20, max_ms: 200}"
        )
        text = self._config.read_text()
        self._config.write_text(
            text.replace("http: off", f"http: off\nnats: {{replicas: {servers.replicas}}}")
        )
        self._version = 0
        self._hosts: list[subprocess.Popen[bytes]] = []
        self._stopped: set[int] = set()
        self._resuming: set[asyncio.Task[None]] = set()
        self.done: Counter[str] = Counter()
        self.sent: list[dict[str, object]] = []
        self.took_s = 0.0

    async def run(self) -> ledger.Ledger:
        """Everything of the plan; the ledger of its end."""
        broker = await Broker.connect({"servers": self._urls.split(",")}, name="soak", wait=True)
        began_s = time.monotonic()
        try:
            await self._insist(lambda: self._make_input(broker))
            self._hosts = [self._host() for _ in range(self._plan.replicas)]
            feeding = asyncio.create_task(self._feed(broker))
            for _ in range(self._plan.faults):
                await asyncio.sleep(self._chance.uniform(*self._plan.pause_s))
                await self._fault()
            await feeding
            await asyncio.gather(*self._resuming)
            await self._until_settled(broker)
            self.took_s = time.monotonic() - began_s
            return await ledger.examine(broker, "soak", self.sent)
        finally:
            for process in self._hosts:
                process.kill()
                process.wait()
            await broker.close()

    async def _make_input(self, broker: Broker) -> None:
        config = {"name": "IN", "subjects": ["in.*"], "num_replicas": self._servers.replicas}
        if await broker.stream("IN") is None:
            await broker.create_stream({**config, "allow_direct": True})

    def _host(self) -> subprocess.Popen[bytes]:
        shown = None if os.environ.get("SOAK_LOG") else subprocess.DEVNULL
        return host.start(self._config, self._urls, stderr=shown)

    async def _feed(self, broker: Broker) -> None:
        bad = set(self._chance.sample(range(self._plan.messages), self._plan.poison))
        keys = [f"k{number}" for number in range(self._plan.keys)]
        chance = random.Random(self._plan.seed)
        for number in range(self._plan.messages):
            key = chance.choice(keys)
            message: dict[str, object] = {"id": number, "key": key}
            if number in bad:
                message["poison"] = True
            self.sent.append(message)
            stored = Message(f"in.{key}", orjson.dumps(message), {"Nats-Msg-Id": f"m{number}"})
            await self._insist(lambda stored=stored: broker.publish_stored(stored))  # type: ignore[misc]

    async def _insist(self, act: Callable[[], Awaitable[object]]) -> None:
        """Until the server has confirmed it; a second copy is dropped there by its id."""
        while True:
            with suppress(Unknown, Again, ApiError, BrokerError):
                await act()
                return
            await asyncio.sleep(0.05)

    async def _fault(self) -> None:
        names, weights = zip(*self._plan.weights, strict=True)
        [name] = self._chance.choices(names, weights)
        awake = [h for h in self._hosts if h.pid not in self._stopped]
        if name == "kill host" and awake:
            self._replace(self._chance.choice(awake), signal.SIGKILL)
        elif name == "kill guest" and awake:
            for pid in guests_of(self._chance.choice(awake).pid)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif name == "zombie" and len(awake) > 1:
            self._resuming.add(asyncio.create_task(self._freeze(self._chance.choice(awake))))
        elif name == "kill server":
            await asyncio.to_thread(self._servers.kill_one, self._chance)
        elif name == "rolling restart" and not self._stopped:
            self._version += 1
            source = self._config.with_name("counter.py")
            source.write_text(f"VERSION = {self._version}\n{ledger.RUNNABLE}")
            for process in list(self._hosts):
                await asyncio.to_thread(self._replace, process, signal.SIGTERM)
        else:
            return
        self.done[name] += 1

    def _replace(self, process: subprocess.Popen[bytes], how: signal.Signals) -> None:
        process.send_signal(how)
        process.wait(60)
        self._hosts[self._hosts.index(process)] = self._host()

    async def _freeze(self, process: subprocess.Popen[bytes]) -> None:
        """Longer than the others wait for it, so that it wakes up as a zombie."""
        self._stopped.add(process.pid)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.5, 4.0))
        process.send_signal(signal.SIGCONT)
        self._stopped.discard(process.pid)

    async def _until_settled(self, broker: Broker) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not await ledger.settled(broker, "soak", self._plan.messages):
            if time.monotonic() > deadline_s:
                say("not all inputs were settled in time")
                return
            await asyncio.sleep(0.2)


class Servers:
    """The NATS server, or three of them."""

    replicas = 1

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def kill_one(self, _: random.Random) -> None:
        """SIGKILL, and start it again."""
        self._server.kill()
        self._server.restart()


class Cluster(Servers):
    """Three servers with replicated streams; one at a time dies, the leader as often as another."""

    replicas = 3

    def __init__(self, servers: list[subprocess.Popen[bytes]]) -> None:
        self._running = servers

    def kill_one(self, chance: random.Random) -> None:
        number = chance.randrange(len(self._running))
        process = self._running[number]
        process.kill()
        process.wait()
        time.sleep(chance.uniform(0.2, 2.0))
        self._running[number] = subprocess.Popen(process.args)

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def report(soak: Soak, found: ledger.Ledger, plan: Plan) -> str:
    """The ledger as a table."""
    rows = [
        ("messages", len(soak.sent)),
        ("poison among them", plan.poison),
        ("seconds", round(soak.took_s, 1)),
        *sorted(soak.done.items()),
        ("faults in all", soak.done.total()),
        *((name, len(entries)) for name, entries in vars(found).items()),
    ]
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def soak_single(plan: Plan, folder: Path) -> tuple[Soak, ledger.Ledger]:
    """On one server, which starts again after it was killed."""
    with EmbeddedServer.start(folder / "nats") as server:
        soak = Soak(plan, folder, server.url, Servers(server))
        return soak, asyncio.run(soak.run())


def soak_cluster(plan: Plan, folder: Path) -> tuple[Soak, ledger.Ledger]:
    """On three servers, one of which is missing now and then."""
    with cluster(folder) as storage:
        servers = Cluster(list(storage.servers))
        try:
            soak = Soak(plan, folder, storage.urls, servers)
            return soak, asyncio.run(soak.run())
        finally:
            servers.stop()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", action="store_true", help="three servers, streams with three replicas")
    options = parser.parse_args()
    plan = Plan(options.messages, options.faults, options.replicas, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = soak_cluster if options.cluster else soak_single
        soak, found = run(plan, Path(folder))
    say(report(soak, found, plan))
    for name, entries in vars(found).items():
        if entries:
            say(f"{name}: {entries[:10]}")
    return 1 if found or len(soak.sent) != plan.messages else 0


if __name__ == "__main__":
    sys.exit(main())
