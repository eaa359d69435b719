"""The server's limits are reached in the middle of the work, and raised: it goes on where it stood."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from processor.embedded import find_binary
from processor.jetstream import Again, Broker, Outgoing, Unknown
from tests.conftest import waited
from tests.running import listens, starter

MANY = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        for query in queries:
            self.context["n"] += 1
            for part in range(query.get("parts", 1)):
                yield {"n": self.context["n"], "part": part, "pad": "x" * query.get("bytes", 0)}
"""
ROUTE = "r: {input: in, runnable: many.py, output: out}"


@dataclass
class Tenant:
    """A server with one account, whose limit on storage can be changed while it runs."""

    conf: Path
    port: int
    kind: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://u:p@127.0.0.1:{self.port}"

    def limit(self, mb: int) -> None:
        """Allow that much of the kind of storage; of the other there is plenty."""
        limits = {"max_mem": 100 << 20, "max_file": 100 << 20}
        limits["max_mem" if self.kind == "memory" else "max_file"] = mb << 20
        account = {"jetstream": limits, "users": [{"user": "u", "password": "p"}]}
        self.conf.write_text(
            f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: "{self.conf.parent}/js" }}\n'
            f"accounts: {json.dumps({'A': account})}\n"
        )
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)


@pytest.fixture(params=["file", "memory"])
def tenant(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[Tenant]:
    (tmp_path / "server").mkdir()
    made = Tenant(tmp_path / "server" / "conf", free_port, request.param)
    made.limit(4)
    command = [str(find_binary()), "-c", str(made.conf), "-l", str(tmp_path / "server" / "log")]
    made.process = subprocess.Popen(command)
    try:
        waited(lambda: listens(free_port), "the server listens")
        yield made
    finally:
        made.process.kill()
        made.process.wait()


async def room(broker: Broker, kind: str) -> int:
    """Bytes that the account may still store."""
    info = await broker.api("INFO")
    used = {"file": "storage", "memory": "memory"}[kind]
    return int(info["limits"][f"max_{used}"]) - int(info[used])


async def test_an_account_without_room_holds_the_route_up_and_nothing_is_skipped_or_doubled(
    tenant: Tenant, tmp_path: Path, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that needs more than there is left is refused (E406), whatever part of it the server kept.

    When the limit is raised, each of its outputs is there once and in order, and so is what came meanwhile.
    """
    # The server answers no commit of which it has stored a part.
    monkeypatch.setattr("processor.jetstream.connection._REQUEST_TIMEOUT_S", 1.0)
    other = "memory" if tenant.kind == "file" else "file"
    processor = starter(tmp_path, tenant.url)
    async with processor(ROUTE, f"nats: {{storage: {tenant.kind}}}", many=MANY) as running:
        broker = running.broker
        await broker.create_stream({"name": "IN", "subjects": ["in"], "storage": other})
        await running.until_ready()
        await running.publish("in", {})
        await running.documents("out", 1)
        await broker.create_stream({"name": "FILL", "subjects": ["fill"], "storage": tenant.kind})
        while (left := await room(broker, tenant.kind)) > 200_000:
            await broker.publish_stored(Outgoing("fill", b"x" * min(left - 150_000, 500_000)))
        await running.publish("in", {"parts": 400, "bytes": 1000}, {})

        def is_refused() -> bool:
            return "E406" in running.telemetry.readiness.blocks.get("route r", "")

        await wait_until(is_refused, "the route says so")
        assert await running.contexts("r") == {"": {"n": 1}}
        tenant.limit(50)

        async def are_copied() -> bool:
            try:
                return len(await running.stored("out")) >= 402
            except (Again, Unknown):  # a server that takes up its configuration anew does not answer
                return False

        await wait_until(are_copied, "the stream of the outputs has them", 30)
        outputs = await running.documents("out", 402)
        assert [(o["n"], o["part"]) for o in outputs] == [(1, 0), *((2, part) for part in range(400)), (3, 0)]
        assert await running.contexts("r") == {"": {"n": 3}}
        await wait_until(lambda: running.telemetry.readiness.blocks == {}, "the route is ready again")
