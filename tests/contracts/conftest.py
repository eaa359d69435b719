"""The kinds of storage on which the delivery contract must hold."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from processor.bench.processes import three_servers as three_servers_in
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown
from tests.conftest import waited
from tests.running import connected


@dataclass(frozen=True)
class Storage:
    """Where streams lie: the servers' addresses and the `nats` keys that ask for it."""

    urls: str
    kind: str
    replicas: int
    servers: tuple[subprocess.Popen[bytes], ...] = ()

    @property
    def top(self) -> str:
        return f"nats: {{storage: {self.kind}, replicas: {self.replicas}}}"

    async def create_input(self, broker: Broker, retention: str) -> None:
        """The stream IN, for `in.*`."""
        await broker.create_stream(
            {
                "name": "IN",
                "subjects": ["in.*"],
                "retention": retention,
                "storage": self.kind,
                "num_replicas": self.replicas,
            }
        )


@pytest.fixture(params=["file", "memory", "file, three replicas"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, three_servers: Storage) -> Iterator[Storage]:
    """One server with a file or a memory store, or a cluster of three; empty at the start of each test."""
    if request.param == "file, three replicas":
        asyncio.run(empty(three_servers.urls))
        yield three_servers
    else:
        with EmbeddedServer.start(tmp_path / "nats") as server:
            yield Storage(server.url, request.param, 1)


@pytest.fixture(scope="session")
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """A cluster for all tests that want one: its first election takes seconds."""
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


async def empty(urls: str) -> None:
    async with connected(urls) as broker:
        for name in (await broker.api("STREAM.NAMES")).get("streams") or []:
            await broker.api(f"STREAM.DELETE.{name}")


@contextmanager
def cluster(folder: Path) -> Iterator[Storage]:
    """Three servers that replicate; ready when a stream with three replicas can be made."""
    with three_servers_in(folder) as servers:
        waited(lambda: asyncio.run(is_ready(servers.url)), "the cluster has a leader", 30)
        yield Storage(servers.url, "file", 3, servers.running)


async def is_ready(urls: str) -> bool:
    try:
        async with connected(urls) as broker:
            await broker.create_stream({"name": "PROBE", "subjects": ["probe"], "num_replicas": 3})
    except (BrokerError, ApiError, Again, Unknown):
        return False
    return True
