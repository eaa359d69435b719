"""External workers: nodes of graphs in the user's own process, whatever happens to it.

The tests are the engine: they commit executions, and read the results.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from processor.context.subjects import GraphSubjects, RouteSubjects, app_stream, committed_subject
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.graphs.client import StateManager, StateManagerError
from processor.graphs.nodes import BaseNode
from processor.graphs.runtime import Runtime
from processor.jetstream import NS, Broker, Outgoing, WorkQueue, create_consumer
from processor.model import partition_of
from tests.conftest import waited
from tests.integration.test_graph_requests import App, answering, answering_at
from tests.running import Serve

ROOT = Path(__file__).parent.parent.parent
SUBJECTS = GraphSubjects("app")
# Its `execute` does what its input says, and notes that it began.
SOURCE = """
from exospherehost import Runtime, BaseNode
from pydantic import BaseModel
import asyncio, os, pathlib, time

class Api(BaseNode):
    class Inputs(BaseModel):
        act: str
    class Outputs(BaseModel):
        said: str
    class Secrets(BaseModel):
        api_key: str = "none"

    async def execute(self) -> Outputs:
        with open("began", "a") as file:
            file.write(f"{self.run_id}\\n")
        if self.inputs.act == "hang" and "HANG" in os.environ:
            await asyncio.Event().wait()
        if self.inputs.act == "until go":
            while not pathlib.Path("go").exists():
                await asyncio.sleep(0.01)
        if self.inputs.act == "block":
            time.sleep(2.5)
        if self.inputs.act == "die":
            os._exit(9)
        return self.Outputs(said=f"{self.inputs.act} {self.secrets.api_key}")

Runtime(namespace="app", name="test", nodes=[Api], workers=1, batch_size=4).start()
"""


def exec_of(run: str, act: str = "work", **more: Any) -> bytes:
    body = {"v": 1, "t": "exec", "run": run, "x": "api", "a": 1, "kind": "app/Api", "graph": "g", "store": {}}
    return orjson.dumps({**body, "inputs": {"act": act}, **more})


async def send(app: App, *payloads: bytes) -> None:
    subject = committed_subject("app", SUBJECTS.work("app", "Api"))
    for payload in payloads:
        await app.broker.publish_stored(Outgoing(subject, payload))


async def results(app: App, count: int) -> dict[str, dict[str, Any]]:
    """The results by run, as soon as there are so many."""

    async def enough() -> list[Any] | None:
        pattern = SUBJECTS.external("app")
        found = [s async for s in app.broker.history(app_stream("app"), [pattern])]
        for stored in found:
            run = orjson.loads(stored.payload)["run"]
            assert stored.subject == SUBJECTS.external("app", partition_of(run, 4))
        return found if len(found) >= count else None

    found = await waited(enough, f"{count} results", 30)
    assert len(found) == count
    documents = map(orjson.loads, (stored.payload for stored in found))
    return {document["run"]: document for document in documents}


async def until_acknowledged(app: App, left: int = 0) -> None:
    async def is_so() -> bool:
        info = await app.broker.stream(SUBJECTS.work_stream)
        return info is not None and info["state"]["messages"] == left

    await waited(is_so, f"{left} executions are left")


async def short_leases(broker: Broker) -> None:
    """The consumer of the kind, made by hand: what a lost worker has comes again after a second."""
    config = {"durable_name": "app-Api", "filter_subject": SUBJECTS.work("app", "Api")}
    config |= {"ack_policy": "explicit", "ack_wait": NS}  # type: ignore[dict-item]
    await create_consumer(broker.api, SUBJECTS.work_stream, config, name="app-Api")


# A worker that is killed between the result that it stored and the acknowledgement of its execution.
DIES_BEFORE_ACK = """
import os, signal
from processor.jetstream.leases import WorkQueue
WorkQueue.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


class Workers:
    """Processes that run `SOURCE`, in one folder."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self._url = url
        self._running: list[subprocess.Popen[bytes]] = []
        (folder / "worker.py").write_text(SOURCE)
        (folder / "dying.py").write_text(DIES_BEFORE_ACK + SOURCE)

    def start(self, program: str = "worker.py", **env: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, program],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT / "deploy" / "compat"),
                "EXOSPHERE_STATE_MANAGER_URI": self._url,
                "EXOSPHERE_API_KEY": "any",
                **env,
            },
        )
        self._running.append(process)
        return process

    def began(self) -> list[str]:
        file = self.folder / "began"
        return file.read_text().split() if file.exists() else []

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@pytest.fixture
def workers(nats_server: EmbeddedServer, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(nats_server.url, tmp_path)
    yield made
    made.stop()


@asynccontextmanager
async def app_at(server: EmbeddedServer, folder: Path) -> AsyncIterator[App]:
    async with answering(server, folder) as app:
        yield app


async def test_executions_become_results(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """Each once, with the ids of its execution; what is none hurts nobody; SIGTERM ends the worker."""
    async with app_at(nats_server, tmp_path) as app:
        worker = workers.start(PROCESSOR_SECRET_API_KEY="sk-live-4711")
        await send(app, exec_of("r1"), b"nonsense", exec_of("r2", a=3, x="api/split.7"), exec_of("r1"))
        found = await results(app, 2)
        assert found["r1"].pop("ms") >= 0
        assert found["r1"] == {
            "v": 1, "t": "result", "run": "r1", "x": "api", "a": 1,
            "outputs": {"said": "work sk-live-4711"}, "sets": [],
        }  # fmt: skip
        assert (found["r2"]["x"], found["r2"]["a"]) == ("api/split.7", 3)
        await until_acknowledged(app)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0


async def test_a_worker_that_is_killed_leaves_its_executions_to_others(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """What it had begun and what it had only fetched run elsewhere, as the same tries."""
    async with app_at(nats_server, tmp_path) as app:
        await short_leases(app.broker)
        lost = workers.start(HANG="1")
        await send(app, exec_of("r1", "hang"), exec_of("r2", "hang"))
        await waited(lambda: workers.began() == ["r1"], "the first is at it", 20)
        lost.kill()
        workers.start()
        found = await results(app, 2)
        assert [found[run]["outputs"]["said"] for run in ("r1", "r2")] == ["hang none", "hang none"]
        assert {found[run]["a"] for run in found} == {1}
        assert sorted(workers.began()) == ["r1", "r1", "r2"]
        await until_acknowledged(app)


async def test_a_worker_that_is_killed_once_its_result_is_stored_leaves_one_result(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """Another one runs the execution again, as the same try, and what it stores is known already."""
    async with app_at(nats_server, tmp_path) as app:
        await short_leases(app.broker)
        dying = workers.start("dying.py")
        await send(app, exec_of("r1"))
        assert await asyncio.to_thread(dying.wait, 20) == -signal.SIGKILL
        assert set(await results(app, 1)) == {"r1"}
        workers.start()
        await until_acknowledged(app)
        assert workers.began() == ["r1", "r1"]
        assert set(await results(app, 1)) == {"r1"}


async def test_a_worker_that_stops_finishes_what_it_runs(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """What it had only fetched another has at once; then it ends with status 0."""
    async with app_at(nats_server, tmp_path) as app:
        first = workers.start()
        await send(app, exec_of("r1", "until go"), exec_of("r2"), exec_of("r3"))
        await waited(lambda: workers.began() == ["r1"], "the first is at it", 20)
        first.send_signal(signal.SIGTERM)
        workers.start()
        # Long before the leases of the first could have ended.
        assert sorted(await results(app, 2)) == ["r2", "r3"]
        assert first.poll() is None
        (tmp_path / "go").touch()
        assert sorted(await results(app, 3)) == ["r1", "r2", "r3"]
        assert first.wait(20) == 0
        assert sorted(workers.began()) == ["r1", "r2", "r3"]


async def test_what_was_given_back_once_is_sent_anew_by_its_run(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """Workers that stop are not taken for lost ones: of a second one the run is asked for another attempt."""
    async with app_at(nats_server, tmp_path) as app:
        work = SUBJECTS.work("app", "Api")
        queue = WorkQueue(app.broker, SUBJECTS.work_stream, work, name="app-Api", ack_wait_s=30, batch=2)
        await send(app, exec_of("r1", "until go"), exec_of("r2", "until go"))
        for leased in [await queue.next(), await queue.next()]:
            queue.give_back(leased)
        await queue.close()
        worker = workers.start()

        async def has_both() -> bool:
            info = await app.broker.api(f"CONSUMER.INFO.{SUBJECTS.work_stream}.app-Api")
            return bool(info["num_ack_pending"] == 2 and len(workers.began()) == 1)

        await waited(has_both, "it runs one and has fetched the other", 20)
        worker.send_signal(signal.SIGTERM)
        [(other, sent_back)] = (await results(app, 1)).items()
        assert sent_back == {"v": 1, "t": "result", "run": other, "x": "api", "a": 1, "requeue_ms": 1}
        (tmp_path / "go").touch()
        found = await results(app, 2)
        assert found[workers.began()[0]]["outputs"] == {"said": "until go none"}
        assert worker.wait(20) == 0
        await until_acknowledged(app)


async def test_a_node_that_blocks_its_loop_keeps_its_lease(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """It runs longer than a lease, and no other worker gets its execution."""
    async with app_at(nats_server, tmp_path) as app:
        await short_leases(app.broker)
        workers.start()
        await send(app, exec_of("r1", "block"))
        await waited(lambda: workers.began() == ["r1"], "it has begun", 20)
        workers.start()
        await results(app, 1)
        await until_acknowledged(app)
        assert workers.began() == ["r1"]


async def test_an_execution_that_ends_its_workers_is_given_up(
    nats_server: EmbeddedServer, tmp_path: Path, workers: Workers
) -> None:
    """After three that were lost over it the next reports E712, and does not run it."""
    async with app_at(nats_server, tmp_path) as app:
        await short_leases(app.broker)
        await send(app, exec_of("r1", "die"))
        for lost in range(1, 4):
            worker = workers.start()
            await waited(lambda worker=worker: worker.poll() == 9, f"worker {lost} is lost", 30)
        workers.start()
        found = await results(app, 1)
        assert found["r1"]["error"]["code"] == "E712"
        assert found["r1"]["error"]["text"] == (
            "three workers in a row were lost over this execution (not heard of for 1 s each)."
        )
        assert found["r1"]["final"] is True
        assert workers.began() == ["r1"] * 3


class Inner(BaseNode):
    """Runs in the process of the test."""

    class Inputs(BaseModel):
        act: str

    class Outputs(BaseModel):
        said: str

    class Secrets(BaseModel):
        api_key: str
        region: str = "eu"

    async def execute(self) -> Any:
        if self.inputs.act == "much":
            return self.Outputs(said="x" * (2 << 20))
        return self.Outputs(said=f"{self.secrets.api_key} {self.secrets.region}")


Inner.__name__ = "Api"


@asynccontextmanager
async def inner(url: str, **more: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = Runtime("app", "inner", [Inner], state_manager_uri=url, **more).start()
    assert task is not None
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_secrets_come_from_the_program_the_environment_or_the_graph(
    nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order; where there is none the execution fails with E705, which says where one would be."""
    async with app_at(nats_server, tmp_path) as app:
        nodes = [{"identifier": "api", "node_name": "Api"}]

        async def ran(run: str, count: int) -> Any:
            execution = {"x": "api", "state": "QUEUED", "kind": "app/Api", "sent": 1, "created": 1}
            await app.keep(run, "running", executions=[execution])
            await send(app, exec_of(run))
            result = (await results(app, count))[run]
            return result.get("outputs") or result["error"]

        async with inner(nats_server.url):
            missing = await ran("r1", 1)
            assert missing["code"] == "E705"
            assert missing["text"] == (
                "Api needs the secret 'api_key', and graph g has none of that name. Upload it with "
                "the graph, or set PROCESSOR_SECRET_API_KEY."
            )
            request = {"name": "g", "nodes": nodes, "by": "ann", "secrets": {"api_key": "of the graph"}}
            await app.broker.client.request("ctl.app.api.graph.apply", orjson.dumps(request), timeout=10)
            assert await ran("r2", 2) == {"said": "of the graph eu"}
            monkeypatch.setenv("PROCESSOR_SECRET_API_KEY", "of the environment")
            monkeypatch.setenv("PROCESSOR_SECRET_REGION", "us")
            assert await ran("r3", 3) == {"said": "of the environment us"}
        async with inner(nats_server.url, secrets={"api_key": "of the program"}):
            assert await ran("r4", 4) == {"said": "of the program us"}


async def test_a_result_that_no_message_takes_is_an_error(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """E711 says how large it is; the worker goes on."""
    async with app_at(nats_server, tmp_path) as app, inner(nats_server.url, secrets={"api_key": "sesame!"}):
        await send(app, exec_of("r1", "much"), exec_of("r2"))
        found = await results(app, 2)
        assert found["r1"]["error"]["code"] == "E711"
        assert "exceeds the server's max_payload of 1048576" in found["r1"]["error"]["text"]
        assert found["r2"]["outputs"] == {"said": "sesame! eu"}


async def test_a_runtime_waits_for_its_app(nats_server: EmbeddedServer, tmp_path: Path, caplog: Any) -> None:
    """Started first it says so, and goes on when a processor answers."""
    async with inner(nats_server.url, secrets={"api_key": "sesame!"}):
        await waited(lambda: "no processor of app 'app' answered" in caplog.text, "it says that it waits")
        async with app_at(nats_server, tmp_path) as app:
            await send(app, exec_of("r1"))
            await results(app, 1)


async def test_a_kind_that_the_app_refuses_ends_the_runtime(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """With what is wrong with it, and not silently."""
    async with app_at(nats_server, tmp_path) as app:
        own = orjson.dumps(
            {
                "v": 1,
                "inputs": {},
                "outputs": {},
                "secrets": [],
                "where": "pool",
                "group": "lib",
                "doc": "",
                "at": "",
            }
        )
        await app.broker.publish_stored(Outgoing(SUBJECTS.kind("app", "Api"), own))
        async with inner(nats_server.url) as task:
            with pytest.raises(StateManagerError, match=r"E708 .*app/Api is a kind of group 'lib'"):
                await task


PAGE = ROOT / "docs" / "operate" / "permissions.md"
ROWS = re.findall(
    r"^\| (worker|client) \| (publish|subscribe) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE
)
PLACES = {"<app>": "app", "<namespace>": "app", "<node>": "Api"}


def user(name: str) -> str:
    """A user of that name with what the page lists for it."""
    may: dict[str, list[str]] = {"publish": [], "subscribe": []}
    for who, what, cell in ROWS:
        for subject in re.findall(r"`([^`]+)`", cell) if who == name else ():
            for place, value in PLACES.items():
                subject = subject.replace(place, value)
            may[what].append(subject)
    allowed = ", ".join(f"{what}: {{allow: {json.dumps(subjects)}}}" for what, subjects in may.items())
    return f'{{user: {name}, password: "pw", permissions: {{{allowed}}}}}'


async def test_the_permissions_of_a_worker_and_a_client_are_enough(serve: Serve, tmp_path: Path) -> None:
    """As the page lists them; a worker cannot answer for another namespace."""
    users = f'{{user: app, password: "pw"}}, {user("worker")}, {user("client")}'
    url = await serve(f'jetstream {{store_dir: "{tmp_path / "nats"}"}}\nauthorization {{users: [{users}]}}')
    at = {who: url.replace("://", f"://{who}:pw@") for who in ("app", "worker", "client")}
    async with answering_at(at["app"], tmp_path) as app, inner(at["worker"], secrets={"api_key": "sesame!"}):
        await send(app, exec_of("r1"))
        assert (await results(app, 1))["r1"]["outputs"] == {"said": "sesame! eu"}
        await until_acknowledged(app)
        await app.define("g")
        manager = StateManager("app", at["client"])
        started = await manager.trigger("g", {"user": "ann"})
        assert (await manager.run(started["run_id"]))["state"] == "CREATED"
        with pytest.raises(StateManagerError, match=r"E403 .*publish to ctl\.app\.api\.graph\.cancel"):
            await manager.cancel(started["run_id"])
        await manager.close()
        worker = await Broker.connect({"servers": [at["worker"]]}, name="test", needs_jetstream=False)
        for subject in (SUBJECTS.external("other", 0), RouteSubjects("app", "graphs").inbox(0)):
            with pytest.raises(BrokerError, match=f"E403 .*publish to {re.escape(subject)}"):
                await worker.publish_stored(Outgoing(subject, b"{}"))
        await worker.close()


def test_a_runtime_without_a_server_or_with_another_kind_of_address_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is connected, with the form that an address has here."""
    for name in ("EXOSPHERE_STATE_MANAGER_URI", "NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match="give state_manager_uri, or set EXOSPHERE_STATE_MANAGER_URI or NATS_URL"
    ):
        Runtime("app", "r", [Inner])
    uri = "https://user:secret@your-state-manager.exosphere.host"
    with pytest.raises(ValueError) as caught:
        Runtime("app", "r", [Inner], state_manager_uri=uri)
    assert "nats://your-state-manager.exosphere.host:4222" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Runtime("app", "r", [Inner], state_manager_uri="nats://localhost", batch_size=0)
