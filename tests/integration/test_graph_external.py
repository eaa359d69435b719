"""Graphs whose nodes run in the user's own process, on a processor that runs them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.cli.terminal import EXIT_FAILED, EXIT_OK
from processor.config import load
from processor.embedded import EmbeddedServer
from processor.graphs.client import (
    GraphNodeModel,
    RetryPolicyModel,
    RetryStrategyEnum,
    StateManager,
    StateManagerError,
)
from processor.graphs.vault import new_key
from tests.conftest import waited
from tests.integration.test_compat_graphs import AWAITING, INITIALIZATION, QUICK_START, TRIGGER, UPSERT
from tests.integration.test_graph_cli import ran
from tests.integration.test_graph_requests import App
from tests.integration.test_graph_runtime import ROOT
from tests.running import Running, started

APP = "MyProject"
CONFIG = """\
app: MyProject
http: off
drain_s: 5
engine: {partitions: 4, secrets_key: {env: KEY}}
nodes: {lib: lib.py}
"""
LIB = """
from exospherehost import BaseNode
from pydantic import BaseModel

class Upper(BaseNode):
    class Inputs(BaseModel):
        text: str
    class Outputs(BaseModel):
        text: str
    async def execute(self):
        return self.Outputs(text=self.inputs.text.upper())
"""
# Notes that it began; what it then does is in its inputs.
WORKER = """
from exospherehost import Runtime, BaseNode, PruneSignal, ReQueueAfterSignal
from pydantic import BaseModel
import asyncio, os

class Api(BaseNode):
    class Inputs(BaseModel):
        act: str
        n: int = 0
    class Outputs(BaseModel):
        said: str
    class Secrets(BaseModel):
        api_key: str = "none"

    async def execute(self):
        with open("began", "a") as file:
            file.write(f"{self.run_id} {self.execution} {self.attempt}\\n")
        match self.inputs.act:
            case "hang" if "HANG" in os.environ:
                await asyncio.Event().wait()
            case "raise":
                raise ValueError(f"no {self.secrets.api_key}")
            case "raise once" if self.attempt == 1:
                raise ValueError("once")
            case "split":
                return [self.Outputs(said=str(n)) for n in range(self.inputs.n)]
            case "prune":
                raise PruneSignal({"why": "enough"})
            case "again" if self.inputs.n < 2:
                raise ReQueueAfterSignal(0.01, inputs={"act": "again", "n": self.inputs.n + 1})
        self.store.set("last", self.inputs.act)
        return self.Outputs(said=f"{self.inputs.act} {self.secrets.api_key}")

class DataProcessorNode(BaseNode):
    class Inputs(BaseModel):
        source: str
        format: str
    class Outputs(BaseModel):
        processed_data: str
    async def execute(self):
        return self.Outputs(processed_data=f"{self.inputs.source} as {self.inputs.format}")

class DataValidatorNode(BaseNode):
    class Inputs(BaseModel):
        data: str
        validation_rules: str
    class Outputs(BaseModel):
        result: str
    async def execute(self):
        return self.Outputs(result=f"{self.inputs.data}, {self.inputs.validation_rules}")

Runtime(namespace="MyProject", name="test", nodes=[Api, DataProcessorNode, DataValidatorNode]).start()
"""


class Project:
    """A processor that runs graphs, a client, and what runs beside it."""

    def __init__(self, running: Running, folder: Path, env: dict[str, str]) -> None:
        self.running = running
        self.folder = folder
        self.env = env
        self.manager = StateManager(APP, running.broker.address)
        self.workers: list[subprocess.Popen[str]] = []

    def start(self, source: str = WORKER, **env: str) -> subprocess.Popen[str]:
        """A worker of that source."""
        path = self.folder / f"worker{len(self.workers)}.py"
        path.write_text(source)
        own = {**self.env, "PYTHONUNBUFFERED": "1", **env}
        command = [sys.executable, str(path)]
        process = subprocess.Popen(command, cwd=self.folder, env=own, text=True, stdout=subprocess.PIPE)
        self.workers.append(process)
        return process

    def began(self) -> list[list[str]]:
        """Run, execution and attempt of each execution that a worker began."""
        file = self.folder / "began"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    async def command(self, *words: str) -> Any:
        config = load(self.running.path, {"KEY": self.env["KEY"]})
        return await ran(App(self.running.broker, config), *words)


@asynccontextmanager
async def project_at(server: EmbeddedServer, folder: Path) -> AsyncIterator[Project]:
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "lib.py").write_text(LIB)
    key = new_key()
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "deploy" / "compat"),
        "EXOSPHERE_STATE_MANAGER_URI": server.url,
        "EXOSPHERE_API_KEY": "any",
        "KEY": key,
    }
    async with started(folder / "config.yaml", server.url, KEY=key) as running:
        await running.until_ready()
        project = Project(running, folder, env)
        try:
            yield project
        finally:
            await project.manager.close()
            for worker in project.workers:
                worker.kill()
                worker.wait()
                assert worker.stdout is not None
                worker.stdout.close()


def node(
    identifier: str, inputs: dict[str, Any], *next_nodes: str, kind: str = "Api", **more: Any
) -> GraphNodeModel:
    return GraphNodeModel(
        node_name=kind, identifier=identifier, inputs=inputs, next_nodes=list(next_nodes), **more
    )


async def test_the_guide_from_its_quick_start_to_a_result(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Its worker runs a node of a graph; its programs define one and start a run, as they were written."""
    async with project_at(nats_server, tmp_path) as project:
        manager = project.manager
        quick = project.start(QUICK_START)
        nodes = [
            GraphNodeModel(
                node_name="SampleNode", namespace=APP, identifier="sample",
                inputs={"name": "ann", "data": "d1"}, next_nodes=["upper"],
            ),
            node("upper", {"text": "${{ sample.outputs.processed_data }}"}, kind="Upper"),
        ]  # fmt: skip
        await manager.upsert_graph("quick", nodes, polling_interval=0)
        started = await manager.trigger("quick", {"name": "bob", "other": 1})
        assert started["ignored"] == ["other"]
        record = await ended(manager, started["run_id"])
        assert record["state"] == "SUCCESS", record
        assert [each["outputs"] for each in record["executions"]][-1] == {"text": "COMPLETED:D1"}
        quick.send_signal(signal.SIGTERM)
        assert (await asyncio.to_thread(quick.communicate))[0] == "Processing data for: bob\n"
        project.start()
        (tmp_path / "guide.py").write_text(f"{UPSERT}\nresult = await create_graph()\n")
        (tmp_path / "awaiting.py").write_text(AWAITING)
        created = await program(project, "awaiting.py")
        assert created.startswith("Graph created/updated: VALID\n")
        address = INITIALIZATION.replace("https://your-state-manager.exosphere.host", nats_server.url)
        trigger = TRIGGER.replace('"my-graph"', '"my-workflow"')  # the one that the guide has created
        trigger = trigger.replace('"cursor": "0"', '"cursor": "0", "batch_id": "7"')  # which it requires
        (tmp_path / "guide.py").write_text(address + trigger)
        run_id = eval(await program(project, "awaiting.py"))["run_id"]
        record = await ended(manager, run_id)
        assert record["state"] == "SUCCESS"
        assert [each["outputs"] for each in record["executions"]][-1] == {
            "result": "initial as json, initial"
        }
        assert record["store"] == {"cursor": "0", "batch_size": "100", "batch_id": "7"}


async def program(project: Project, file: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, file), cwd=project.folder, env=project.env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def ended(manager: StateManager, run: str) -> dict[str, Any]:
    """The record of a run that has ended."""

    async def is_so() -> Any:
        found = await manager.run(run)
        return found if found["state"] in ("SUCCESS", "FAILED", "CANCELLED") else None

    found: dict[str, Any] = await waited(is_so, f"run {run} has ended", 40)
    return found


async def test_whatever_a_node_does_its_run_ends(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Errors are retried as the graph says; splits, prunes, requeues and secrets are as in a guest."""
    async with project_at(nats_server, tmp_path) as project:
        manager = project.manager
        project.start()
        fixed = RetryPolicyModel(max_retries=1, strategy=RetryStrategyEnum.FIXED, backoff_factor=1)
        more: dict[str, Any] = {"retry_policy": fixed, "polling_interval": 0}
        chain = [node("a", {"act": "work", "n": 0}, "b"), node("b", {"act": "${{ a.outputs.said }}"})]
        await manager.upsert_graph("chain", chain, secrets={"api_key": "sk-live-4711"}, **more)

        async def came_of(act: str, n: int = 0) -> dict[str, Any]:
            started = await manager.trigger("chain", {"act": act, "n": n})
            return await ended(manager, started["run_id"])

        record = await came_of("work")
        assert [each["outputs"] for each in record["executions"]][-1] == {
            "said": "work sk-live-4711 sk-live-4711"
        }
        assert record["store"] == {"last": "work sk-live-4711"}
        assert (await came_of("raise once"))["state"] == "SUCCESS"
        record = await came_of("again")
        assert (record["state"], record["executions"][0]["requeues"]) == ("SUCCESS", 2)
        record = await came_of("prune")
        assert [each["state"] for each in record["executions"]] == ["PRUNED"]
        record = await came_of("split", 3)
        assert record["counts"]["SUCCESS"] == 4
        record = await came_of("raise")
        assert record["state"] == "FAILED"
        [error] = record["errors"]
        assert (error["code"], error["text"]) == ("E304", "ValueError: no ***")
        with pytest.raises(StateManagerError, match="is FAILED: a: E304 ValueError"):
            await manager.result(record["run"])


async def test_a_worker_that_is_killed_in_the_middle_leaves_its_run_whole(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The execution runs again on another worker, as the same try, and each run has one result."""
    async with project_at(nats_server, tmp_path) as project:
        manager, broker = project.manager, project.running.broker
        config = {"durable_name": f"{APP}-Api", "filter_subject": f"work.{APP}.{APP}.Api"}
        config |= {"ack_policy": "explicit", "ack_wait": 1_000_000_000}  # type: ignore[dict-item]
        lost = project.start(HANG="1")
        await manager.upsert_graph("g", [node("a", {"act": "hang"})], polling_interval=0)
        await waited(lambda: consumer_is_there(broker), "the worker asks for work", 20)
        await broker.delete_consumer(f"{APP}-work", f"{APP}-Api")
        await broker.api(
            f"CONSUMER.CREATE.{APP}-work.{APP}-Api", {"stream_name": f"{APP}-work", "config": config}
        )
        runs = [(await manager.trigger("g", run_id=f"r{n}"))["run_id"] for n in range(3)]
        assert (await manager.trigger("g", run_id="r0"))["run_id"] == "r0"
        await waited(lambda: len(project.began()) == 3, "all are at work", 30)
        shown = await project.command("run", "config.yaml", "r0", "--format", "human")
        assert (shown.code, "Runtimes have 3 executions of MyProject/Api, 0 wait" in shown.out) == (
            EXIT_OK,
            True,
        )
        lost.kill()
        project.start()
        for run in runs:
            record = await ended(manager, run)
            assert [each["attempt"] for each in record["executions"]] == [1]
            assert record["state"] == "SUCCESS"
        assert sorted(project.began()) == sorted([[run, "a", "1"] for run in runs] * 2)


async def consumer_is_there(broker: Any) -> bool:
    return any(each["name"] == f"{APP}-Api" for each in await broker.consumers(f"{APP}-work"))


async def test_a_run_waits_for_a_worker_and_is_steered_by_command(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Paused, resumed, failed, retried and cancelled, each as the command line says it is."""
    async with project_at(nats_server, tmp_path) as project:
        (tmp_path / "g.yaml").write_text(
            "nodes: [{identifier: a, node_name: Api, inputs: {act: raise}, next_nodes: [b]},"
            ' {identifier: b, node_name: Upper, inputs: {text: "${{ a.outputs.said }}"}}]\n'
            'retry_policy: {max_retries: 0}\noutputs: {text: "${{ b.outputs.text }}"}\n'
        )
        worker = project.start()
        applied = await project.command("apply", "config.yaml", "g.yaml", "--wait", "30s")
        assert applied.code == EXIT_OK, applied.err
        worker.send_signal(signal.SIGTERM)
        await asyncio.to_thread(worker.wait)
        told = await project.command("trigger", "config.yaml", "g", "--run-id", "r1", "-i", "act=work")
        assert told.documents[0]["run_id"] == "r1"

        async def is_queued() -> Any:
            found = await project.manager.run("r1")
            return found["open"] and found["open"][0]["state"] == "QUEUED"

        await waited(is_queued, "its execution is sent", 20)
        shown = (await project.command("run", "config.yaml", "r1")).documents[0]
        assert shown["open"][0]["why"].startswith("Runtimes have 0 executions of MyProject/Api, 1 wait")
        paused = await project.command("pause", "config.yaml", "r1", "--reason", "deploy")
        assert (paused.documents[0]["accepted"], paused.documents[0]["state"]) == (True, "RUNNING")
        project.start()

        async def is_held() -> Any:
            found = await project.manager.run("r1")
            return [each["why"] for each in found["open"] if each["x"] == "b"]

        assert await waited(is_held, "the next node is held", 20) == ["the run is paused"]
        resumed = await project.command("resume", "config.yaml", "r1")
        assert (resumed.code, resumed.documents[0]["state"]) == (EXIT_OK, "SUCCESS")
        failed = await project.command("trigger", "config.yaml", "g", "-i", "act=raise", "--wait", "30s")
        assert failed.code == EXIT_FAILED
        assert "a: E304 ValueError: no none" in failed.err
        good = await project.command("trigger", "config.yaml", "g", "-i", "act=work", "--wait", "30s")
        assert (good.code, good.documents[0]["outputs"]) == (EXIT_OK, {"text": "WORK NONE"})
        words = ("--graph", "g", "--state", "failed", "--yes", "--rate", "50")
        [retried] = (await project.command("retry", "config.yaml", *words)).documents
        await waited(lambda: attempts(project, retried["run"]) == ["1", "2"], "it was tried again", 30)
        assert (await ended(project.manager, retried["run"]))["state"] == "FAILED"


def attempts(project: Project, run: str) -> list[str]:
    return [attempt for name, _, attempt in project.began() if name == run]
