"""Tools of an MCP server over HTTP: what is sent, what is taken, and what a server can do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.address import Binding
from processor.capability.monitor import Mandate, Monitor
from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.policy import load
from processor.reach import BoundSecret, Outbound, Reach, ToolServer
from tests.web import Asked, Paused, Web, answer, serving

CANARY = "K3Y-canary-mcp"
ADD = {
    "name": "add",
    "description": "adds\n two numbers",
    "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
}
LISTED = [ADD, {"name": "add_all", "inputSchema": {}}, {"name": "sub"}, {"name": ""}, "junk", {"name": 7}]
Respond = Callable[[dict[str, Any], Asked], Any]


def said(result: Any, number: Any, **headers: str) -> bytes:
    body = {"jsonrpc": "2.0", "id": number, "result": result}
    return answer(json.dumps(body).encode(), **{"Content-Type": "application/json", **headers})


def server_of(respond: Respond) -> Callable[[Asked], bytes | None]:
    """A server that lists LISTED, and says what `respond` makes of a call: a result, or bytes."""

    def say(asked: Asked) -> bytes:
        message = json.loads(asked.body)
        if message["method"] == "tools/list":
            return said({"tools": LISTED}, message["id"])
        made = respond(message, asked)
        return made if isinstance(made, bytes) else said(made, message["id"])

    return say


@asynccontextmanager
async def tools(
    say: Callable[[Asked], bytes | Paused | None],
    secret: bool = False,
    response_bytes: int = 1 << 20,
    **settings: Any,
) -> AsyncIterator[tuple[Monitor, Web]]:
    async with serving(say) as web:
        bound = BoundSecret("key", CANARY, (Binding.parse(f"http://{web.host}"),)) if secret else None
        server = ToolServer("calc", f"{web.url}/mcp", bound, **{"names": ("add*",), **settings})
        calls = HostCalls()
        reach = Reach("here", Outbound(response_bytes=response_bytes), tools=(server,))
        try:
            yield calls.for_route(reach).lane(), web
        finally:
            await calls.close()


async def call(monitor: Monitor, name: str, **given: Any) -> Any:
    monitor.begin()
    return await monitor.perform("served_tool", {"name": name, "arguments": given})


async def refused(monitor: Monitor, name: str, **given: Any) -> tuple[str, str]:
    with pytest.raises(ProcessorError) as found:
        await call(monitor, name, **given)
    assert CANARY not in str(found.value)
    return found.value.code, found.value.what


def text(*texts: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": each} for each in texts], **more}


async def test_a_call_is_one_post_without_a_session() -> None:
    """After the list, which is asked for once; the protocol's headers and the secret go with each."""
    results = iter([text("8", structuredContent={"result": 8}), text("a", "b"), text()])
    async with tools(server_of(lambda message, asked: next(results)), secret=True) as (monitor, web):
        made = [await call(monitor, "calc/add", a=5, b=3) for _ in range(3)]
        listed = await monitor.perform("tool_list", {})
    assert made == [{"result": 8}, "a\nb", ""]
    sent = [json.loads(asked.body) for asked in web.asked]
    assert [each["method"] for each in sent] == ["tools/list", *["tools/call"] * 3]
    assert sent[1] == {
        "jsonrpc": "2.0",
        "id": 2,
        "method": "tools/call",
        "params": {"name": "add", "arguments": {"a": 5, "b": 3}},
    }
    for asked in web.asked:
        assert (asked.method, asked.target) == ("POST", "/mcp")
        assert asked.headers["mcp-protocol-version"] == "2025-06-18"
        assert asked.headers["accept"] == "application/json, text/event-stream"
        assert asked.headers["authorization"] == f"Bearer {CANARY}"
        assert "mcp-session-id" not in asked.headers
    assert [(tool["name"], tool["description"]) for tool in listed] == [
        ("calc/add", "adds two numbers"),
        ("calc/add_all", ""),
    ]
    assert listed[0]["input"] == ADD["inputSchema"]


async def test_what_the_lists_leave_out_is_not_there() -> None:
    """A tool needs a pattern of the server's key and one of the route's; arguments are checked first."""
    async with tools(server_of(lambda message, asked: text("x")), granted=("add", "sub")) as (monitor, web):
        assert await refused(monitor, "calc/sub") == (
            "E335", "there is no tool calc/sub; there are calc/add, calc/sub",
        )  # fmt: skip
        assert (await refused(monitor, "calc/add_all"))[0] == "E335"
        assert (await refused(monitor, "other/add"))[0] == "E335"
        code, what = await refused(monitor, "calc/add", a="x")
        assert (code, what.partition(": ")[0]) == (
            "E337", "the arguments of the tool calc/add do not fit its schema",
        )  # fmt: skip
        assert [json.loads(asked.body)["method"] for asked in web.asked] == ["tools/list"]


async def test_a_server_that_wants_a_session_gets_one_and_keeps_it() -> None:
    """It is begun once, and again where the server has forgotten it."""
    sessions: list[str] = []

    def say(asked: Asked) -> bytes:
        message = json.loads(asked.body)
        if message["method"] == "initialize":
            sessions.append(f"s{len(sessions)}")
            result = {"protocolVersion": "2025-03-26", "capabilities": {}, "serverInfo": {}}
            return said(result, message["id"], **{"Mcp-Session-Id": sessions[-1]})
        if not sessions or asked.headers.get("mcp-session-id") != sessions[-1]:
            return answer(b'{"error": "no session"}', 404 if sessions else 400)
        if message["method"] == "notifications/initialized":
            return answer(b"", 202)
        if message["method"] == "tools/list":
            return said({"tools": LISTED}, message["id"])
        return said(text("yes"), message["id"])

    async with tools(say) as (monitor, web):
        assert await call(monitor, "calc/add", a=1) == "yes"
        assert await call(monitor, "calc/add", a=1) == "yes"
        assert sessions == ["s0"]
        sessions.append("of another")
        assert await call(monitor, "calc/add", a=1) == "yes"
    assert sessions == ["s0", "of another", "s2"]
    assert web.asked[-1].headers["mcp-protocol-version"] == "2025-03-26"


async def test_an_answer_may_be_a_stream_of_events() -> None:
    """What the server says besides on it is passed over; the result has the id of the request."""

    def respond(message: dict[str, Any], asked: Asked) -> bytes:
        notes = json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
        result = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": text("8")}, indent=1)
        lines = "\n".join(f"data: {line}" for line in result.split("\n"))
        events = [f"event: message\r\ndata: {notes}", lines]
        return answer(("\n\n".join(events) + "\n\n").encode(), **{"Content-Type": "text/event-stream; x=y"})

    async with tools(server_of(respond)) as (monitor, _):
        assert await call(monitor, "calc/add", a=1) == "8"


async def test_a_server_may_go_on_with_a_stream_that_has_answered() -> None:
    """The call ends with the event that answers it, and the next one is made."""
    is_over = asyncio.Event()

    def say(asked: Asked) -> bytes | Paused:
        message = json.loads(asked.body)
        if message["method"] == "tools/list":
            return said({"tools": LISTED}, message["id"])
        event = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": text("8")})
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = f"data: {event}\n\n".encode()
        return Paused(head + b"%x\r\n%b\r\n" % (len(data), data), is_over, b"0\r\n\r\n")

    async with tools(say) as (monitor, _):
        assert await call(monitor, "calc/add", a=1) == "8"
        assert await call(monitor, "calc/add", a=2) == "8"
        is_over.set()


def failure(code: int, message: Any) -> Respond:
    error = {"code": code, "message": message}
    return lambda asked, _: answer(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": error}).encode())


DEEP = "[" * 500 + "]" * 500
WRONG: dict[str, tuple[Respond, str]] = {
    "isError": (lambda message, _: text("no\n such row", isError=True), "tool calc/add: no such row"),
    "isError without a text": (
        lambda message, _: {"content": [], "isError": True},
        "tool calc/add: the server says that it failed",
    ),
    "an error": (failure(-32602, "bad a"), "tool calc/add: the server refuses: bad a (code -32602)"),
    "a secret in an error": (failure(1, f"for {CANARY}"), "the server refuses: for *** (code 1)"),
    "a status": (lambda message, _: answer(b"gone", 503), "the server answered with status 503"),
    "no JSON": (lambda message, _: answer(b"<html>"), "has no JSON-RPC message with the id of the request"),
    "another id": (lambda message, _: said(text("x"), 999), "has no JSON-RPC message with the id"),
    "an image": (
        lambda message, _: {"content": [{"type": "image", "data": "x"}]},
        "the server's result has neither text nor structured content",
    ),
    "no object": (lambda message, _: [1], "the server's result is no object"),
    "too deep": (
        lambda message, _: answer(b'{"id": %d, "result": %s}' % (message["id"], DEEP.encode())),
        "the server's result has more than",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_whatever_a_server_says_is_the_failure_of_one_call(kind: str) -> None:
    """In one sentence, without the secret; the next call is made as if nothing had been."""
    respond, why = WRONG[kind]
    wrong = [True]

    def once(message: dict[str, Any], asked: Asked) -> Any:
        return respond(message, asked) if wrong and wrong.pop() else text("fine")

    async with tools(server_of(once), secret=True) as (monitor, _):
        code, what = await refused(monitor, "calc/add", a=1)
        assert code == "E333"
        assert why in what
        assert await call(monitor, "calc/add", a=1) == "fine"


async def test_a_server_is_bounded_in_time_and_bytes() -> None:
    """One that does not answer, is not there, or says too much costs its call."""
    async with tools(lambda asked: answer(b"x" * 2000), response_bytes=1000) as (monitor, _):
        assert (await refused(monitor, "calc/add", a=1))[0] == "E323"
    async with tools(lambda asked: None, timeout_s=0.2) as (monitor, _):
        assert await refused(monitor, "calc/add", a=1) == (
            "E333", "tool calc/*: no complete answer within 0.2 s (tools.calc.timeout_ms)",
        )  # fmt: skip


async def test_an_answer_that_is_cut_anywhere_is_one_failure() -> None:
    """Wherever a stream of events breaks off, the call fails, and never with a part of the result."""
    whole: list[bytes] = []

    def respond(message: dict[str, Any], asked: Asked) -> bytes:
        event = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": text("8")})
        whole[:] = [f"data: {event}\n\n".encode()]
        return answer(whole[0][: message["params"]["arguments"]["a"]], content_type="text/event-stream")

    async with tools(server_of(respond)) as (monitor, _):
        assert await call(monitor, "calc/add", a=1000) == "8"
        for cut in range(len(whole[0]) - 2):
            assert (await refused(monitor, "calc/add", a=cut))[0] == "E333"


async def test_a_list_goes_on_for_as_many_pages_as_there_are() -> None:
    """And a new tool is found when it is called."""
    pages = {None: ([ADD], "2"), "2": ([{"name": "add_two"}], None)}
    late: list[dict[str, Any]] = []

    def say(asked: Asked) -> bytes:
        message = json.loads(asked.body)
        if message["method"] == "tools/list":
            listed, cursor = pages[message["params"].get("cursor")]
            return said({"tools": [*listed, *late], "nextCursor": cursor}, message["id"])
        return said(text(message["params"]["name"]), message["id"])

    async with tools(say) as (monitor, _):
        names = [tool["name"] for tool in await monitor.perform("tool_list", {})]
        assert names == ["calc/add", "calc/add_two"]
        assert await call(monitor, "calc/add_two") == "add_two"


async def test_without_leave_for_its_secret_a_server_is_not_asked(tmp_path: Path) -> None:
    """Neither for a call nor for its list: both would send the secret."""
    (tmp_path / "policy.toml").write_text(
        '[[capability]]\nname = "tool"\nresource = "*"\nmethods = ["execute"]\n'
    )
    rules = load([tmp_path / "policy.toml"])
    async with serving(server_of(lambda message, asked: text("x"))) as web:
        bound = BoundSecret("key", CANARY, (Binding.parse(f"http://{web.host}"),))
        reach = Reach("here", tools=(ToolServer("calc", f"{web.url}/mcp", bound),))
        calls = HostCalls()
        monitor = calls.for_route(reach, Mandate("r", rules)).lane()
        code, what = await refused(monitor, "calc/add", a=1)
        assert (code, what.partition(" is not")[0]) == ("E330", "secret use key")
        assert await monitor.perform("tool_list", {}) == []
        await calls.close()
    assert not web.asked
