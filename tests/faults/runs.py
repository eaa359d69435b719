"""Kill processors and the server under runs of a graph, and hold the results against the runs.

    tests/faults/runs.py [--runs 1000] [--kills 50] [--hosts 2] [--seed 1]

Each run has five nodes: one prepares, one splits in three, a pooled one calls a server for each part, one
unites them and one reports. Processors of one app work on them side by side; at random one of them, or the
server, is killed with SIGKILL and started again. In the end each run must have left one record and one
result, the right one; every part of it must have been called for under an idempotency key of its own; and
nothing of any run may be left: no context, no message, no timer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from processor.context.subjects import RouteSubjects
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Outgoing, Unknown
from processor.model import partition_of
from tests.conftest import waited
from tests.faults import ledger
from tests.faults.host import start
from tests.running import connected
from tests.web import Asked, answer, serving

PARTS = 3
PARTITIONS = 16
PURE = """
from exospherehost import BaseNode
from pydantic import BaseModel


class Prepare(BaseNode):
    class Inputs(BaseModel):
        number: int

    class Outputs(BaseModel):
        number: int

    async def execute(self):
        return self.Outputs(number=self.inputs.number)


class Split(Prepare):
    class Outputs(BaseModel):
        part: int

    async def execute(self):
        return [self.Outputs(part=3 * self.inputs.number + each) for each in range(3)]


class Sum(BaseNode):
    class Inputs(BaseModel):
        values: list[int]

    class Outputs(BaseModel):
        total: int

    async def execute(self):
        return self.Outputs(total=sum(self.inputs.values))


class Report(BaseNode):
    class Inputs(BaseModel):
        number: int
        total: int

    class Outputs(BaseModel):
        number: int
        total: int

    async def execute(self):
        return self.Outputs(number=self.inputs.number, total=self.inputs.total)
"""
CALLING = """
import httpx
from exospherehost import BaseNode
from pydantic import BaseModel


class Double(BaseNode):
    class Inputs(BaseModel):
        url: str
        part: int

    class Outputs(BaseModel):
        value: int

    async def execute(self):
        async with httpx.AsyncClient() as client:
            said = await client.post(
                f"{self.inputs.url}/{self.inputs.part}", headers={"Idempotency-Key": self.idempotency_key}
            )
        said.raise_for_status()
        return self.Outputs(value=said.json()["value"])
"""
CONFIG = """
app: app
http: off
engine: {{partitions: {partitions}}}
nodes:
  pure: pure.py
  calling: {{file: calling.py, outbound: ["{host}"], partitions: {partitions}, concurrency: 2}}
graphs:
  g:
    nodes:
      - {{identifier: prepare, node_name: Prepare, inputs: {{number: 0}}, next_nodes: [split]}}
      - {{identifier: split, node_name: Split, inputs: {{number: "${{{{ prepare.outputs.number }}}}"}},
         next_nodes: [double]}}
      - {{identifier: double, node_name: Double, next_nodes: [sum],
         inputs: {{url: "http://{host}", part: "${{{{ split.outputs.part }}}}"}}}}
      - {{identifier: sum, node_name: Sum, unites: {{identifier: split}}, next_nodes: [report],
         inputs: {{values: "${{{{ double.outputs.value }}}}"}}}}
      - {{identifier: report, node_name: Report,
         inputs: {{number: "${{{{ prepare.outputs.number }}}}", total: "${{{{ sum.outputs.total }}}}"}}}}
    outputs: {{number: "${{{{ report.outputs.number }}}}", total: "${{{{ report.outputs.total }}}}"}}
    output: {{subject: results.g}}
    retry_policy: {{max_retries: 5, strategy: FIXED, backoff_factor: 20}}
"""


def write_config(folder: Path, host: str) -> Path:
    """The configuration of the graph whose pooled node calls this server."""
    (folder / "pure.py").write_text(PURE)
    (folder / "calling.py").write_text(CALLING)
    (folder / "config.yaml").write_text(CONFIG.format(host=host, partitions=PARTITIONS))
    return folder / "config.yaml"


def total_of(number: int) -> int:
    """The result of a run: the doubles of its three parts."""
    return sum(2 * (PARTS * number + part) for part in range(PARTS))


def double(asked: Asked) -> bytes:
    """What the server says of one part."""
    return answer(orjson.dumps({"value": 2 * int(asked.target.removeprefix("/"))}))


async def trigger(broker: Broker, numbers: range) -> None:
    """Start a run for each number, as a client does that asks again until it is answered."""
    inboxes = RouteSubjects("app", "graphs")
    for number in numbers:
        run = f"r{number}"
        body = {"v": 1, "t": "start", "run": run, "graph": "g", "inputs": {"number": number}, "by": "api"}
        inbox = inboxes.inbox(partition_of(run, PARTITIONS))
        message = Outgoing(inbox, orjson.dumps(body), {"Nats-Msg-Id": f"start:{run}"})
        await insist(partial(broker.publish_stored, message))


async def insist(act: Callable[[], Awaitable[object]]) -> None:
    """Until the server, which is killed now and then, has confirmed it."""
    while True:
        with contextlib.suppress(Unknown, Again, ApiError, BrokerError):
            await act()
            return
        await asyncio.sleep(0.05)


@dataclass
class RunLedger:
    """What is wrong; all empty where nothing is. The counts beside say what was looked at."""

    without_record: list[int] = field(default_factory=list)  # runs
    failed: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)  # results
    doubled: list[int] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)
    uncalled: list[int] = field(default_factory=list)  # parts
    keys: list[str] = field(default_factory=list)  # idempotency keys of several parts, or parts of several
    left_over: list[str] = field(default_factory=list)  # subjects
    counts: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to complain about."""
        return any(value for name, value in vars(self).items() if name != "counts")


async def examine(broker: Broker, asked: list[Asked], total: int) -> RunLedger:
    """The ledger of so many runs, and of all that a server was asked for them."""
    found = RunLedger()
    states: dict[str, str] = {}
    async for stored in broker.history("P_app", ["p.app.run.g.>"]):
        if stored.payload:
            record = orjson.loads(stored.payload)
            states[record["run"]] = record["state"]
    found.without_record = [n for n in range(total) if f"r{n}" not in states]
    found.failed = [f"{run}: {state}" for run, state in states.items() if state != "SUCCESS"]
    results: Counter[int] = Counter()
    stream = await broker.find_stream("results.g")
    async for stored in broker.history(stream or "none", ["results.g"]):
        outputs = orjson.loads(stored.payload)["outputs"]
        results[outputs["number"]] += 1
        if outputs["total"] != total_of(outputs["number"]):
            found.wrong.append(outputs)
    found.lost = [n for n in range(total) if not results[n]]
    found.doubled = [n for n, times in results.items() if times > 1]
    keys: dict[str, set[str]] = {}
    calls: Counter[str] = Counter()
    for each in asked:
        keys.setdefault(each.headers.get("idempotency-key", ""), set()).add(each.target)
        calls[each.target] += 1
    found.uncalled = [n for n in range(PARTS * total) if not calls[f"/{n}"]]
    found.keys = [key for key, targets in keys.items() if len(targets) > 1 or not key]
    if len(keys) != len(calls):
        found.keys.append(f"{len(keys)} keys for {len(calls)} parts")
    kept = [f"p.app.{kind}.>" for kind in ("ctx", "in", "timer", "seen", "gone")]
    found.left_over = [s.subject for s in await broker.last_of("P_app", kept) if s.payload]
    found.counts = {
        "runs": total,
        "records": len(states),
        "results": results.total(),
        "parts": len(calls),
        "calls": len(asked),
        "calls that were made again": len(asked) - len(calls),
    }
    return found


async def settled(broker: Broker, total: int) -> bool:
    """Whether each run has a result, and the inboxes are empty."""
    if await ledger.count(broker, "results.g") < total:
        return False
    with contextlib.suppress(Unknown, Again, ApiError):
        info = await broker.api("STREAM.INFO.P_app", {"subjects_filter": "p.app.in.>"})
        return not info["state"].get("subjects")
    return False


async def storm(runs: int, kills: int, hosts: int, seed: int = 1) -> RunLedger:
    """The ledger after so many kills of processors and of the server."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as stack:
            web = await stack.enter_async_context(serving(double))
            server = stack.enter_context(EmbeddedServer.start(Path(folder) / "nats"))
            broker = await stack.enter_async_context(connected(server.url))
            config = write_config(Path(folder), web.host)
            working = [start(config, server.url) for _ in range(hosts)]
            began_s, killed = time.monotonic(), Counter[str]()
            try:
                await waited(lambda: broker.stream("P_app"), "the app has its stream", 60)
                feeding = asyncio.create_task(_feed(broker, runs, kills, killed))
                while killed.total() < kills:
                    await asyncio.sleep(chance.uniform(0.2, 1.2))
                    if chance.random() < 0.2:
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.restart)
                        killed["server"] += 1
                    else:
                        number = chance.randrange(hosts)
                        _end(working[number])
                        working[number] = start(config, server.url)
                        killed["processor"] += 1
                await feeding
                await waited(lambda: settled(broker, runs), "each run has its result", 300)
                took_s = time.monotonic() - began_s
            finally:
                for process in working:
                    _end(process)
            found = await examine(broker, web.asked, runs)
            found.counts |= {f"killed: {name}": times for name, times in sorted(killed.items())}
            found.counts["seconds"] = round(took_s)
            return found


async def _feed(broker: Broker, runs: int, kills: int, killed: Counter[str]) -> None:
    """Start the runs, no faster than the kills come."""
    each = max(1, -(-runs // (kills + 1)))
    for number, first in enumerate(range(0, runs, each)):
        while killed.total() < number and killed.total() < kills:  # noqa: ASYNC110 - it is polled
            await asyncio.sleep(0.02)
        await trigger(broker, range(first, min(first + each, runs)))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the storm, print the ledger, and say by the exit code whether it is clean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = asyncio.run(storm(given.runs, given.kills, given.hosts, given.seed))
    for name, count in found.counts.items():
        say(f"{count:8} {name}")
    for name, wrong in vars(found).items():
        if name != "counts":
            say(f"{len(wrong):8} {name} {wrong[:10] if wrong else ''}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
