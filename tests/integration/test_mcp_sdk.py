"""The protocol's own SDK on the other side: its servers answer our tools, and its client our server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from processor.capability.monitor import Monitor
from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.operate.mcp import tool_name
from processor.operate.verbs import READING, VERBS
from processor.reach import Outbound, Reach, ToolServer
from tests.running import Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: keeps.py
  output: out.r
"""
KEEPS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.context["n"] = query["n"]
            yield query
"""


CALCULATOR = """
import json, socket, sys
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("calculator")

@server.tool()
def add(a: float, b: float) -> float:
    return a + b

@server.tool()
def person(name: str) -> dict[str, object]:
    return {"name": name, "tags": ["new", "ü"], "age": None}

@server.tool()
def refuses(why: str) -> str:
    raise ToolError(why)

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
app = server.streamable_http_app(**json.loads(sys.argv[1]))
uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listening])
"""


@asynccontextmanager
async def served(**how: Any) -> AsyncIterator[str]:
    """The address of a server with three tools, in a process of its own, that serves them as `how` says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALCULATOR, json.dumps(how), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}/mcp"
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def tools(url: str) -> AsyncIterator[Monitor]:
    calls = HostCalls()
    reach = Reach("here", Outbound(), tools=(ToolServer("calc", url, None, names=("*",)),))
    try:
        yield calls.for_route(reach).lane()
    finally:
        await calls.close()


async def call(monitor: Monitor, name: str, /, **given: Any) -> Any:
    monitor.begin()
    return await monitor.perform("served_tool", {"name": name, "arguments": given})


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="a session, answers as events"),
        pytest.param({"json_response": True}, id="a session, answers as JSON"),
        pytest.param({"stateless_http": True}, id="no session, answers as events"),
        pytest.param({"stateless_http": True, "json_response": True}, id="no session, answers as JSON"),
    ],
)
async def test_tools_of_a_server_of_the_sdk_are_called(how: dict[str, Any]) -> None:
    """In each way in which it serves them: structured results, schemas that refuse, tools that fail."""
    async with served(**how) as url, tools(url) as monitor:
        assert await call(monitor, "calc/add", a=5, b=3) == {"result": 8}
        assert await call(monitor, "calc/person", name="Ada") == {
            "name": "Ada", "tags": ["new", "ü"], "age": None,
        }  # fmt: skip
        for name, given, code, said in (
            ("calc/add", {"a": "five", "b": 3}, "E337", "a"),
            ("calc/refuses", {"why": "not today"}, "E333", "not today"),
            ("calc/sub", {}, "E335", "calc/*"),
        ):
            with pytest.raises(ProcessorError) as found:
                await call(monitor, name, **given)
            assert found.value.code == code
            assert said in found.value.what
        monitor.begin()
        listed = await monitor.perform("tool_list", {})
        assert [tool["name"] for tool in listed] == ["calc/add", "calc/person", "calc/refuses"]
        assert listed[0]["input"]["required"] == ["a", "b"]


@pytest.mark.parametrize("may_write", [False, True])
async def test_a_client_of_the_sdk_reads_a_running_app(processor: Start, may_write: bool) -> None:
    """It starts `processor mcp`, lists its tools and calls them; those that write only with --allow-write."""
    async with processor(ROUTE, keeps=KEEPS) as running:
        await running.publish("in.a", {"n": 7})
        await running.documents("out.r", 1)
        command = ["-m", "processor", "mcp", *(["--allow-write"] if may_write else []), str(running.path)]
        environment = {**os.environ, "NATS_URL": running.broker.address}
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        async with Client(server) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {tool_name(verb) for verb in VERBS if may_write or verb.name in READING}
            status = await client.call_tool("status", {"route": "r"})
            assert status.is_error is False
            assert status.structured_content is not None
            assert "r" in str(status.structured_content)
            context = await client.call_tool("context_get", {"route": "r", "path": "n"})
            assert context.structured_content is not None
            assert context.structured_content["value"] == 7
