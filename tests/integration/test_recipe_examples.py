"""The recipes that are shipped in configs/examples/recipes: each does what its page says."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from processor.embedded import EmbeddedServer
from processor.graphs.client import StateManager
from tests.running import Running, started

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples" / "recipes"


def copied(folder: Path, name: str) -> Path:
    """A configuration among copies of the examples."""
    folder.chmod(0o755)  # where root runs the tests, the programs of steps are nobody
    copy = shutil.copytree(EXAMPLES, folder / "recipes", ignore=shutil.ignore_patterns(".processor"))
    (copy / "orchestrator" / "Data" / "archive").chmod(0o777)
    path: Path = copy / f"{name}.yaml"
    path.write_text(path.read_text() + "http: off\n")
    return path


@asynccontextmanager
async def app(folder: Path, name: str, url: str) -> AsyncIterator[tuple[Running, StateManager]]:
    path = copied(folder, name)
    async with started(path, url) as running:
        await running.until_ready()
        manager = StateManager(running.app, url)
        try:
            yield running, manager
        finally:
            await manager.close()


async def test_the_job_of_the_night_packs_a_file(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Its programs count and pack; its step in Python says so."""
    async with app(tmp_path, "nightly", nats_server.url) as (running, manager):
        await manager.trigger("nightly", run_id="r")
        await manager.result("r", 60)
        record = await manager.run("r")
        returned = {each["x"]: each["outputs"] for each in record["executions"]}
        assert returned["count_lines"] == {"status": "ok", "lines": 4}
        packed = tmp_path / "recipes" / record["store"]["report.path_v1"]
        assert returned["archive"] == {"status": "ok", "bytes": packed.stat().st_size}
        [report] = await running.documents("reports.nightly", 1)
        assert (report["run"], report["state"]) == ("r", "SUCCESS")


async def test_each_board_has_its_verdict(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """One passes, one has a value outside of its limits, and its run says which."""
    async with app(tmp_path, "boards", nats_server.url) as (running, manager):
        lines = (EXAMPLES / "board.jsonl").read_bytes().splitlines()
        await running.publish("bench.ready", *map(orjson.loads, lines))
        [good] = await running.documents("boards.SUCCESS", 1)
        [bad] = await running.documents("boards.FAILED", 1)
        store = (await manager.run(good["run"]))["store"]
        assert (store["board.serial_v1"], store["board.ripple_v1"], store["board.verdict_v1"]) == (
            "A-1",
            0.03,
            "pass",
        )
        assert bad["errors"][0]["text"] == "step verdict: board A-2: [3.9] V are outside of its limits"
        events = await running.documents("events.boards", 4)
        assert {each["test_meta"]["test_id"] for each in events} == {"BOARD7"}
