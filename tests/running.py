"""A processor running inside the test, against a real server and with real guests.

`processor` is the fixture that starts one; `tests/integration` and `tests/guide` have it in their conftest.
What a test does with the running processor, any NATS client can do. `serve` starts servers with a
configuration of their own, for tests about logins and permissions.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from processor.config import load
from processor.context import reading
from processor.embedded import EmbeddedServer, find_binary
from processor.jetstream import Broker, Outgoing, Stored
from processor.model import Delivery
from processor.sandbox import values
from processor.sandbox.host import Zygote
from processor.sandbox.jail import JailReport
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited

# Numbers the documents of each key in its context, and fails for one with `fails`, saying what is there.
COUNT = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            if query.get("fails"):
                raise ValueError(query["fails"])
            self.context["n"] += 1
            outputs.append({"i": query["i"], "n": self.context["n"]})
        return outputs
"""
# The next version of it, which fails for none.
REPAIRED = COUNT.replace('query.get("fails")', "False")


class Running:
    """A running processor and a client beside it, for what users do with any NATS client."""

    def __init__(
        self, service: Service, telemetry: Telemetry, broker: Broker, path: Path, app: str = "app"
    ) -> None:
        self.app = app
        self.service = service
        self.telemetry = telemetry
        self.broker = broker
        self.path = path

    async def reload(self, *, may_remove: bool = False, **sources: str) -> list[str]:
        """Change Runnables and load the configuration again, as SIGHUP does; the routes that were changed."""
        write_sources(self.path.parent, sources)
        config = load(self.path, {"NATS_URL": self.broker.address})
        return await self.service.reload(config, may_remove=may_remove)

    async def until_ready(self) -> None:
        """Return when every route runs and its consumer is there to keep what is published from now on."""
        await waited(lambda: self.telemetry.readiness.blocks == {}, "every route runs")
        for name in (await self.broker.api("STREAM.NAMES")).get("streams") or []:
            info = await self.broker.stream(name)
            if info is not None and info["config"].get("retention") == "interest":
                await waited(partial(self._has_interest, name), f"{name} has its consumer")

    async def _has_interest(self, stream: str) -> bool:
        # What the stream's leader counts: a consumer may be listed before it is there.
        info = await self.broker.stream(stream)
        return info is not None and info["state"]["consumer_count"] > 0

    async def publish(self, subject: str, *documents: Any, headers: dict[str, str] | None = None) -> None:
        """Publish documents as JSON, and bytes as they are."""
        for document in documents:
            payload = document if isinstance(document, bytes) else orjson.dumps(document)
            await self.broker.publish(Outgoing(subject, payload, headers or {}))
        await self.broker.flush()

    async def stored(self, pattern: str) -> list[Stored]:
        """What the stream of a subject holds."""
        name = await self.broker.find_stream(pattern)
        return [s async for s in self.broker.history(name, [pattern])] if name else []

    async def payloads(self, pattern: str, count: int) -> list[bytes]:
        """What the stream of a subject holds, as soon as there are `count` messages."""

        async def enough() -> list[Stored] | None:
            found = await self.stored(pattern)
            return found if len(found) >= count else None

        found = await waited(enough, f"{count} messages of {pattern}")
        return [s.payload for s in found]

    async def documents(self, pattern: str, count: int) -> list[Any]:
        """The documents in the stream of a subject, as soon as there are `count`."""
        return [orjson.loads(payload) for payload in await self.payloads(pattern, count)]

    async def dead_letters(self, route: str, count: int = 1) -> list[Stored]:
        """The dead letters of a route, as soon as there are `count`."""

        async def enough() -> list[Stored] | None:
            found = await self.stored(f"p.{self.app}.dlq.{route}.>")
            return found if len(found) >= count else None

        letters: list[Stored] = await waited(enough, f"{count} dead letters of {route}")
        return letters

    async def contexts(self, route: str) -> dict[str, dict[str, Any]]:
        """The committed contexts of a route by key, decoded."""
        return {
            key: {n: values.decode(v) for n, v in items.items() if v != values.TOMBSTONE}
            async for key, items in reading.read(self.broker, self.app, route)
        }

    async def listen(self, subject: str) -> list[Delivery]:
        """What is published to a subject from now on; grows as messages come."""
        heard: list[Delivery] = []

        async def hear(delivery: Delivery) -> None:
            heard.append(delivery)

        await self.broker.listen(subject, hear)
        await self.broker.flush()
        return heard

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample on the metrics page; 0 where it does not exist."""
        for family in text_string_to_metric_families(self.telemetry.page().decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0


async def problems_of(running: Running) -> list[str]:
    """What `check --server` finds wrong with the configuration that runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "check", str(running.path), "--server", "--format", "json"),
        env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    found: list[str] = json.loads(out)["problems"]
    return found


@asynccontextmanager
async def connected(urls: str) -> AsyncIterator[Broker]:
    """A client of the server, or of the servers with commas between them."""
    broker = await Broker.connect({"servers": urls.split(",")}, name="test", wait=False)
    try:
        yield broker
    finally:
        await broker.close()


async def is_empty(broker: Broker, stream: str) -> bool:
    info = await broker.stream(stream)
    return info is not None and info["state"]["messages"] == 0


def pretend_jail(monkeypatch: pytest.MonkeyPatch, layers: dict[str, str]) -> None:
    """Processors that start from now on find a jail of these layers on this machine."""
    start_zygote = Zygote.start

    async def start() -> Zygote:
        zygote = await start_zygote()
        zygote.report = JailReport.of(layers)
        return zygote

    monkeypatch.setattr("processor.service.Zygote.start", start)


def write_sources(folder: Path, sources: Mapping[str, str]) -> None:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def processor(tmp_path: Path, nats_server: EmbeddedServer) -> Start:
    """`async with processor(routes, name=source, ...)`: run these routes until the block ends.

    Each source becomes the file `<name>.py` beside the configuration. A second block in one test is a second
    life of the same app.

    `routes` is the YAML below `routes:`; other keys of the configuration go into `top`, its name into `app`.
    """
    return starter(tmp_path, nats_server.url)


def starter(folder: Path, url: str) -> Start:
    """What `processor` is, for a server at `url`."""

    @asynccontextmanager
    async def start(routes: str, top: str = "", app: str = "app", **sources: str) -> AsyncIterator[Running]:
        write_sources(folder, sources)
        path = folder / "config.yaml"
        below = textwrap.indent(textwrap.dedent(routes), "  ")
        path.write_text(f"app: {app}\nhttp: off\ndrain_s: 5\n{top}\nroutes:\n{below}")
        async with started(path, url) as running:
            yield running

    return start


@asynccontextmanager
async def started(path: Path, url: str, **env: str) -> AsyncIterator[Running]:
    """The app of a configuration file, running at the server at `url` until the block ends."""
    telemetry = Telemetry()
    config = load(path, {"NATS_URL": url, **env})
    service = Service(config, telemetry)
    async with connected(url) as broker:
        try:
            await service.start(wait=False)
            await waited(
                lambda: "the route is starting" not in telemetry.readiness.blocks.values(),
                "routes have started",
            )
            yield Running(service, telemetry, broker, path, config.app)
        finally:
            await service.stop()


Serve = Callable[[str], Awaitable[str]]


@pytest.fixture
def serve(tmp_path: Path, free_port: int) -> Iterator[Serve]:
    """`serve(conf)` starts a server with these lines of configuration and returns its address."""
    running: list[subprocess.Popen[bytes]] = []

    async def start(conf: str) -> str:
        path = tmp_path / "server.conf"
        path.write_text(f'listen: "127.0.0.1:{free_port}"\n{conf}\n')
        command = [str(find_binary()), "-c", str(path), "-l", str(tmp_path / "server.log")]
        running.append(subprocess.Popen(command))  # noqa: ASYNC220 - it returns at once
        await waited(lambda: listens(free_port), "the server listens")
        return f"nats://127.0.0.1:{free_port}"

    yield start
    for process in running:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
