# ruff: noqa: T201, ASYNC110 - a measurement prints its figures and paces itself
"""Figures of the main job against hand-written nats-py on the same server: `python tests/bench/main_job.py`.

Each round runs every case once, in turn, so that a machine that slows down slows all of them; the median and
the spread of the ratios are printed. Each case is a process of its own on one embedded server with a file
store. The counter route is jailed, stateful and exactly once; the baselines do nothing but read, publish and
acknowledge, at least once.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import orjson

from processor.config import load
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Message
from processor.service import Service
from processor.telemetry import Telemetry

COUNTER = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["counter"] += 1
            outputs.append({"index": self.context["counter"], **query})
        return outputs
"""
DOCUMENT = {"symbol": "AAPL", "price": 123.45, "volume": 1000, "venue": "XNAS", "note": "n" * 110}


async def fill(url: str, stream: str, count: int) -> None:
    broker = await Broker.connect({"servers": [url]}, name="fill", wait=False)
    subject = stream.lower()
    await broker.create_stream({"name": stream, "subjects": [f"{subject}.>"], "allow_direct": True})
    for number in range(count):
        document = {**DOCUMENT, "i": number}
        await broker.publish(Message(f"{subject}.k{number % 64}", orjson.dumps(document)))
        if number % 1000 == 999:
            await broker.flush()
    await broker.flush()
    await broker.close()


async def baseline(url: str, stream: str, count: int, pipelined: bool) -> dict[str, float]:
    """A loop as one would write it: fetch 100, publish each result, acknowledge."""
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name=f"{stream}OUT", subjects=[f"{stream.lower()}out.>"])
    subscription = await js.pull_subscribe(f"{stream.lower()}.>", durable="loop", stream=stream)
    done = 0
    started = time.perf_counter()
    while done < count:
        messages = await subscription.fetch(100, timeout=5)
        acks = []
        for message in messages:
            document = orjson.loads(message.data)
            payload = orjson.dumps({"index": done, **document})
            if pipelined:
                acks.append(await js.publish_async(f"{stream.lower()}out.x", payload))
            else:
                await js.publish(f"{stream.lower()}out.x", payload)
                await message.ack()
            done += 1
        if pipelined:
            await asyncio.gather(*acks)
            for message in messages:
                await message.ack()
    await client.flush()
    seconds = time.perf_counter() - started
    await client.close()
    return {"messages_per_s": count / seconds}


async def route(
    url: str, stream: str, count: int, profiler: cProfile.Profile | None = None, **lines: str
) -> dict[str, float]:
    """The counter route over `count` waiting messages, from its start to its last commit."""
    service, telemetry = make_service(url, stream, **lines)
    started = time.perf_counter()
    if profiler:
        profiler.enable()
    await service.start()
    first = before = 0.0
    while (done := value(telemetry, "processor_committed_messages_total")) < count:
        if done and not first:
            first, before = time.perf_counter(), done
        await asyncio.sleep(0.005)
    ended = time.perf_counter()
    if profiler:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
    memory = rss_mb(os.getpid())
    commits = value(telemetry, "processor_commit_seconds_count")
    await service.stop()
    return {
        "messages_per_s": (count - before) / (ended - first),  # from the first commit on, as the baselines
        "messages_per_s_with_start": count / (ended - started),
        "commits": commits,
        "host_rss_mb": memory,
        "host_cpu_us_per_message": time.process_time() / count * 1e6,
    }


async def latency(url: str, stream: str, count: int, pause_s: float = 0.01) -> dict[str, float]:
    """Publish one message at a time to an idle route; time until its output is seen live."""
    service, telemetry = make_service(url, stream)
    broker = await Broker.connect({"servers": [url]}, name="latency", wait=False)
    await service.start()
    seen: asyncio.Queue[float] = asyncio.Queue()

    async def arrived(_: Any) -> None:
        seen.put_nowait(time.perf_counter())

    await broker.listen(f"live.{stream.lower()}.>", arrived)
    await broker.flush()
    while telemetry.readiness.blocks:
        await asyncio.sleep(0.01)
    took = []
    idle_mb = rss_mb(os.getpid())
    for number in range(count):
        sent = time.perf_counter()
        await broker.publish(Message(f"{stream.lower()}.k", orjson.dumps({**DOCUMENT, "i": number})))
        took.append((await seen.get() - sent) * 1e3)
        await asyncio.sleep(pause_s)
    await service.stop()
    await broker.close()
    took.sort()
    return {"p50_ms": took[len(took) // 2], "p99_ms": took[int(len(took) * 0.99)], "idle_rss_mb": idle_mb}


def make_service(url: str, stream: str, **lines: str) -> tuple[Service, Telemetry]:
    """The counter route on a stream, with other lines of its configuration where they are given."""
    folder = Path(tempfile.mkdtemp(prefix="processor-bench-"))
    (folder / "counter.py").write_text(COUNTER)
    route = {
        "input": f"{{subject: '{stream.lower()}.>', create: true}}",
        "runnable": "counter.py",
        "output": f"{stream.lower()}done.x",
        **lines,
    }
    text = f"app: {stream.lower()}\nhttp: off\nroutes:\n  r:\n"
    path = folder / "config.yaml"
    path.write_text(text + "".join(f"    {name}: {value}\n" for name, value in route.items()))
    telemetry = Telemetry()
    return Service(load(path, {"NATS_URL": url}), telemetry), telemetry


def value(telemetry: Telemetry, name: str) -> float:
    return sum(s.value for family in telemetry.collect() for s in family.samples if s.name == name)


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


CASES: dict[str, Callable[[str, str, int], Any]] = {
    "a_sequential": lambda url, stream, n: baseline(url, stream, n // 10, False),
    "b_pipelined": lambda url, stream, n: baseline(url, stream, n, True),
    "counter": lambda url, stream, n: route(url, stream, n),
    "counter_64_keys": lambda url, stream, n: route(
        url, stream, n, key="subject.2", output=f"{stream.lower()}done.{{key}}"
    ),
    "latency": lambda url, stream, n: latency(url, stream, 300),
    "profile": lambda url, stream, n: route(url, stream, n, cProfile.Profile()),
}


def run_case(name: str, url: str, stream: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", name, "--url", url, "--stream", stream, "-n", str(count)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": path})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-n", type=int, default=30_000, help="messages of each case")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--case", choices=CASES, help="only this one, in this process")
    options.add_argument("--url")
    options.add_argument("--stream", default="S")
    chosen = options.parse_args()
    if chosen.case and chosen.url:
        print(json.dumps(asyncio.run(CASES[chosen.case](chosen.url, chosen.stream, chosen.n))))
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer.start(Path(folder)) as server:
        results: dict[str, list[dict[str, float]]] = {}
        names = [chosen.case] if chosen.case else [name for name in CASES if name != "profile"]
        for number in range(chosen.rounds):
            for name in names:
                stream = f"B{number}{name.replace('_', '').upper()}"
                asyncio.run(fill(server.url, stream, 0 if name == "latency" else chosen.n))
                if name == "profile":
                    print(asyncio.run(CASES[name](server.url, stream, chosen.n)))
                    continue
                results.setdefault(name, []).append(run_case(name, server.url, stream, chosen.n))
                print(name, results[name][-1], file=sys.stderr)
        for name, runs in results.items():
            for figure in runs[0]:
                seen = sorted(run[figure] for run in runs)
                middle = statistics.median(seen)
                print(f"{name:18} {figure:26} {middle:12.2f}  ({seen[0]:.2f} .. {seen[-1]:.2f})")
        for name in ("counter", "counter_64_keys"):
            for base in ("a_sequential", "b_pipelined"):
                if name in results and base in results:
                    ratios = sorted(
                        ours["messages_per_s"] / theirs["messages_per_s"]
                        for ours, theirs in zip(results[name], results[base], strict=True)
                    )
                    middle = statistics.median(ratios)
                    print(f"{name} / {base}: {middle:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
