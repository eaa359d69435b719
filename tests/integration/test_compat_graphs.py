"""The programs of exospherehost's guide run here as they were written, from a folder with the wheel.

`exospherehost.md` has them to the letter. Only the address of the manager is another; the test is the engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.context.subjects import GraphSubjects, RouteSubjects, app_stream, committed_subject
from processor.embedded import EmbeddedServer
from processor.jetstream import Outgoing
from tests.conftest import waited
from tests.integration.test_compat import installed, wheel
from tests.integration.test_graph_requests import App, answering

__all__ = ["installed", "wheel"]

GUIDE = (Path(__file__).parent / "exospherehost.md").read_text()
QUICK_START, CONFIGURABLE, ROBUST, API, INITIALIZATION, UPSERT, TRIGGER = re.findall(
    r"```python\n(.*?)```", GUIDE, re.DOTALL
)
APP = "MyProject"
CONFIG = f"app: {APP}\nengine: {{partitions: 1, secrets_key: {{env: KEY}}}}\n"
SUBJECTS = GraphSubjects(APP)
STRING = {"type": "string"}
# What the guide's own nodes would say of themselves: it does not show them.
KINDS = [
    {
        "name": "DataProcessorNode",
        "inputs": {"type": "object", "properties": {"source": STRING, "format": STRING}},
        "outputs": {"type": "object", "properties": {"processed_data": STRING}},
    },
    {
        "name": "DataValidatorNode",
        "inputs": {"type": "object", "properties": {"data": STRING, "validation_rules": STRING}},
        "outputs": {"type": "object", "properties": {"ok": STRING}},
    },
]
# Lets a program await at its top level, as a notebook does.
AWAITING = """
import ast, asyncio, inspect, pathlib
code = compile(pathlib.Path("guide.py").read_text(), "guide.py", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {}
asyncio.run(eval(code, names))
print(names["result"])
"""


@asynccontextmanager
async def app_at(server: EmbeddedServer, folder: Path) -> AsyncIterator[App]:
    (folder / "app").mkdir()
    async with answering(server, folder / "app", CONFIG) as app:
        yield app


def environment(url: str, installed: Path, **env: str) -> dict[str, str]:
    own = {"EXOSPHERE_STATE_MANAGER_URI": url, "EXOSPHERE_API_KEY": "your-api-key"}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "PYTHONUNBUFFERED": "1", **own, **env}


@contextmanager
def worker(folder: Path, source: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    (folder / "worker.py").write_text(source)
    process = subprocess.Popen(
        [sys.executable, "worker.py"], cwd=folder, env=env, text=True, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def ran(folder: Path, source: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(source)
    command = [sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=60)


async def executed(app: App, kind: str, **inputs: str) -> Any:
    """The result of an execution of a kind."""
    run = f"{kind}-{'-'.join(inputs.values())}".replace(" ", "")
    body = {"v": 1, "t": "exec", "run": run, "x": "x", "a": 1, "kind": f"{APP}/{kind}", "graph": "g"}
    subject = committed_subject(APP, SUBJECTS.work(APP, kind))
    await app.broker.publish_stored(Outgoing(subject, orjson.dumps({**body, "inputs": inputs, "store": {}})))

    async def found() -> Any:
        pattern = SUBJECTS.external(APP)
        stored = [orjson.loads(s.payload) async for s in app.broker.history(app_stream(APP), [pattern])]
        return next((result for result in stored if result["run"] == run), None)

    return await waited(found, f"the result of {run}", 30)


async def test_the_quick_start_is_an_external_worker(
    nats_server: EmbeddedServer, tmp_path: Path, installed: Path
) -> None:
    """It registers its node, which is executed, and prints what it prints."""
    async with app_at(nats_server, tmp_path) as app:
        with worker(tmp_path, QUICK_START, environment(nats_server.url, installed)) as process:
            result = await executed(app, "SampleNode", name="ann", data="d1")
            assert result["outputs"] == {"message": "success", "processed_data": "completed:d1"}
            process.terminate()
            out, _ = process.communicate(timeout=20)
        assert (out, process.returncode) == ("Processing data for: ann\n", 0)
        listed = await app.broker.client.request(f"ctl.{APP}.api.graph.kinds", b"", timeout=10)
        assert [kind["kind"] for kind in orjson.loads(listed.data)["kinds"]] == ["MyProject/SampleNode"]


class Service(BaseHTTPRequestHandler):
    """What the node with secrets asks."""

    asked: list[tuple[str, str, Any]] = []  # noqa: RUF012 - of the one test that has it

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        answer = b'{"answer": 42}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Service) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


async def test_every_node_of_the_guide_runs(
    nats_server: EmbeddedServer, tmp_path: Path, installed: Path, endpoint: str
) -> None:
    """The configurable one, the one that raises, and the one that asks a service with its secrets."""
    nodes = "nodes=[ConfigurableNode, RobustNode, APINode]"
    start = f'\nRuntime(namespace="{APP}", name="all", {nodes}).start()\n'
    secrets = {
        "PROCESSOR_SECRET_API_KEY": "sk-live-4711",
        "PROCESSOR_SECRET_API_ENDPOINT": endpoint,
        "PROCESSOR_SECRET_DATABASE_URL": "postgres://db",
    }
    env = environment(nats_server.url, installed, **secrets)
    async with app_at(nats_server, tmp_path) as app:
        with worker(tmp_path, API + CONFIGURABLE + ROBUST + start, env):
            result = await executed(app, "ConfigurableNode", text="abcdef", max_length="3")
            assert result["outputs"] == {"result": "abc", "length": "3"}
            result = await executed(app, "ConfigurableNode", text="abcdef")
            assert result["outputs"] == {"result": "abcdef", "length": "6"}
            result = await executed(app, "RobustNode", data="x")
            assert result["error"]["text"] == "Exception: This is a test error"
            result = await executed(app, "APINode", user_id="u1", query="why")
            assert result["outputs"] == {"response": '{"answer": 42}', "status": "success"}
        asked = ("/process", "Bearer sk-live-4711", {"user_id": "u1", "query": "why"})
        assert Service.asked == [asked]


async def test_a_graph_is_created_and_triggered(
    nats_server: EmbeddedServer, tmp_path: Path, installed: Path
) -> None:
    """`upsert_graph` validates it and keeps its secrets sealed; `trigger` starts a run and returns its id."""
    env = environment(nats_server.url, installed)
    async with app_at(nats_server, tmp_path) as app:
        told = {"runtime": "r", "namespace": APP, "kinds": KINDS}
        await app.broker.client.request(f"ctl.{APP}.api.graph.register", orjson.dumps(told), timeout=10)
        source = f"{UPSERT}\nimport asyncio\nprint(sorted(asyncio.run(create_graph())))\n"
        done = await asyncio.to_thread(ran, tmp_path, source, env)
        assert done.stdout.splitlines() == [
            "Graph created/updated: VALID",
            "['name', 'namespace', 'nodes', 'retry_policy', 'secrets', 'store_config', 'triggers', "
            "'validation_errors', 'validation_status', 'version']",
        ], done.stderr
        shown = await app.broker.client.request(
            f"ctl.{APP}.api.graph.get", orjson.dumps({"name": "my-workflow"}), timeout=10
        )
        assert orjson.loads(shown.data)["secrets"] == ["api_key", "database_url"]
        await app.broker.client.request(
            f"ctl.{APP}.api.graph.apply",
            orjson.dumps({"name": "my-graph", "by": "ann", "nodes": [NODE]}),
            timeout=10,
        )
        initialization = INITIALIZATION.replace("https://your-state-manager.exosphere.host", nats_server.url)
        (tmp_path / "guide.py").write_text(initialization + TRIGGER)
        done = await asyncio.to_thread(ran, tmp_path, AWAITING, env)
        assert done.returncode == 0, done.stderr
        inbox = RouteSubjects(APP, "graphs").inbox()
        [start] = [orjson.loads(s.payload) async for s in app.broker.history(app_stream(APP), [inbox])]
        printed = (
            f"{{'status': 'CREATED', 'run_id': '{start['run']}', 'ignored': ['session_token', 'user_id']}}"
        )
        assert done.stdout.strip() == printed
        assert (start["graph"], start["store"]) == ("my-graph", {"cursor": "0"})


NODE = {
    "identifier": "a",
    "node_name": "DataProcessorNode",
    "inputs": {"source": "initial", "format": "json"},
}


def test_the_address_of_another_manager_is_refused(tmp_path: Path, installed: Path) -> None:
    """As the guide has it the program ends with the form that an address has here."""
    done = ran(tmp_path, INITIALIZATION, environment("nats://127.0.0.1:1", installed))
    assert done.returncode == 1
    assert "ValueError: state_manager_uri begins with https://" in done.stderr
    assert "nats://your-state-manager.exosphere.host:4222" in done.stderr
