"""Chapter 18: recipes, whose steps share one context, on messages and requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processor.embedded import EmbeddedServer
from processor.graphs.client import StateManager, StateManagerError
from tests.running import Running, started

CONFIG = """
app: app
http: off
recipes:
  board:
    file: board.yaml
    shell: on
    triggers: [{subject: bench.ready, create: true, inputs: {serial: "${{ document.serial }}"}}]
    output: boards.{state}
    events: events.boards
"""
RECIPE = """
test_meta: {test_id: BOARD7, tester: ann}
steps:
  - {name: begin, type: python, module: steps, function: begin, params: {serial: A-0}}
  - {name: left, type: shell, cmd: ./measure.sh, args: {SIDE: left}, depends_on: [begin]}
  - {name: right, type: shell, cmd: ./measure.sh, args: {SIDE: right}, depends_on: [begin]}
  - name: verdict
    type: python
    module: steps
    class: Verdict
    depends_on: [left, right]
    success: {ctx_has_keys: [board.verdict_v1]}
"""
STEPS = """
from orchestrator.scriptlets.python.core.base import BaseScriptlet

def begin(ctx, params):
    assert params["serial"].startswith("A-"), f"{params['serial']} is no board of ours"
    ctx.set("board.serial_v1", params["serial"], who="begin")
    ctx.set("board.state_v1", "new", who="begin")
    return {"status": "ok"}

class Verdict(BaseScriptlet):
    def run(self, ctx, params):
        ctx.set("board.state_v1", "tested", who="verdict")
        ctx.set("board.verdict_v1", "pass", who="verdict")
        return {"status": "ok", "was": [each["new"] for each in ctx.get_history("board.state_v1")]}
"""
MEASURE = """#!/bin/sh
echo "measuring on the $SIDE" >&2
echo "{\\"status\\": \\"ok\\", \\"side\\": \\"$SIDE\\"}"
"""


def write_files(folder: Path) -> None:
    folder.chmod(0o755)  # where root runs this, the programs of steps are nobody
    files = {"config.yaml": CONFIG, "board.yaml": RECIPE, "steps.py": STEPS, "measure.sh": MEASURE}
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


@asynccontextmanager
async def app(folder: Path, server: EmbeddedServer) -> AsyncIterator[tuple[Running, StateManager]]:
    write_files(folder)
    manager = StateManager("app", server.url)
    async with started(folder / "config.yaml", server.url) as running:
        await running.until_ready()
        try:
            yield running, manager
        finally:
            await manager.close()


async def test_the_steps_of_a_run_share_a_context(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Steps in Python and programs, in their order; the record has what each returned, and the context."""
    async with app(tmp_path, nats_server) as (_, manager):
        await manager.trigger("board", inputs={"serial": "A-7"}, run_id="r-1")
        await manager.result("r-1", timeout=30)
        record = await manager.run("r-1")
        assert record["store"] == {
            "board.serial_v1": "A-7",
            "board.state_v1": "tested",
            "board.verdict_v1": "pass",
        }
        returned = {each["x"]: each["outputs"] for each in record["executions"]}
        assert returned["left"] == {"status": "ok", "side": "left"}
        assert returned["verdict"] == {"status": "ok", "was": ["new", "tested"]}


async def test_a_run_remembers_who_changed_what(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Each change has its author, its time, the old value and the new."""
    async with app(tmp_path, nats_server) as (_, manager):
        await manager.trigger("board", run_id="r-2")
        await manager.result("r-2", timeout=30)
        first, second = (await manager.run("r-2"))["history"]["board.state_v1"]
        assert (first["who"], first["old"], first["new"]) == ("begin", None, "new")
        assert (second["who"], second["old"], second["new"]) == ("verdict", "new", "tested")
        assert first["ts"] <= second["ts"]


async def test_a_message_is_a_run(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """What its trigger takes from the message are parameters of the first step."""
    async with app(tmp_path, nats_server) as (running, manager):
        await running.publish("bench.ready", {"serial": "A-8"}, {"serial": "A-9"})
        runs = [each["run"] for each in await running.documents("boards.SUCCESS", 2)]
        records = [await manager.run(run) for run in runs]
        assert sorted(record["store"]["board.serial_v1"] for record in records) == ["A-8", "A-9"]


async def test_a_step_that_fails_ends_its_run(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """It says why, with the `test_meta` of the recipe in the event; no step after it runs."""
    async with app(tmp_path, nats_server) as (running, manager):
        await manager.trigger("board", inputs={"serial": "B-1"}, run_id="r-3")
        with pytest.raises(StateManagerError, match="begin: E716 step begin: B-1 is no board of ours"):
            await manager.result("r-3", timeout=30)
        [event] = await running.documents("events.boards", 1)
        assert (event["event"], event["run"]) == ("failed", "r-3")
        assert event["test_meta"] == {"test_id": "BOARD7", "tester": "ann"}
        assert (await manager.run("r-3"))["counts"] == {"ERRORED": 1}
