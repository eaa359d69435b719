"""kill -9 of a host at every gap of a shell step: its dispatch, its program, its result, the end of its run.

The next host ends every run once, with the right context, in whose history each change is once. A step whose
result was stored is not run again; one that was cut off is, with nothing of it left of the first time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.delivery.streams import Streams
from processor.embedded import EmbeddedServer
from processor.graphs.history import told
from processor.jetstream import Broker
from tests.conftest import waited
from tests.faults.test_kill import dies, host
from tests.faults.test_kill_graphs import records, send
from tests.running import connected

STEPS = """
def begin(ctx, params):
    ctx.set("n_v1", params["n"], who="begin")
    return {"status": "ok"}


def end(ctx, params):
    ctx.set("n_v1", ctx.get("n_v1") + 1, who="end")
    return {"status": "ok", "seen": len(ctx.get_history("n_v1"))}
"""
SCRIPT = """#!/bin/sh
set -eu
echo "$0" >> orchestrator/Data/ran
if [ -e orchestrator/Data/hang ]; then
  touch orchestrator/Data/began
  while :; do sleep 0.1; done
fi
echo '{"status": "ok"}'
"""
RECIPE = """
test_meta: {test_id: K1}
steps:
  - {name: begin, type: python, module: orchestrator.steps, function: begin, params: {n: 1}}
  - {name: work, type: shell, cmd: [orchestrator/work.sh, %s], writes: orchestrator/Data}
  - {name: end, type: python, module: orchestrator.steps, function: end}
"""
CONFIG = """
app: %s
http: off
engine: {concurrency: 1, partitions: 4}
recipes:
  main: {file: main.yaml, shell: on, output: results.%s}
"""
RUNS = [f"r{n}" for n in range(3)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for all points: each has an app of its own."""
    running = EmbeddedServer.start(tmp_path_factory.mktemp("nats"), memory=True)
    yield running
    running.stop()


def write_app(folder: Path, app: str) -> Path:
    folder.chmod(0o755)  # where root runs the tests, shell steps are nobody
    data = folder / "orchestrator" / "Data"
    data.mkdir(parents=True)
    data.chmod(0o777)
    (folder / "orchestrator" / "steps.py").write_text(STEPS)
    script = folder / "orchestrator" / "work.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (folder / "main.yaml").write_text(RECIPE % app)
    path = folder / "config.yaml"
    path.write_text(CONFIG % (app, app))
    return path


async def ended_well(broker: Broker, app: str) -> dict[str, dict[str, Any]]:
    """The records of all runs, once each is there; what they say is the same as without a kill."""

    async def ended() -> dict[str, dict[str, Any]] | None:
        found = await records(broker, app)
        return found if set(found) == set(RUNS) else None

    found: dict[str, dict[str, Any]] = await waited(ended, "every run has ended", 90)
    for record in found.values():
        assert (record["state"], record["errors"], record["store"]) == ("SUCCESS", [], {"n_v1": 2})
        changes = [(each["who"], each["old"], each["new"]) for each in told(record["history"])["n_v1"]]
        assert changes == [("begin", None, 1), ("end", 1, 2)]
        assert record["executions"][-1]["outputs"] == {"status": "ok", "seen": 2}
    stream = await broker.find_stream(f"results.{app}")
    assert stream is not None
    documents = [orjson.loads(each.payload) async for each in broker.history(stream, [f"results.{app}"])]
    assert sorted(each["run"] for each in documents) == sorted(RUNS)
    return found


@pytest.mark.parametrize(
    "point",
    [
        "half of a dispatch sent",
        "a dispatch stored but not answered",
        "half of a result sent",
        "a result stored but not answered",
        "half of a record sent",
        "a record stored but not answered",
    ],
)
async def test_runs_end_once_wherever_a_host_was_killed(
    point: str, tmp_path: Path, server: EmbeddedServer
) -> None:
    """Only steps whose results were not stored are run twice: one in its commit, and the one behind it."""
    app = "-".join(word[:8] for word in point.split())[:32]
    path = write_app(tmp_path, app)
    async with connected(server.url) as broker:
        await Streams(broker, load(path, {"NATS_URL": server.url})).prepare()
        for run in RUNS:
            await send(broker, app, run, t="start", graph="main", by="api")
        await dies(path, server.url, point)
        with host(path, server.url):
            await ended_well(broker, app)
    ran = (tmp_path / "orchestrator" / "Data" / "ran").read_text().splitlines()
    assert len(RUNS) <= len(ran) <= len(RUNS) + 2


async def test_a_program_ends_with_its_host_and_is_run_again(tmp_path: Path, server: EmbeddedServer) -> None:
    """Killed while a program runs: nothing of that is left, and the next host begins it anew."""
    app = f"p{os.getpid()}"  # no other process has it among its arguments
    path = write_app(tmp_path, app)
    data = tmp_path / "orchestrator" / "Data"
    (data / "hang").touch()
    async with connected(server.url) as broker:
        await Streams(broker, load(path, {"NATS_URL": server.url})).prepare()
        for run in RUNS:
            await send(broker, app, run, t="start", graph="main", by="api")
        with host(path, server.url) as running:
            await waited(lambda: (data / "began").exists(), "the program runs", 60)
            assert programs_of(app)
            running.kill()
            await asyncio.to_thread(running.wait)
        (data / "hang").unlink()
        await waited(lambda: not programs_of(app), "no process of the step is left", 30)
        with host(path, server.url):
            found = await ended_well(broker, app)
    assert len((data / "ran").read_text().splitlines()) == len(RUNS) + 1
    assert [each["attempt"] for record in found.values() for each in record["executions"]] == [1] * 9


def programs_of(app: str) -> list[int]:
    """The processes of this machine that run the script of this app."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            if b"orchestrator/work.sh" in argv and app.encode() in argv:
                found.append(int(entry.name))
    return found
