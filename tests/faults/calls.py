"""Kill hosts around their calls, again and again, and hold what a server was asked against the audit.

    tests/faults/calls.py [--kills 200] [--messages 4000] [--intent all | unsafe] [--hosts 3]

A recording server notes every request that arrives. Hosts of one route call it once for each message and are
killed at named points: before an intent, between it and the call, between the call and the commit, after the
commit. Afterwards every request must have an entry, or an `unresolved` one, in a chain that nobody broke, and
every message its output, once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from processor.audit import GENESIS, AuditRecord, ChainHead, document_of
from processor.context.position import Position
from processor.context.subjects import SubjectParts, last_partition
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from tests.conftest import waited
from tests.faults import ledger
from tests.faults.host import CALL, start
from tests.running import connected
from tests.web import Asked, Web, serving

RUNNABLE = """
class Runnable:
    def process(self, queries):
        outputs = []
        for query in queries:
            ask = self.requests.post if query["id"] % 2 else self.requests.get
            ask(query["url"])
            self.context["n"] = self.context.get("n", 0) + 1
            outputs.append({"id": query["id"]})
        return outputs
"""
CONFIG = """
app: app
http: off
policy: policy.toml
audit: {{intent: {intent}, copy_ttl: 1h}}
outbound: {{allowed_domains: ["{host}"]}}
routes:
  r:
    input: in.*
    runnable: caller.py
    key: subject.2
    partitions: 4
    concurrency: 2
    output: out.r
    batch: {{max_messages: 10}}
"""
POLICY = '[[capability]]\nname = "http"\nresource = "{host}"\nmethods = ["*"]\n'
PATIENCE_S = 60.0  # for a host that does not come to its point: others may have done what there was


def write_config(folder: Path, host: str, intent: str) -> Path:
    """The configuration of a route that calls this server."""
    (folder / "caller.py").write_text(RUNNABLE)
    (folder / "policy.toml").write_text(POLICY.format(host=host))
    (folder / "config.yaml").write_text(CONFIG.format(host=host, intent=intent))
    return folder / "config.yaml"


async def make_input(broker: Broker) -> None:
    await broker.create_stream({"name": "IN", "subjects": ["in.*"], "allow_direct": True})


async def feed(broker: Broker, url: str, numbers: Sequence[int]) -> None:
    """Publish messages, each with a URL of its own to call."""
    for number in numbers:
        message = {"id": number, "url": f"{url}/{number}"}
        await broker.publish(Outgoing(f"in.k{number % 7}", orjson.dumps(message)))
    await broker.flush()


@dataclass
class CallLedger:
    """What is wrong; all empty where nothing is. The counts beside say what was looked at."""

    without_entry: list[str] = field(default_factory=list)  # requests
    broken: list[str] = field(default_factory=list)  # chains
    lost: list[int] = field(default_factory=list)  # outputs
    doubled: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to complain about."""
        return bool(self.without_entry or self.broken or self.lost or self.doubled)


async def examine(broker: Broker, asked: Sequence[Asked], url: str, total: int, intent: str) -> CallLedger:
    """The ledger of all that a server was asked, and of all that was put out for so many messages."""
    found = CallLedger()
    heads: dict[int, ChainHead] = {}
    entries: Counter[tuple[str, str]] = Counter()  # by method and URL
    fates: Counter[str] = Counter()
    async for stored in broker.history("P_app", ["p.app.audit.r.*", "p.app.pos.r.*"]):
        number = last_partition(stored.subject)
        head = heads.get(number, GENESIS)
        if SubjectParts.of(stored.subject).kind == "pos":
            if Position.read(stored).chain != head:
                found.broken.append(f"the position of partition {number} has another head")
            continue
        try:
            record = AuditRecord.decode(stored.payload)
            record.check_follows(head)
        except ValueError as err:
            found.broken.append(f"partition {number}, message {stored.sequence}: {err}")
            continue
        heads[number] = record.head
        for said in map(document_of, record.lines):
            entries[said["op"], said["on"]] += 1
            fates[f"{said['e']} {said['fate']}"] += 1
    for (method, target), times in Counter((a.method.lower(), f"{url}{a.target}") for a in asked).items():
        is_covered = intent == "all" or method == "post"
        if is_covered and entries[method, target] < times:
            found.without_entry.append(f"{method} {target}: {times} requests, {entries[method, target]}")
    stream = await broker.find_stream("out.r")
    history = broker.history(stream, ["out.r"]) if stream else None
    outputs = Counter([orjson.loads(s.payload)["id"] async for s in history] if history else [])
    found.lost = [number for number in range(total) if not outputs[number]]
    found.doubled = [number for number, times in outputs.items() if times > 1]
    found.counts = {"requests": len(asked), "entries": sum(entries.values()), **dict(sorted(fates.items()))}
    return found


async def died(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    """Whether the host ended by itself; one that did not is killed."""
    try:
        await asyncio.to_thread(process.wait, patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


async def finish(broker: Broker, config: Path, url: str, total: int) -> None:
    """Return when a host that is not killed has done the rest, and drained."""
    process = start(config, url)
    try:
        await waited(lambda: ledger.settled(broker, "app", total, out="out.r"), "all is settled", 300)
        process.terminate()
        await died(process, 30)
    finally:
        process.kill()
        process.wait()


async def storm(kills: int, messages: int, intent: str, hosts: int) -> CallLedger:
    """The ledger after so many kills of hosts, of which so many run side by side."""
    chance = random.Random(kills)
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as stack:
            web: Web = await stack.enter_async_context(serving(lambda asked: b"HTTP/1.1 204 No\r\n\r\n"))
            server = stack.enter_context(EmbeddedServer.start(Path(folder) / "nats"))
            broker = await stack.enter_async_context(connected(server.url))
            config = write_config(Path(folder), web.host, intent)
            await make_input(broker)
            fed, killed = 0, Counter[str]()

            async def kill_hosts() -> None:
                nonlocal fed
                while killed.total() < kills:
                    first, fed = fed, fed + -(-messages // kills)
                    await feed(broker, web.url, range(first, fed))
                    point = chance.choice(CALL)
                    process = start(config, server.url, point, chance.randint(1, 6))
                    killed[point if await died(process, PATIENCE_S) else "from outside"] += 1
                    if killed.total() % 20 == 0:
                        say(f"{killed.total()} kills, {len(web.asked)} requests")

            await asyncio.gather(*(kill_hosts() for _ in range(hosts)))
            await finish(broker, config, server.url, fed)
            found = await examine(broker, web.asked, web.url, fed, intent)
            found.counts |= {"messages": fed, **{f"killed {p}": n for p, n in sorted(killed.items())}}
            return found


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the storm, print the ledger, and say by the exit code whether it is clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--intent", choices=("all", "unsafe"), default="all")
    parser.add_argument("--hosts", type=int, default=3)
    given = parser.parse_args()
    found = asyncio.run(storm(given.kills, given.messages, given.intent, given.hosts))
    for name, count in found.counts.items():
        say(f"{count:8} {name}")
    for name in ("without_entry", "broken", "lost", "doubled"):
        wrong = getattr(found, name)
        say(f"{len(wrong):8} {name} {wrong[:10] if wrong else ''}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
