"""The verbs as tools of an MCP server: one JSON-RPC message in, at most one out.

A tool has the name of its verb with _ in place of a dot, and a schema that says of each field what `forms`
does. Nothing here knows where messages come from; whoever sends them is trusted as far as this server's login
and `may_write` go, and no further: a verb that writes is neither listed nor done without it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import orjson

from processor import __version__
from processor.errors import Refusal
from processor.operate.forms import read_request
from processor.operate.verbs import READING, VERBS, OperatedApp, Verb, perform

log = logging.getLogger("processor")

PROTOCOLS = ("2025-06-18", "2025-03-26", "2024-11-05")  # the newest first
MESSAGE_BYTES = 4 << 20  # of one message of a client
_PARSE, _REQUEST, _METHOD, _PARAMS = -32700, -32600, -32601, -32602
_TYPES: Mapping[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "int | str": {"type": ["integer", "string"]},
    "list[Any]": {"type": "array"},
    "list[Any] | None": {"type": ["array", "null"]},
    "dict[str, Any] | None": {"type": ["object", "null"]},
}


class _BadMessage(Exception):
    """A message that cannot be answered, with the code that JSON-RPC has for it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class McpServer:
    """Answers messages about one app, reading, and where it `may_write` also writing."""

    def __init__(self, app: Callable[[], Awaitable[OperatedApp]], *, may_write: bool) -> None:
        """`app` is asked for with each call, so that a connection is made when it is first needed."""
        self._app = app
        self._verbs = {tool_name(verb): verb for verb in VERBS if may_write or verb.name in READING}
        self._may_write = may_write

    async def answer(self, line: bytes) -> bytes | None:
        """What is to be said to a message; None to a notification, and to an answer of the client's."""
        number: Any = None
        try:
            message = _read(line)
            number = message.get("id")
            method = message.get("method")
            if not isinstance(method, str):
                if "result" in message or "error" in message:
                    return None
                raise _BadMessage(_REQUEST, "the message has no method")
            params = message.get("params", {})
            if not isinstance(params, dict):
                raise _BadMessage(_PARAMS, "params is not an object")
            if "id" not in message:
                return None
            return _written(number, "result", await self._do(method, params))
        except _BadMessage as err:
            return _written(number, "error", {"code": err.code, "message": str(err)})

    async def _do(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            asked = params.get("protocolVersion")
            return {
                "protocolVersion": asked if asked in PROTOCOLS else PROTOCOLS[0],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "processor", "version": __version__},
            }
        if method == "ping":
            return {}
        if method == "tools/list":
            return {"tools": [_tool(name, verb) for name, verb in self._verbs.items()]}
        if method == "tools/call":
            return await self._call(params)
        raise _BadMessage(_METHOD, f"there is no method {method[:100]!r}")

    async def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        name, arguments = params.get("name"), params.get("arguments") or {}
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            writes = not self._may_write and name in [tool_name(each) for each in VERBS]
            why = "it changes the app; start the server with --allow-write" if writes else "there is none"
            raise _BadMessage(_PARAMS, f"the tool {str(name)[:100]!r}: {why}")
        try:
            request = read_request(verb.request, orjson.dumps(arguments))
            found = await perform(verb, await self._app(), request)
        except Refusal as err:
            return {"content": [{"type": "text", "text": str(err)}], "isError": True}
        except Exception as err:  # a wall: a request that we cannot do must not end the server
            log.exception("an unexpected error in %s; please report it", verb.name)
            text = f"E604 an unexpected error: {type(err).__name__}; the log has it"
            return {"content": [{"type": "text", "text": text}], "isError": True}
        return {
            "content": [{"type": "text", "text": found.decode()}],
            "structuredContent": orjson.loads(found),
            "isError": False,
        }


def tool_name(verb: Verb) -> str:
    """The name of a verb as a tool: clients take no dots."""
    return verb.name.replace(".", "_")


def _tool(name: str, verb: Verb) -> dict[str, Any]:
    properties, required = {}, []
    for each in fields(verb.request):
        properties[each.name] = {**_TYPES.get(str(each.type), {}), "description": each.metadata["help"]}
        if each.default is MISSING:
            required.append(each.name)
    return {
        "name": name,
        "description": verb.summary,
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": verb.name in READING},
    }


def _read(line: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(line)
    except ValueError:
        raise _BadMessage(_PARSE, "the message is not JSON") from None
    if not isinstance(message, dict):
        raise _BadMessage(_REQUEST, "the message is not an object")
    return message


def _written(number: Any, kind: str, value: Any) -> bytes:
    known = number if isinstance(number, (int, str)) else None
    return orjson.dumps({"jsonrpc": "2.0", "id": known, kind: value}) + b"\n"
