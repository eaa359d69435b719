"""`processor mcp`: what may be asked of a running app, as tools of an MCP server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.operate.mcp import McpServer, tool_name
from processor.operate.verbs import READING, VERBS, OperatedApp
from tests.running import Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: fails.py
  retry: {attempts: 1}
"""
FAILS = """
class Runnable:
    def process(self, queries):
        raise ValueError("no")
"""


def server_of(running: Running, *, may_write: bool = False) -> McpServer:
    async def app() -> OperatedApp:
        config = load(running.path, {"NATS_URL": running.broker.address})
        return OperatedApp(running.broker, config, "mcp", 1 << 20)

    return McpServer(app, may_write=may_write)


async def asked(server: McpServer, method: str, **params: Any) -> dict[str, Any]:
    line = json.dumps({"jsonrpc": "2.0", "id": "7", "method": method, "params": params}).encode()
    answer = json.loads(await server.answer(line) or b"{}")
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", "7")
    return answer


async def called(server: McpServer, name: str, **arguments: Any) -> dict[str, Any]:
    result = (await asked(server, "tools/call", name=name, arguments=arguments))["result"]
    return dict(result)


def test_reading_is_what_changes_nothing() -> None:
    """A verb that is added is not offered before somebody says that it only reads."""
    names = {verb.name for verb in VERBS}
    assert names >= READING
    assert names - READING == {
        "pause", "resume", "reset", "dlq.redrive", "dlq.drop", "context.set", "context.append", "context.pop",
        "context.delete", "graph.apply", "graph.register", "graph.trigger", "graph.retry", "graph.cancel",
        "graph.pause", "graph.resume", "graph.signal", "graph.secrets",
    }  # fmt: skip


async def test_a_client_reads_a_running_app_and_writes_only_with_leave(processor: Start) -> None:
    """Verbs that write are not listed and not done, unless the server was started for it."""
    async with processor(ROUTE, fails=FAILS) as running:
        await running.publish("in.a", {"n": 1})
        [letter] = await running.dead_letters("r")
        server = server_of(running)
        said = (await asked(server, "initialize", protocolVersion="2025-03-26"))["result"]
        assert (said["protocolVersion"], said["serverInfo"]["name"]) == ("2025-03-26", "processor")
        tools = {tool["name"]: tool for tool in (await asked(server, "tools/list"))["result"]["tools"]}
        assert set(tools) == {name.replace(".", "_") for name in READING}
        schema = tools["dlq_show"]["inputSchema"]
        assert (schema["required"], schema["additionalProperties"]) == (["id"], False)
        listed = await called(server, "dlq_ls", code="E304")
        assert listed["structuredContent"] == json.loads(listed["content"][0]["text"])
        [found] = listed["structuredContent"]["dead_letters"]
        assert (found["route"], found["code"]) == ("r", "E304")
        refused = await called(server, "dlq_ls", codes="E304")
        assert refused["isError"] is True
        assert "did you mean 'code'?" in refused["content"][0]["text"]
        error = (await asked(server, "tools/call", name="pause", arguments={}))["error"]
        assert (error["code"], "--allow-write" in error["message"]) == (-32602, True)
        writer = server_of(running, may_write=True)
        names = {tool["name"] for tool in (await asked(writer, "tools/list"))["result"]["tools"]}
        assert names == set(map(tool_name, VERBS))
        paused = await called(writer, "pause", route="r", by="an assistant", reason="looks odd")
        assert paused["isError"] is False
        status = (await called(server, "status", route="r"))["structuredContent"]
        assert "an assistant" in json.dumps(status)
    assert letter.headers["x-error-code"] == "E304"


@pytest.mark.parametrize(
    "line, code",
    [
        (b"{", -32700),
        (b"[1]", -32600),
        (b'{"id": 1}', -32600),
        (b'{"id": 1, "method": "x"}', -32601),
        (b'{"id": 1, "method": "tools/list", "params": [1]}', -32602),
        (b'{"id": 1, "method": "tools/call", "params": {"name": "sudo"}}', -32602),
        (b'{"id": 1, "method": "tools/call", "params": {"name": {}}}', -32602),
    ],
)
async def test_a_message_that_is_none_is_answered_with_its_error(line: bytes, code: int) -> None:
    """One odd message is one error; the app is not even connected to."""

    async def app() -> OperatedApp:
        raise AssertionError("asked for")

    server = McpServer(app, may_write=True)
    assert json.loads(await server.answer(line) or b"{}")["error"]["code"] == code
    assert await server.answer(b'{"method": "notifications/initialized"}') is None
    assert await server.answer(b'{"id": 1, "result": {}}') is None


def test_it_speaks_over_standard_input_and_output(tmp_path: Path) -> None:
    """A line for each request, and an app that is not there is the failure of a call."""
    (tmp_path / "app.yaml").write_text(
        "app: a\nnats: nats://127.0.0.1:1\nroutes: {r: {input: x, code: 'class Runnable: process = list'}}\n"
    )
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "status", "arguments": {}}},
        {"jsonrpc": "2.0", "id": 3, "method": "ping"},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "processor", "mcp", str(tmp_path / "app.yaml")],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("NATS_")},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [answer["id"] for answer in answers]) == (0, [1, 2, 3]), done.stderr
    assert answers[1]["result"]["isError"] is True
    assert answers[1]["result"]["content"][0]["text"].startswith("E404")
    assert answers[2]["result"] == {}


def test_standard_input_may_be_a_file(tmp_path: Path) -> None:
    """It ends where the file does; a message that is too long ends it with a sentence."""
    routes = "routes: {r: {input: x, code: 'class Runnable: process = list'}}"
    (tmp_path / "app.yaml").write_text(f"app: a\n{routes}\n")
    ping = b'{"id": 1, "method": "ping"}\n'
    long = ping + b"x" * (5 << 20)
    for content, code, said in ((b"", 0, b""), (ping, 0, b'"result":{}'), (long, 1, b"4194304")):
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open("rb") as stdin:
            command = [sys.executable, "-m", "processor", "mcp", str(tmp_path / "app.yaml")]
            done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
