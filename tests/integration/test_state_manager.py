"""`StateManager`: what programs of the user's ask of graphs, from whatever loop they have."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.graphs.client import (
    CronTrigger,
    GraphNodeModel,
    RetryPolicyModel,
    RetryStrategyEnum,
    StateManager,
    StateManagerError,
    StoreConfigModel,
    TriggerState,
    UnitesModel,
    UnitesStrategyEnum,
    new_run_id,
    server,
)
from tests.conftest import waited
from tests.integration.test_graph_cli import record
from tests.integration.test_graph_requests import App, answering, answering_at
from tests.running import Serve

USER = {"type": "object", "properties": {"user": {"type": "string"}}}
NODES = [
    GraphNodeModel(
        node_name="Api", namespace="app", identifier="a", inputs={"user": "initial"}, next_nodes=["b"]
    ),
    GraphNodeModel(
        node_name="Api",
        namespace="app",
        identifier="b",
        inputs={"user": "${{ a.outputs.user }}"},
        unites=UnitesModel(identifier="a", strategy=UnitesStrategyEnum.ALL_DONE),
    ),
]


@asynccontextmanager
async def managing(url: str, **more: Any) -> AsyncIterator[StateManager]:
    manager = StateManager("app", url, **more)
    try:
        yield manager
    finally:
        await manager.close()


async def register(app: App) -> None:
    kind = {"name": "Api", "inputs": USER, "outputs": USER}
    told = {"runtime": "r", "namespace": "app", "kinds": [kind]}
    await app.broker.client.request("ctl.app.api.graph.register", orjson.dumps(told), timeout=10)


async def test_a_graph_is_defined_and_read_again(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """With everything that was said of it; of secrets only the names; defined twice it is one version."""
    async with answering(nats_server, tmp_path) as app, managing(nats_server.url) as manager:
        await register(app)
        more: dict[str, Any] = {
            "secrets": {"api_key": "sk-live-4711"},
            "retry_policy": RetryPolicyModel(
                max_retries=1, strategy=RetryStrategyEnum.FIXED, backoff_factor=5
            ),
            "store_config": StoreConfigModel(required_keys=["cursor"], default_values={"cursor": "0"}),
            "triggers": [CronTrigger(expression="0 9 * * 1-5", timezone="Europe/Berlin")],
        }
        graph = await manager.upsert_graph("g", NODES, **more)
        assert (graph["name"], graph["namespace"], graph["secrets"]) == ("g", "app", {"api_key": True})
        assert (graph["validation_status"], graph["validation_errors"]) == ("VALID", [])
        assert [node["identifier"] for node in graph["nodes"]] == ["a", "b"]
        assert graph["nodes"][1]["unites"] == {"identifier": "a", "strategy": "ALL_DONE"}
        assert graph["retry_policy"]["strategy"] == "FIXED"
        assert graph["store_config"]["required_keys"] == ["cursor"]
        cron = {"expression": "0 9 * * 1-5", "timezone": "Europe/Berlin"}
        assert graph["triggers"] == [{"type": "CRON", "value": cron}]
        assert await manager.upsert_graph("g", NODES, **more) == graph
        assert await manager.get_graph("g") == graph


async def test_a_graph_waits_for_its_kinds(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """So long as it is told to; a graph that is at fault says everything at once, and replaces none."""
    async with answering(nats_server, tmp_path) as app, managing(nats_server.url) as manager:
        with pytest.raises(Exception, match=r"timed out after 0 seconds: .*E704 no kind 'app/Api'"):
            await manager.upsert_graph("g", NODES, validation_timeout=0)
        await register(app)
        valid = (await manager.upsert_graph("g", NODES, polling_interval=0))["version"]
        wrong = [
            GraphNodeModel(node_name="Api", identifier="a", inputs={"usr": "x"}, next_nodes=["b", "c"]),
            GraphNodeModel(node_name="Api", identifier="b", inputs={"user": "${{ z.outputs.user }}"}),
        ]
        with pytest.raises(Exception, match="Graph validation failed: INVALID and errors: ") as caught:
            await manager.upsert_graph("g", wrong)
        assert str(caught.value).count("E70") >= 2
        graph = await manager.get_graph("g")
        assert (graph["validation_status"], graph["version"] == valid) == ("INVALID", False)
        assert (await manager.trigger("g"))["status"] == "CREATED"  # of the version that is valid
        with pytest.raises(StateManagerError, match="E602 there is no graph 'h'"):
            await manager.get_graph("h")


async def test_secrets_need_a_key_of_the_app(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Without `engine.secrets_key` none is taken, and the graph is not kept either."""
    text = "app: app\nengine: {}\n"
    async with answering(nats_server, tmp_path, text) as app, managing(nats_server.url) as manager:
        await register(app)
        with pytest.raises(Exception, match=r"E705 secrets cannot be uploaded: .* `engine.secrets_key`"):
            await manager.upsert_graph("g", NODES, secrets={"api_key": "x"})
        with pytest.raises(StateManagerError, match="E602"):
            await manager.get_graph("g")


async def test_a_run_is_followed_to_its_result(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Its outputs, or why there are none; a run that goes on is waited for as long as is said."""
    async with answering(nats_server, tmp_path) as app, managing(nats_server.url) as manager:
        await app.define("g")
        started = await manager.trigger("g", {"user": "ann"}, store={"k": 1}, start_delay=5, run_id="r1")
        assert started == {"status": "CREATED", "run_id": "r1", "ignored": []}
        with pytest.raises(TimeoutError):
            await manager.result("r1", timeout=0.2)
        waiting = asyncio.create_task(manager.result("r1"))
        await app.keep("r1", "success", **record("success", outputs={"total": 3}))
        assert await waiting == {"total": 3}
        error = {"x": "a", "code": "E304", "text": "ValueError: no"}
        await app.keep("r2", "failed", **record("failed", errors=[error]))
        with pytest.raises(StateManagerError, match="E708 run r2 is FAILED: a: E304 ValueError: no"):
            await manager.result("r2")
        assert [run["run"] for run in await manager.runs(state="failed")] == ["r2"]
        assert (await manager.retry("r2", "a", and_after=True))["accepted"] is True
        with pytest.raises(StateManagerError, match="E708 run r1 is SUCCESS: there is nothing to cancel"):
            await manager.cancel("r1")
        start, retry = await app.sent()
        assert (start["delay_ms"], start["store"]) == (5, {"k": 1})
        assert (retry["what"], retry["x"], retry["by"]) == ("retry", "a", "state-manager app")


async def test_a_request_is_asked_again_until_somebody_answers(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """A client that is started first waits; what it asked twice is done once."""
    async with managing(nats_server.url) as manager:
        waiting = asyncio.create_task(manager.trigger("g"))
        async with answering(nats_server, tmp_path) as app:
            await app.define("g")
            # It may have been answered before there was a graph.
            started = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(started[0], dict) or "E602" in str(started[0])
            await manager.trigger("g", run_id="r1")
            await manager.trigger("g", run_id="r1")
            assert [each["run"] for each in await app.sent()].count("r1") == 1


def test_a_manager_serves_one_loop_after_the_other(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """As in programs that call `asyncio.run` for each thing that they do."""
    manager = StateManager("app", nats_server.url)
    ready, done = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with answering(nats_server, tmp_path) as app:
            await app.define("g")
            ready.set()
            await done.wait()

    async def main() -> None:
        serving = asyncio.create_task(serve())
        await ready.wait()
        for run in ("r1", "r2"):
            await asyncio.to_thread(lambda run=run: asyncio.run(manager.trigger("g", run_id=run)))
        done.set()
        await serving
        await manager.close()

    asyncio.run(main())


async def test_a_key_is_a_token_or_names_a_login(serve: Serve, tmp_path: Path) -> None:
    """A server that wants a token gets it; a wrong one is refused as such."""
    url = await serve(f'jetstream {{store_dir: "{tmp_path / "nats"}"}}\nauthorization {{token: "t0ken"}}')
    async with answering_at(url.replace("://", "://t0ken@"), tmp_path) as app:
        await app.define("g")
        async with managing(url, key="t0ken") as manager:
            assert (await manager.trigger("g"))["status"] == "CREATED"
        async with managing(url, key="wrong") as manager:
            with pytest.raises(StateManagerError, match=r"E403 .*refused the credentials"):
                await manager.trigger("g")


def test_the_address_and_the_login_are_read_from_what_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arguments first, then the variables of the SDK, then those of NATS."""
    for name in ("EXOSPHERE_STATE_MANAGER_URI", "EXOSPHERE_API_KEY", "NATS_URL", "NATS_TOKEN", "NATS_USER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no server is named"):
        server(None, None)
    monkeypatch.setenv("NATS_URL", "nats://of-nats:4222")
    monkeypatch.setenv("NATS_TOKEN", "of nats")
    assert server(None, None).url == ("nats://of-nats:4222",)
    assert server(None, None).credentials.token == "of nats"
    monkeypatch.setenv("EXOSPHERE_STATE_MANAGER_URI", "tls://of-the-sdk:4222")
    monkeypatch.setenv("EXOSPHERE_API_KEY", "of the SDK")
    assert server(None, None).url == ("tls://of-the-sdk:4222",)
    assert server(None, None).credentials.token == "of the SDK"
    assert server("nats://given:1", "given").credentials.token == "given"
    with pytest.raises(ValueError, match=r"/app\.creds, which does not exist"):
        server("nats://given:1", str(tmp_path / "app.creds"))
    seed = "SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4"
    assert server("nats://given:1", seed).credentials.nkey_seed == seed
    with pytest.raises(ValueError, match=r"nats://x\.example:4222, or tls://x\.example:4222"):
        server("http://x.example:8000/api", None)
    with pytest.raises(ValueError, match="ftp"):
        server("ftp://x.example", None)


def test_run_ids_sort_as_they_were_made() -> None:
    """They are UUIDs of version 7, and no two are alike."""
    made = [new_run_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {uuid.UUID(each).version for each in made} == {7}
    assert [each[:13] for each in made] == sorted(each[:13] for each in made)
    assert TriggerState(identifier="a", inputs={"x": "1"}).inputs == {"x": "1"}


async def test_a_manager_that_is_closed_opens_again(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """And leaves no thread behind, however often."""
    async with answering(nats_server, tmp_path) as app, managing(nats_server.url) as manager:
        await app.define("g")
        for run in ("r1", "r2"):
            await manager.trigger("g", run_id=run)
            await manager.close()
        await waited(lambda: app.broker.is_connected, "the app is still there")
        assert len(await app.sent()) == 2
