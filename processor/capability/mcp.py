"""Tools of an MCP server over HTTP: its list, and one POST for each call.

The server is the configuration's, and is reached by the same `Client` as every other request. No session is
begun, unless the server demands one: then it is, once, and begun anew where the server has forgotten it. What
the server says is hostile: JSON of bounded bytes and depth, with its own secret taken out.

The protocol is that of 2025-06-18: JSON-RPC 2.0, answered as JSON or as a stream of events, which is read as
far as the event that answers: a server may go on with it. Servers that are started as a process (stdio) are
not reached: they would have the host's rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from processor.address import Url, parse_url
from processor.capability.answers import Unanswered, one_line
from processor.capability.client import Client, Streamed
from processor.capability.events import EventSplitter, TooLong
from processor.capability.secrets import Scrubber
from processor.capability.toolbox import ToolError, check_arguments
from processor.errors import About, ProcessorError
from processor.reach import ToolServer
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.values import DEPTH
from processor.schema import Schema

log = logging.getLogger("processor")

PROTOCOL = "2025-06-18"
TOOLS_MAX = 1000  # of one server
PAGES_MAX = 100
LIST_AGAIN_S = 10.0  # for a name that is not on the list, at most this often
_END_S = 0.02  # for the end of a stream that has answered
_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class ServedTool:
    """One tool on the list of a server."""

    name: str
    description: str
    input: Schema | None


class _Reply(NamedTuple):
    """What a server answered to one request."""

    status: int
    session: str
    text: bytes  # of the message that answers, without the server's secret
    message: dict[str, Any] | None  # None where no message has the id of the request


class ToolSession:
    """One server, with what is known of its tools, and of a session where it wants one."""

    def __init__(self, server: ToolServer, client: Client, max_bytes: int) -> None:
        self._server = server
        self._client = client
        self._max_bytes = max_bytes
        self._url: Url = parse_url(server.url)
        self._scrubber = Scrubber([server.secret.value] if server.secret else [])
        self._session = ""
        self._protocol = PROTOCOL
        self._requests = 0
        self._tools: dict[str, ServedTool] = {}
        self._listed_s: float | None = None
        self._listing = asyncio.Lock()

    async def tools(self) -> Mapping[str, ServedTool]:
        """The tools that the configuration lets the route call, by their own names. Raises ProcessorError."""
        async with self._listing:
            if self._listed_s is None:
                await self._list()
            return self._tools

    async def call(self, name: str, arguments: Mapping[str, Any], known: Callable[[], str]) -> Any:
        """What the tool `server/name` returns. `known` names what there is, for one that there is not.

        Raises ProcessorError E333, E335 or E337.
        """
        own = name.partition("/")[2]
        tools = await self.tools()
        if own not in tools:
            async with self._listing:
                if self._listed_s is None or time.monotonic() >= self._listed_s + LIST_AGAIN_S:
                    await self._list()
            tools = self._tools
        if own not in tools:
            about = About("tool.execute", name)
            raise ProcessorError("E335", f"there is no tool {name}; there are {known()}", about=about)
        check_arguments(name, tools[own].input, arguments)
        result = await self._ask(name, "tools/call", {"name": own, "arguments": arguments})
        return self._returned(name, result)

    def _returned(self, name: str, result: Any) -> Any:
        if not isinstance(result, dict):
            raise ToolError(name, "the server's result is no object")
        content = result.get("content")
        items = content if isinstance(content, list) else []
        texts = [
            item["text"]
            for item in items
            if isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)
        ]
        said = "\n".join(texts)
        if result.get("isError") is True:
            raise ToolError(name, one_line(said) or "the server says that it failed")
        if result.get("structuredContent") is not None:
            return result["structuredContent"]
        if not texts and items:
            raise ToolError(name, "the server's result has neither text nor structured content")
        return said

    async def _list(self) -> None:
        found: dict[str, ServedTool] = {}
        cursor: Any = None
        for _ in range(PAGES_MAX):
            asked = {} if cursor is None else {"cursor": cursor}
            page = await self._ask(f"{self._server.name}/*", "tools/list", asked)
            listed = page.get("tools") if isinstance(page, dict) else None
            if not isinstance(listed, list):
                raise ToolError(f"{self._server.name}/*", "the server's list of tools is no list")
            for item in listed:
                if (tool := _served(item)) is not None and self._server.grants(tool.name):
                    found[tool.name] = tool
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or len(found) >= TOOLS_MAX:
                break
        self._tools, self._listed_s = found, time.monotonic()

    async def _ask(self, name: str, method: str, params: Mapping[str, Any]) -> Any:
        """The result of one request, made again in a session where the server wants one."""
        try:
            async with asyncio.timeout(self._server.timeout_s):
                reply = await self._post(method, params)
                if reply.status in (400, 404) and method != "initialize":
                    await self._begin_session(name)
                    reply = await self._post(method, params)
                return self._result(name, reply)
        except TooLong as err:
            raise ToolError(name, f"the server's answer: {err}") from None
        except TimeoutError:
            key = f"tools.{self._server.name}.timeout_ms"
            why = f"no complete answer within {self._server.timeout_s:g} s ({key})"
            raise ToolError(name, why) from None
        except Unanswered as err:
            raise ToolError(name, self._scrubber.text(err.what)) from None

    async def _begin_session(self, name: str) -> None:
        self._session = ""
        client = {"name": "processor", "version": "1"}
        params = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client}
        reply = await self._post("initialize", params)
        result = self._result(name, reply)
        self._session = reply.session
        spoken = result.get("protocolVersion") if isinstance(result, dict) else None
        self._protocol = spoken if isinstance(spoken, str) and spoken.isprintable() else PROTOCOL
        await self._post("notifications/initialized", None)

    async def _post(self, method: str, params: Mapping[str, Any] | None) -> _Reply:
        self._requests += 1
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message |= {"id": self._requests, "params": params}
        headers = [
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("MCP-Protocol-Version", self._protocol),
        ]
        if self._session:
            headers.append(("Mcp-Session-Id", self._session))
        if self._server.secret is not None:
            headers.append(("Authorization", f"Bearer {self._server.secret.value}"))
        number, body = message.get("id"), orjson.dumps(message)
        streamed = await self._client.stream("POST", self._url, headers, body, self._max_bytes)
        try:
            async with contextlib.aclosing(self._texts(streamed)) as texts:
                async for text in texts:
                    for found in _messages(text):
                        if number is not None and found.get("id") == number:
                            await streamed.end(_END_S)
                            return _Reply(streamed.status, streamed.header("mcp-session-id"), text, found)
        finally:
            await streamed.close()
        return _Reply(streamed.status, streamed.header("mcp-session-id"), b"", None)

    async def _texts(self, streamed: Streamed) -> AsyncGenerator[bytes, None]:
        """What may be messages: the whole of an answer, or its events as they come. Raises TooLong."""
        if streamed.header("content-type").partition(";")[0].strip().lower() != "text/event-stream":
            yield self._scrubber.body(b"".join([piece async for piece in streamed]))
            return
        scrubbed, splitter = self._scrubber.stream(), EventSplitter(self._max_bytes)
        async for piece in streamed:
            for event in splitter.feed(scrubbed.feed(piece)):
                yield event
        # Behind the last event of a stream that has ended there may be no empty line.
        for event in splitter.feed(scrubbed.finish() + b"\n\n"):
            yield event

    def _result(self, name: str, reply: _Reply) -> Any:
        message = reply.message
        if message is None:
            if reply.status >= 400:
                raise ToolError(name, f"the server answered with status {reply.status}")
            raise ToolError(name, "the server's answer has no JSON-RPC message with the id of the request")
        if "error" in message:
            error = message["error"] if isinstance(message["error"], dict) else {}
            said = one_line(str(error.get("message", "")))
            raise ToolError(name, f"the server refuses: {said} (code {str(error.get('code'))[:20]})")
        if nests_deeper(reply.text, message, DEPTH + 2):
            raise ToolError(name, f"the server's result has more than {DEPTH} levels")
        return message.get("result")


def _served(item: Any) -> ServedTool | None:
    """A tool as a server lists it; None for what cannot be called by its name."""
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS or not name.isprintable():
        return None
    description = item.get("description")
    schema = None
    if isinstance(item.get("inputSchema"), dict):
        try:
            schema = Schema(orjson.dumps(item["inputSchema"]))
        except (ValueError, TypeError) as err:
            # The server checks its arguments itself; ours only says it sooner.
            log.warning("tool %s: its input schema is not used: %s", name, one_line(str(err)))
    return ServedTool(name, one_line(description) if isinstance(description, str) else "", schema)


def _messages(text: bytes) -> Iterator[dict[str, Any]]:
    """The JSON-RPC messages in a text: one, or a list of them."""
    try:
        said = documents.loads(text)
    except ValueError:
        return
    yield from (each for each in (said if isinstance(said, list) else [said]) if isinstance(each, dict))
