"""Secrets of nodes, from the configuration to the server that gets them: what fits, and what no processor
runs with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.context.subjects import GraphSubjects
from processor.embedded import EmbeddedServer
from processor.errors import Faults
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.integration.test_api import done
from tests.running import Running, started
from tests.web import Web, answer, serving

CANARY = "sk-CANARY-0123456789"
# The node of the SDK's README, as it stands there.
README = (Path(__file__).parents[1] / "sandbox" / "exosphere.md").read_text()
[API_NODE] = [
    text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class APINode" in text
]
RULED = API_NODE.replace("api_key: str\n", 'api_key: str = Field(min_length=20, pattern="^sk-")\n').replace(
    "import BaseModel", "import BaseModel, Field"
)
CONFIG = """
app: app
http: off
drain_s: 5
engine: {{partitions: 4}}
secrets:
  api_key: {{file: {folder}/key, hosts: ["{url}"]}}
  api_endpoint: {{file: {folder}/endpoint, hosts: ["{url}"]}}
nodes:
  api:
    file: api.py
    language: python
    outbound: ["{host}"]
    secrets: [api_key, api_endpoint]
    settings: {{database_url: "postgres://db"}}
    partitions: 4
graphs:
  ask:
    nodes: [{{identifier: api, node_name: APINode, inputs: {{user_id: initial, query: q}}}}]
    outputs: {{said: "${{{{ api.outputs.response }}}}"}}
"""


def written(folder: Path, web: Web, key: str = CANARY) -> Path:
    (folder / "api.py").write_text(RULED)
    (folder / "key").write_text(key)
    (folder / "endpoint").write_text(f"{web.url}/v1")
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder, url=web.url, host=web.host))
    return path


async def record(running: Running, run: str) -> dict[str, Any]:
    """What is kept of a run that has ended."""

    async def ended() -> dict[str, Any] | None:
        subjects = [GraphSubjects("app").run("ask", state, run) for state in ("success", "failed")]
        found = [each for subject in subjects for each in await running.stored(subject)]
        return json.loads(found[-1].payload) if found else None

    made: dict[str, Any] = await waited(ended, "the run has ended")
    return made


async def test_a_node_uses_its_secrets_and_never_has_them(
    nats_server: EmbeddedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One begins the URL and one is in a header; neither is in the record or the log. A value that no longer
    fits is named by its rule when it is loaded again, and what ran goes on.
    """
    async with serving(lambda asked: answer(b'{"a": 1}')) as web:
        path = written(tmp_path, web)
        async with started(path, nats_server.url) as running:
            await running.until_ready()
            inputs = {"user_id": "u"}
            await done(running.broker, "graph.trigger", name="ask", inputs=inputs, run_id="r1")
            kept = await record(running, "r1")
            assert (kept["state"], kept["outputs"]) == ("SUCCESS", {"said": '{"a": 1}'})
            [asked] = web.asked
            assert (asked.method, asked.target) == ("POST", "/v1/process")
            assert asked.headers["authorization"] == f"Bearer {CANARY}"
            written(tmp_path, web, "CANARY-that-does-not-fit")
            with pytest.raises(Faults) as refused:
                await running.reload()
            [fault] = refused.value.faults
            assert (fault.code, fault.file) == ("E705", str(tmp_path / "api.py"))
            assert fault.text == (
                "the secret 'api_key' of group api does not fit APINode.Secrets: it breaks pattern ^sk-."
            )
            await done(running.broker, "graph.trigger", name="ask", inputs=inputs, run_id="r2")
            assert (await record(running, "r2"))["state"] == "SUCCESS"
            everything = [found.payload for found in await running.stored("p.app.>")]
        assert not [payload for payload in everything if b"CANARY" in payload or web.url.encode() in payload]
    assert "CANARY" not in caplog.text


async def test_a_processor_does_not_begin_with_a_secret_that_does_not_fit(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """What its nodes would be given is said to be wrong before any of them runs."""
    async with serving() as web:
        config = load(written(tmp_path, web, "sk-CANARY"), {"NATS_URL": nats_server.url})
        service = Service(config, Telemetry())
        try:
            with pytest.raises(Faults, match=r"E705 .*it breaks minLength 20") as refused:
                await service.start(wait=False)
        finally:
            await service.stop()
        assert "CANARY" not in str(refused.value)
