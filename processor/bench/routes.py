"""One case of ours, measured from outside: real `processor run` processes on real servers.

For throughput the processors are stopped (SIGSTOP) while the input is filled, and go on together; the end is
the time that the server gave the last position. Processor time is what host, guests and servers used in
between. Latency is the server's time of an output less the publisher's time of its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from processor.bench.cases import NODES, Case
from processor.bench.load import GRAPH_PARTITIONS, DocumentSource, RunSource, give_up, http_server, keep
from processor.bench.processes import AGAIN, Servers, cpu_s, descendants, free_ports, now_s, own_mb, rss_mb
from processor.context.subjects import app_stream, audit_stream, committed_subject
from processor.errors import BrokerError
from processor.jetstream import NS, ApiError, Broker
from processor.model import Delivery
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from processor.subject import republished

Figures = dict[str, float]

_LEVELS = (10, 50, 90)  # percent of capacity
_POLL_S = 0.1
_DEADLINE_S = 600.0
_WARM_MESSAGES = 500
_SAMPLES = 100
_CROWD_S = 20.0  # the kernel counts in hundredths of a second
_AHEAD_MESSAGES = 20_000
_REDRIVEN_AT_ONCE = 250
_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scale:
    """How long a case takes: a factor on its messages, and seconds of each latency level (0: none)."""

    messages: float = 1.0
    latency_s: float = 2.0


async def measure(case: Case, servers: Servers, folder: Path, app: str, scale: Scale) -> Figures:
    """The figures of one round of a case. Raises BrokerError E404 for processors that do not get ready."""
    broker = await Broker.connect({"servers": servers.url.split(",")}, name="bench", wait=True)
    try:
        async with contextlib.AsyncExitStack() as stack:
            http_port = await stack.enter_async_context(http_server())
            config = write_config(case, folder, app, http_port)
            if case.kind == "endurance":  # the disk is not what is measured
                kept = {"name": f"{app}-in", "subjects": [f"{app}-in.>"], "max_age": 60 * NS}
                await broker.create_stream({**kept, "allow_direct": True})
            if case.kind == "waiting":
                return await _waiting(
                    case, config, servers, broker, max(100, int(case.messages * scale.messages))
                )
            apps = await stack.enter_async_context(_running(case, config, servers))
            measured = _Case(case, servers, broker, apps, app)
            if case.kind == "endurance":
                return await measured.endurance(max(5.0, case.seconds * scale.messages))
            if case.kind == "idle":
                return await measured.idle(max(20, int(case.messages * scale.messages)))
            if case.kind == "graph":
                return await measured.graph(scale)
            await measured.warm()
            if case.kind == "redrive":
                return await measured.redrive(max(100, int(case.messages * scale.messages)))
            figures = (
                await measured.crowd(max(2.0, _CROWD_S * scale.messages)) if case.kind == "crowd" else {}
            )
            figures |= await measured.throughput(max(100, int(case.messages * scale.messages)))
            if case.has_latency and scale.latency_s:
                figures |= await measured.latencies(figures["messages_per_s"], scale.latency_s)
            return figures
    finally:
        await _clean(broker, app)
        await broker.close()


def write_config(case: Case, folder: Path, app: str, http_port: int) -> Path:
    """The configuration of a case and its Runnable, as files."""
    (folder / "runnable.py").write_text(
        case.source.replace("$http", str(http_port)).replace("$ms", str(case.server_ms))
    )
    replicas = 3 if case.servers == 3 else 1
    routes: dict[str, Any] = {}
    for number in range(0 if case.graph else case.routes):
        lines = {"output": "$out.x", **case.lines}
        routes[f"r{number}"] = {
            "input": {"subject": f"{app}-in.{number}.*", "create": True},
            "runnable": "runnable.py",
            **orjson.loads(orjson.dumps(lines).replace(b"$out", f"{app}-out-{number}".encode())),
        }
        if routes[f"r{number}"].get("key") == "subject.2":
            routes[f"r{number}"]["key"] = "subject.3"
        if case.is_chain:
            subject = f"{app}-out-{number - 1}.x" if number else f"{app}-in.0"
            routes[f"r{number}"]["input"] = {"subject": subject, "create": not number}
    if case.policy:
        (folder / "policy.toml").write_text(case.policy.replace("$http", str(http_port)))
    config = {
        **case.app_lines,
        **({"policy": ["policy.toml"]} if case.policy else {}),
        "app": app,
        "nats": {"storage": case.storage, "replicas": replicas},
        "logs": {"level": "warning"},
        "outbound": [f"127.0.0.1:{http_port}"],
        "routes": routes,
    }
    if case.graph:
        (folder / "nodes.py").write_text(NODES)
        reach = {"outbound": config["outbound"]} if case.is_outbound else {}
        config |= {
            "engine": {"partitions": GRAPH_PARTITIONS},
            "nodes": {"n": {"file": "nodes.py", **reach}},
            "graphs": {"g": {"nodes": case.graph, "output": {"subject": f"{app}-out-0.x"}}},
        }
        del config["routes"], config["outbound"]
    path = folder / "config.yaml"
    path.write_bytes(orjson.dumps(config))  # JSON is YAML
    return path


@dataclass(slots=True)
class _Processor:
    process: subprocess.Popen[bytes]
    port: int
    started_s: float
    ready_s: float = 0.0

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()
        except OSError:
            return 0, ""

    async def is_ready_or_gone(self) -> bool:
        status, _ = await asyncio.to_thread(self.get, "/readyz")
        return status == 200 or self.process.poll() is not None

    def metrics(self) -> dict[str, float]:
        """Every sample by name, summed over its labels."""
        found: dict[str, float] = {}
        for name, value in _SAMPLE.findall(self.get("/metrics")[1]):
            found[name] = found.get(name, 0.0) + float(value)
        return found


@contextlib.asynccontextmanager
async def _running(case: Case, config: Path, servers: Servers) -> AsyncIterator[list[_Processor]]:
    """The processors of a case, as soon as all of their routes run."""
    apps = []
    try:
        for port in free_ports(case.processes):
            env = {**os.environ, "NATS_URL": servers.url, "PROCESSOR_HTTP_PORT": str(port)}
            command = [sys.executable, "-m", "processor", "run", str(config)]
            process = await asyncio.to_thread(
                subprocess.Popen, command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            apps.append(_Processor(process, port, time.monotonic()))
        for app in apps:
            await _until(app.is_ready_or_gone)
            app.ready_s = time.monotonic()
            if app.process.poll() is not None:
                assert app.process.stderr is not None
                said = app.process.stderr.read().decode(errors="replace").strip().splitlines()
                what = f"a processor of {config} ended: {said[-1] if said else 'silently'}"
                raise BrokerError("E404", what, remedy=AGAIN)
        yield apps
    finally:
        for app in apps:
            app.process.send_signal(signal.SIGCONT)
            app.process.terminate()
        for app in apps:
            try:
                await asyncio.to_thread(app.process.wait, 20)
            except subprocess.TimeoutExpired:
                app.process.kill()
                await asyncio.to_thread(app.process.wait)


async def _until(is_so: Callable[[], Awaitable[bool]]) -> None:
    until_s = time.monotonic() + _DEADLINE_S
    while not await is_so():
        if time.monotonic() > until_s:
            what = f"the processors were not done within {_DEADLINE_S:g} s"
            raise BrokerError("E404", what, remedy=AGAIN)
        await asyncio.sleep(_POLL_S)


class _Case:
    """A case whose processors run."""

    def __init__(
        self, case: Case, servers: Servers, broker: Broker, apps: Sequence[_Processor], app: str
    ) -> None:
        self._case = case
        self._servers = servers
        self._broker = broker
        self._apps = apps
        self._app = app
        self._source = RunSource(case, app) if case.graph else DocumentSource(case, f"{app}-in")
        self._published = 0
        self._seen = -1  # the last sequence of the app's stream, at the last look

    async def warm(self) -> None:
        """Make every route run once, and keep what it is to keep."""
        if self._case.kept:
            self._published += await keep(self._broker, f"{self._app}-in", self._case.kept)
        await self.fill(max(_WARM_MESSAGES, self._case.routes))

    async def throughput(self, count: int) -> Figures:
        """`count` waiting messages, from the moment that the processors may take them to the last commit."""
        before = self._metrics()
        for app in self._apps:
            app.process.send_signal(signal.SIGSTOP)
        await self._source.backlog(self._broker, count)

        async def go_on() -> None:
            for app in self._apps:
                app.process.send_signal(signal.SIGCONT)

        return await self._processed(count, before, go_on)

    async def graph(self, scale: Scale) -> Figures:
        """Runs one at a time, and then many that wait."""
        single = max(3, int(self._case.single * scale.messages)) if self._case.single else 0
        figures = await self.idle(single, warm=3) if single else {}
        if self._case.messages:
            await self.warm()
            figures |= await self.throughput(max(100, int(self._case.messages * scale.messages)))
        return figures

    async def fill(self, count: int) -> None:
        """`count` messages, as soon as all are committed."""
        await self._source.backlog(self._broker, count)
        self._published += count
        await self._done()

    async def redrive(self, count: int) -> Figures:
        """`count` dead letters, from the moment that all are sent back to the last commit.

        What the server does to send them back counts, too.
        """
        letters = DeadLetters(self._broker, self._app)
        await give_up(self._broker, self._source, self._app, count)

        async def send_back() -> None:
            group: list[StoredDeadLetter] = []
            async for letter in letters.find(Filter(route="r0")):
                group.append(letter)
                if len(group) == _REDRIVEN_AT_ONCE:
                    await letters.redrive_all(group)
                    group = []
            await letters.redrive_all(group)

        return await self._processed(count, self._metrics(), send_back)

    async def _processed(self, count: int, before: Figures, begin: Callable[[], Awaitable[None]]) -> Figures:
        """What it takes to process `count` messages that come with `begin`; `before` are the metrics then."""
        self._published += count
        cpu_before = self._cpu_s()
        began_s = now_s()
        await begin()
        await self._done()
        took_s = await self._last_commit_s() - began_s
        used = self._used_since(cpu_before, count)
        after = self._metrics()
        commits = after["processor_commit_seconds_count"] - before["processor_commit_seconds_count"]
        committing_s = after["processor_commit_seconds_sum"] - before["processor_commit_seconds_sum"]
        batches = after["processor_batch_messages_count"] - before["processor_batch_messages_count"]
        return {
            "messages": count,
            "messages_per_s": count / took_s,
            "commits_per_s": commits / took_s,
            "commit_ms": committing_s / max(1, commits) * 1e3,
            "mean_batch": count / max(1, batches),
            **used,
            **self._memory_mb(),
        }

    async def latencies(self, capacity_per_s: float, seconds: float) -> Figures:
        """Percentiles at parts of the capacity; that is found first, with a publisher beside the route."""
        begun_s = now_s()
        published = await self._source.steadily(self._broker, capacity_per_s, seconds)
        self._published += published
        await self._done()
        live_per_s = published / max(seconds, await self._last_commit_s() - begun_s)
        figures: Figures = {"live_messages_per_s": live_per_s}
        for level in _LEVELS:
            took_ms = await self._took(live_per_s * level / 100, seconds)
            figures |= {f"{name}_ms_at_{level}": value for name, value in _percentiles(took_ms).items()}
        return figures

    async def _took(self, rate_per_s: float, seconds: float) -> list[float]:
        heard: list[float] = []
        stream = app_stream(self._app)
        if self._case.lines.get("mode") == "stream":  # its chunks are not stored

            async def hear(delivery: Delivery) -> None:
                if delivery.payload:
                    heard.append((now_s() - orjson.loads(delivery.payload)["sent"]) * 1e3)

            subscription = await self._broker.listen(f"{self._app}-out-0.x", hear)
            self._published += await self._source.steadily(self._broker, rate_per_s, seconds)
            await self._done()
            await subscription.unsubscribe()
            return heard
        info = await self._broker.stream(stream)
        assert info is not None
        start = info["state"]["last_seq"] + 1
        self._published += await self._source.steadily(self._broker, rate_per_s, seconds)
        await self._done()
        pattern = committed_subject(self._app, f"{self._app}-out-0.>")
        async for stored in self._broker.history(stream, [pattern], start_sequence=start):
            heard.append((stored.timestamp_s - orjson.loads(stored.payload)["sent"]) * 1e3)
        return heard

    async def idle(self, count: int, warm: int = 20) -> Figures:
        """One message at a time, 10 ms apart: from its publishing to the sight of its committed output.

        The first `warm` do not count.
        """
        seen: asyncio.Queue[float] = asyncio.Queue()

        def arrived(*_: object) -> None:
            seen.put_nowait(time.perf_counter())

        await self._broker.tap(republished(self._app, f"{self._app}-out-0.>"), arrived)
        await self._broker.flush()
        took_ms = []
        for number in range(count + warm):
            sent_s = time.perf_counter()
            await self._broker.publish(self._source.next())
            async with asyncio.timeout(30):
                after_s = await seen.get() - sent_s
            if number >= warm:
                took_ms.append(after_s * 1e3)
            await asyncio.sleep(0.01)
        self._published += count + warm
        return {f"{name}_ms": value for name, value in _percentiles(took_ms).items()}

    async def crowd(self, seconds: float) -> Figures:
        """How long many routes took to start, and what they cost while nothing comes, right after a run."""
        [app] = self._apps
        before, began_s = cpu_s(app.process.pid) + sum(map(cpu_s, self._guests())), time.monotonic()
        await asyncio.sleep(seconds)
        used_s = cpu_s(app.process.pid) + sum(map(cpu_s, self._guests())) - before
        memory = sum(self._memory_mb().values())
        return {
            "start_s": app.ready_s - app.started_s,
            "idle_cpu_percent": 100 * used_s / (time.monotonic() - began_s),
            "mb_per_route": memory / self._case.routes,
        }

    async def endurance(self, seconds: float) -> Figures:
        """What host and guests hold while the route is always behind by at most a few batches.

        `memory_growth` is the most that they held in the last fifth of the time, to that of the second fifth.
        """
        samples: list[float] = []
        committed, until_s, sample_s = 0, time.monotonic() + seconds, seconds / _SAMPLES
        publishing = asyncio.create_task(self._publish_behind(lambda: committed))
        before, began_s = self._cpu_s(), time.monotonic()
        try:
            while time.monotonic() < until_s and not publishing.done():
                metrics = await asyncio.to_thread(self._metrics)
                committed = int(metrics.get("processor_committed_messages_total", 0))
                if time.monotonic() >= began_s + len(samples) * sample_s:
                    samples.append(sum(self._memory_mb().values()))
                await asyncio.sleep(_POLL_S)
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        if not publishing.cancelled():  # it failed, and the route had nothing to do
            publishing.result()
        took_s = time.monotonic() - began_s
        fifth = len(samples) // 5
        second, last = max(samples[fifth : 2 * fifth]), max(samples[-fifth:])
        return {
            "messages_per_s": committed / took_s,
            **self._used_since(before, committed),
            "mb_in_second_fifth": second,
            "mb_in_last_fifth": last,
            "memory_growth": last / second,
        }

    async def _publish_behind(self, committed: Callable[[], int]) -> None:
        """Publish for ever, and wait while the route is far behind."""
        while True:
            while self._published - committed() > _AHEAD_MESSAGES:  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.01)
            await self._source.backlog(self._broker, _AHEAD_MESSAGES // 20)
            self._published += _AHEAD_MESSAGES // 20

    async def _done(self) -> None:
        """Return when everything that was published is committed."""
        await _until(self._is_done)

    async def _is_done(self) -> bool:
        # The stream tells for next to nothing whether all is at rest. The metrics of a thousand routes would,
        # looked at all the time, be what is measured.
        info = await self._broker.stream(app_stream(self._app))
        assert info is not None
        before, self._seen = self._seen, info["state"]["last_seq"]
        if self._seen != before:
            return False
        self._seen = -1
        found = await asyncio.to_thread(self._metrics)
        done = found.get(self._case.done_metric, 0)
        return done >= self._published * self._case.commits_per_message

    async def _last_commit_s(self) -> float:
        info = await self._broker.stream(app_stream(self._app))
        assert info is not None
        return datetime.fromisoformat(info["state"]["last_ts"]).timestamp()

    def _metrics(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for app in self._apps:
            for name, value in app.metrics().items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _guests(self) -> list[int]:
        return [pid for app in self._apps for pid in descendants(app.process.pid)]

    def _memory_mb(self) -> Figures:
        return {
            "host_rss_mb": sum(rss_mb(app.process.pid) for app in self._apps),
            "guests_mb": sum(map(own_mb, self._guests())),
        }

    def _used_since(self, before: Figures, messages: int) -> Figures:
        """Processor time since then, for a million of so many messages."""
        used_s = {part: after - before[part] for part, after in self._cpu_s().items()}
        return {f"{part}_cpu_s_per_million": seconds / messages * 1e6 for part, seconds in used_s.items()}

    def _cpu_s(self) -> Figures:
        return {
            "host": sum(cpu_s(app.process.pid) for app in self._apps),
            "guest": sum(map(cpu_s, self._guests())),
            "server": sum(map(cpu_s, self._servers.pids)),
        }


async def _waiting(case: Case, config: Path, servers: Servers, broker: Broker, count: int) -> Figures:
    """How a processor starts where `count` runs wait, and what it holds more than where none does."""
    app = config.parent.name
    async with _running(case, config, servers) as apps:
        empty_mb = rss_mb(apps[0].process.pid)
        measured = _Case(case, servers, broker, apps, app)
        began_s = time.monotonic()
        await measured.fill(count)
        filled_s = time.monotonic() - began_s
    async with _running(case, config, servers) as apps:
        return {
            "messages": count,
            "begun_per_s": count / filled_s,
            "start_s": apps[0].ready_s - apps[0].started_s,
            "host_mb_over_empty": rss_mb(apps[0].process.pid) - empty_mb,
            "server_rss_mb": sum(map(rss_mb, servers.pids)),
        }


def _percentiles(took_ms: list[float]) -> Figures:
    if not took_ms:
        return {}
    ordered = sorted(took_ms)
    return {f"p{part}": ordered[min(len(ordered) - 1, len(ordered) * part // 100)] for part in (50, 95, 99)}


async def _clean(broker: Broker, app: str) -> None:
    """Remove what a case made: its store must not weigh on the next."""
    names: list[str] = []
    while page := (await broker.api("STREAM.NAMES", {"offset": len(names)})).get("streams"):
        names += page
    for name in names:
        if name in (app_stream(app), audit_stream(app)) or name.startswith(f"{app}-"):
            with contextlib.suppress(ApiError):
                await broker.api(f"STREAM.DELETE.{name}")
