"""Recipes where there is no jail for shell steps: that is said, once and everywhere, and all else runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.model import partition_of
from tests.conftest import waited
from tests.integration.test_recipe_routes import write_tree
from tests.running import connected
from tests.sandbox.test_jail import CONTAINER

# As the default profile of a container's engine, on a kernel without Landlock.
BARE = CONTAINER.replace("refusing(kernel", "refusing(444, 445, 446, code=errno.ENOSYS)\nrefusing(kernel", 1)
BOOT = f"""
import ctypes, os, runpy, sys
from processor.sandbox import jail
{BARE}
runpy.run_module("processor", run_name="__main__")
"""
PYTHON = "steps: [{name: quiet, type: python, module: orchestrator.steps, function: quiet}]\n"
CONFIG = """
app: app
http: off
engine: {concurrency: 1, partitions: 8}
recipes:
  main: {file: main.yaml, shell: on}
  python: python.yaml
"""


@asynccontextmanager
async def bare(folder: Path, url: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`processor` with these words, where nothing is left to make cells of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BOOT, *words),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "NATS_URL": url, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def start(broker: Broker, run: str, graph: str) -> None:
    message = {"v": 1, "t": "start", "run": run, "graph": graph, "by": "api"}
    await broker.publish_stored(Outgoing(f"p.app.in.graphs.{partition_of(run, 8)}", orjson.dumps(message)))


async def state(broker: Broker, run: str) -> str:
    for stored in await broker.last_of("P_app", [f"p.app.run.*.*.{run}"]):
        if stored.payload:
            return str(orjson.loads(stored.payload)["state"])
    return ""


async def test_without_a_jail_only_shell_steps_do_not_run(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """Their route says so once, and in `status`; a recipe of Python ends, and one with a program waits."""
    write_tree(tmp_path, python=PYTHON)
    (tmp_path / "config.yaml").write_text(CONFIG)
    async with bare(tmp_path, nats_server.url, "check", "config.yaml") as process:
        _, told = await process.communicate()
        assert process.returncode == 2, told
        assert b"config.yaml:6:27 E715 recipes.main.shell: shell steps have no jail here: " in told
    async with (
        connected(nats_server.url) as broker,
        bare(tmp_path, nats_server.url, "run", "config.yaml") as process,
    ):
        await waited(lambda: _has_stream(broker), "the app is there", 30)
        await start(broker, "p1", "python")
        await start(broker, "m1", "main")
        await waited(lambda: _is(broker, "p1", "SUCCESS"), "a recipe of Python ends", 30)
        await waited(lambda: _is(broker, "m1", "RUNNING"), "the other one waits", 30)
        async with bare(tmp_path, nats_server.url, "status", "config.yaml", "--format", "json") as asking:
            said, _ = await asking.communicate()
        assert b"E715 shell steps have no jail here" in said
        process.send_signal(signal.SIGTERM)
        _, logged = await process.communicate()
        assert process.returncode == 0, logged
        assert logged.count(b"E715 shell steps have no jail here") == 1, logged
        assert await state(broker, "m1") == "RUNNING"


async def _has_stream(broker: Broker) -> bool:
    return await broker.stream("P_app") is not None


async def _is(broker: Broker, run: str, wanted: str) -> bool:
    return await state(broker, run) == wanted
