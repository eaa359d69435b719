"""A storm of faults over replicas at work, and a ledger at its end.

    python tests/faults/soak.py --messages 300000 --kills 200
    python tests/faults/soak.py --messages 60000 --kills 40 --replicas-r3

Four keyed counters on several processors of one app, fed all the while: one gives poison up as dead letters,
one blocks a key until its message succeeds, one reads a work queue, and one has a work queue dealt to it. All
have three lanes. At random: a host, a guest or the server
dies by SIGKILL (with `--replicas-r3` one of three servers, the leader of the app's stream or another), a host
is stopped and goes on as a zombie, a route is paused, all hosts are replaced one by one with a changed
Runnable, or load it while they run. In the end the Runnable is repaired and two people redrive every dead
letter at once. Then everything must be there once, right, and in order. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Outgoing, Unknown
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from tests.conftest import guests_of
from tests.contracts.conftest import cluster
from tests.faults import host, ledger

PATIENCE_S = 180


@dataclass(frozen=True)
class Plan:
    """What is to happen. `weights` say how often each fault comes, in relation."""

    messages: int
    kills: int
    hosts: int = 3
    keys: int = 50
    poison: int = 20
    unsure: int = 50
    seed: int = 1
    pause_s: tuple[float, float] = (0.1, 0.8)
    weights: tuple[tuple[str, int], ...] = (
        ("kill host", 5),
        ("kill guest", 5),
        ("kill server", 2),
        ("zombie", 3),
        ("pause", 2),
        ("rolling restart", 1),
        ("rolling reload", 1),
    )


@dataclass
class Feed:
    """What one route is fed, and where it goes. A quarter of all messages each."""

    route: str
    retention: str = "limits"
    is_dealt: bool = False
    sent: ledger.Sent = field(default_factory=list)

    @property
    def out(self) -> str:
        return f"out-{self.route}.*"

    def config(self, retry: str) -> str:
        return ledger.route(
            self.route,
            input=f"{{subject: in-{self.route}.*, repartition: {str(self.is_dealt).lower()}}}",
            concurrency="3",
            output=f"out-{self.route}.{{key}}",
            events=f"events.{self.route}",
            partitions="16",
            retry=retry,
        )


# Guests are killed over sound messages, too; those must not run out of tries.
TRIES = "attempts: 8, base_ms: 10, max_ms: 100"


class Soak:
    """One run: hosts, faults, feeding."""

    def __init__(self, plan: Plan, folder: Path, urls: str, servers: Servers) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._servers = servers
        self._urls = urls
        self._feeds = [
            Feed("r"),
            Feed("blocking"),
            Feed("queue", "workqueue"),
            Feed("dealt", "workqueue", is_dealt=True),
        ]
        self._config = ledger.write_config(folder, "soak")
        routes = "".join(
            feed.config(f"{{{TRIES}, then: {'block' if feed.route == 'blocking' else 'dead_letter'}}}")
            for feed in self._feeds
        )
        self._config.write_text(
            f"app: soak\nhttp: off\nnats: {{replicas: {servers.replicas}}}\nroutes:\n{routes}"
        )
        self._version = 0
        self._hosts: list[subprocess.Popen[bytes]] = []
        self._stopped: set[int] = set()
        self._ending: set[asyncio.Task[None]] = set()  # of faults that end by themselves
        self._went_on = asyncio.Event()  # one fault further
        self.done: Counter[str] = Counter()
        self.took_s = 0.0

    @property
    def sent(self) -> int:
        """How many messages were fed."""
        return sum(len(feed.sent) for feed in self._feeds)

    @property
    def kills(self) -> int:
        return sum(times for what, times in self.done.items() if what.startswith("kill"))

    async def run(self) -> dict[str, ledger.Ledger]:
        """Everything of the plan; the ledgers of its end by route."""
        broker = await Broker.connect({"servers": self._urls.split(",")}, name="soak", wait=True)
        began_s = time.monotonic()
        try:
            for feed in self._feeds:
                await self._insist(partial(self._make_input, broker, feed))
            self._hosts = [self._host() for _ in range(self._plan.hosts)]
            feeding = asyncio.create_task(self._feed_all(broker))
            while self.kills < self._plan.kills:
                await asyncio.sleep(self._chance.uniform(*self._plan.pause_s))
                await self._fault(broker)
                self._went_on.set()
            await feeding
            await asyncio.gather(*self._ending)
            await self._until_settled(broker)
            self.took_s = time.monotonic() - began_s
            await self._redrive(broker)
            return {feed.route: await self._examine(broker, feed) for feed in self._feeds}
        finally:
            for process in self._hosts:
                process.kill()
                process.wait()
            await broker.close()

    async def _make_input(self, broker: Broker, feed: Feed) -> None:
        name = f"IN-{feed.route}"
        config = {"name": name, "subjects": [f"in-{feed.route}.*"], "retention": feed.retention}
        if await broker.stream(name) is None:
            replicas = self._servers.replicas
            await broker.create_stream({**config, "num_replicas": replicas, "allow_direct": True})

    def _host(self) -> subprocess.Popen[bytes]:
        shown = None if os.environ.get("SOAK_LOG") else subprocess.DEVNULL
        return host.start(self._config, self._urls, stderr=shown)

    async def _feed_all(self, broker: Broker) -> None:
        """As many at a time as there are keys, and no faster than the faults come."""
        each = self._plan.messages // len(self._feeds)
        chance = random.Random(self._plan.seed)
        odd = [set(chance.sample(range(each), self._plan.poison)) for _ in self._feeds]
        unsure = set(chance.sample(range(each), self._plan.unsure))
        keys = [f"k{number}" for number in range(self._plan.keys)]
        for first in range(0, each, len(keys)):
            while first / each > (self.kills + 1) / (self._plan.kills + 1):
                self._went_on.clear()
                await self._went_on.wait()
            for feed, poison in zip(self._feeds, odd, strict=True):
                chance.shuffle(keys)
                fed = []
                for number, key in zip(range(first, min(first + len(keys), each)), keys, strict=False):
                    message: dict[str, object] = {"id": number, "key": key}
                    if feed.route == "blocking" and number in unsure:
                        message["unsure"] = True
                    elif feed.route != "blocking" and number in poison:
                        message["poison"] = True
                    feed.sent.append(message)
                    fed.append(self._publish(broker, feed.route, message))
                await asyncio.gather(*fed)

    async def _publish(self, broker: Broker, route: str, message: dict[str, object]) -> None:
        """Until the server has confirmed it; a second copy is dropped there by its id."""
        subject, own = f"in-{route}.{message['key']}", {"Nats-Msg-Id": f"m{message['id']}"}
        stored = Outgoing(subject, orjson.dumps(message), own)
        await self._insist(lambda: broker.publish_stored(stored))

    async def _insist(self, act: Callable[[], Awaitable[object]]) -> None:
        while True:
            with suppress(Unknown, Again, ApiError, BrokerError):
                await act()
                return
            await asyncio.sleep(0.05)

    async def _fault(self, broker: Broker) -> None:
        names, weights = zip(*self._plan.weights, strict=True)
        [name] = self._chance.choices(names, weights)
        awake = [h for h in self._hosts if h.pid not in self._stopped]
        if name == "kill host" and awake:
            self._replace(self._chance.choice(awake), signal.SIGKILL)
        elif name == "kill guest" and awake:
            guests = guests_of(self._chance.choice(awake).pid)
            if not guests:
                return
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(guests), signal.SIGKILL)
        elif name == "kill server":
            name = await self._servers.kill_one(broker, self._chance)
        elif name == "zombie" and len(awake) > 1:
            self._begin(self._freeze(self._chance.choice(awake)))
        elif name == "pause":
            self._begin(self._pause(broker, self._chance.choice(self._feeds).route))
        elif name == "rolling restart" and not self._stopped:
            self._write(ledger.RUNNABLE)
            for process in list(self._hosts):
                await asyncio.to_thread(self._replace, process, signal.SIGTERM)
        elif name == "rolling reload" and not self._stopped:
            self._write(ledger.RUNNABLE)
            for process in self._hosts:
                if is_ready(process.pid):
                    process.send_signal(signal.SIGHUP)
        else:
            return
        self.done[name] += 1

    def _write(self, source: str) -> None:
        self._version += 1
        self._config.with_name("counter.py").write_text(f"VERSION = {self._version}\n{source}")

    def _replace(self, process: subprocess.Popen[bytes], how: signal.Signals) -> None:
        process.send_signal(how)
        process.wait(60)
        self._hosts[self._hosts.index(process)] = self._host()

    def _begin(self, fault: Coroutine[Any, Any, None]) -> None:
        self._ending.add(asyncio.create_task(fault))

    async def _freeze(self, process: subprocess.Popen[bytes]) -> None:
        """Longer than the others wait for it, so that it wakes up as a zombie."""
        self._stopped.add(process.pid)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.5, 4.0))
        process.send_signal(signal.SIGCONT)
        self._stopped.discard(process.pid)

    async def _pause(self, broker: Broker, route: str) -> None:
        control = Control(broker, "soak")
        for is_paused in (True, False):
            await self._insist(partial(control.pause, route, is_paused=is_paused, reason="soak"))
            await asyncio.sleep(self._chance.uniform(0.1, 1.0))

    async def _until_settled(self, broker: Broker) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        for feed in self._feeds:
            while not await ledger.settled(broker, "soak", len(feed.sent), feed.route, feed.out):
                if time.monotonic() > deadline_s:
                    say(f"not all inputs of {feed.route} were settled in time")
                    return
                await asyncio.sleep(0.2)

    async def _redrive(self, broker: Broker) -> None:
        """Repair the Runnable, and have two people send every dead letter back at once."""
        self._write(ledger.REPAIRED)
        for process in list(self._hosts):
            await asyncio.to_thread(self._replace, process, signal.SIGTERM)
        letters = DeadLetters(broker, "soak")
        found = [letter async for letter in letters.find(Filter())]
        for letter in found:
            done = await asyncio.gather(letters.redrive(letter), letters.redrive(letter))
            self.done["redriven"] += done.count(True)
        await self._until_settled(broker)

    async def _examine(self, broker: Broker, feed: Feed) -> ledger.Ledger:
        poison = {message["id"] for message in feed.sent if "poison" in message}
        return await ledger.examine(broker, "soak", feed.sent, poison, route=feed.route, out=feed.out)


def is_ready(pid: int) -> bool:
    """Whether a host has set its handlers: before that, SIGHUP ends it."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGHUP - 1) & 1)


class Servers:
    """The NATS server, or three of them."""

    replicas = 1

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    async def kill_one(self, broker: Broker, chance: random.Random) -> str:
        """SIGKILL, and start it again; what was done."""
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.restart)
        return "kill server"


class Cluster(Servers):
    """Three servers with replicated streams; one at a time dies, the leader as often as others."""

    replicas = 3

    def __init__(self, servers: list[subprocess.Popen[bytes]]) -> None:
        self._running = servers

    async def kill_one(self, broker: Broker, chance: random.Random) -> str:
        leader = await self._leader(broker)
        others = [number for number in range(len(self._running)) if number != leader]
        is_leader = leader is not None and chance.random() < 0.5
        number = leader if is_leader and leader is not None else chance.choice(others)
        process = self._running[number]
        process.kill()
        process.wait()
        await asyncio.sleep(chance.uniform(0.2, 2.0))
        self._running[number] = subprocess.Popen(process.args)  # noqa: ASYNC220 - it returns at once
        return "kill leader" if is_leader else "kill other server"

    async def _leader(self, broker: Broker) -> int | None:
        """Which server leads the app's stream; None while none does."""
        with suppress(Unknown, Again, ApiError, BrokerError):
            info = await broker.stream("P_soak")
            name = ((info or {}).get("cluster") or {}).get("leader", "")
            return int(name.removeprefix("n")) if name else None
        return None

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


Ledgers = dict[str, ledger.Ledger]


def report(soak: Soak, found: Ledgers, plan: Plan) -> str:
    """The ledgers as a table."""
    rows = [
        ("messages", str(soak.sent)),
        ("seconds", f"{soak.took_s:.1f}"),
        ("messages a second", f"{soak.sent / max(soak.took_s, 0.001):.0f}"),
        *((what, str(times)) for what, times in sorted(soak.done.items())),
        ("kills in all", str(soak.kills)),
        ("", "  ".join(f"{route:>10}" for route in found)),
    ]
    for name in vars(ledger.Ledger()):
        rows.append((name, "  ".join(f"{len(vars(each)[name]):>10}" for each in found.values())))
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


def soak_single(plan: Plan, folder: Path) -> tuple[Soak, Ledgers]:
    """On one server, which starts again after it was killed."""
    with EmbeddedServer.start(folder / "nats") as server:
        soak = Soak(plan, folder, server.url, Servers(server))
        return soak, asyncio.run(soak.run())


def soak_cluster(plan: Plan, folder: Path) -> tuple[Soak, Ledgers]:
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=40, help="of hosts, guests, servers")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas-r3", action="store_true", help="three servers, streams on all")
    options = parser.parse_args()
    plan = Plan(options.messages // 4 * 4, options.kills, options.hosts, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = soak_cluster if options.replicas_r3 else soak_single
        soak, found = run(plan, Path(folder))
    say(report(soak, found, plan))
    for route, each in found.items():
        for name, entries in vars(each).items():
            if entries:
                say(f"{route} {name}: {entries[:10]}")
    return 1 if any(found.values()) or soak.sent != plan.messages else 0


if __name__ == "__main__":
    sys.exit(main())
