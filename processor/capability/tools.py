"""`self.tools` in a Runnable: the tools of its route, called by name, of whatever kind they are.

A tool that runs here is called by the name that the configuration gives it, one of an MCP server by
`server/name`. These are two rows, because the call of a server leaves the host: it is a request, costs bytes,
and is written down before it is made. To a policy both are `tool.execute` of the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from processor.capability.arguments import Argument, JsonObject, Text
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.capability.toolbox import ToolError, tell
from processor.errors import About, ProcessorError
from processor.policy import Ask
from processor.reach import ToolServer
from processor.sandbox import documents

NAME_CHARS = 200


async def _call(connections: Connections, arguments: Arguments) -> Any:
    name = arguments["name"]
    tool = connections.tools.named.get(name)
    if tool is None:
        raise _unknown(connections, name)
    connections.describe({"sha": tool.sha256})
    try:
        result = await connections.tools.call(name, arguments["arguments"])
    except ToolError as err:
        if err.fuel is not None:
            connections.describe({"fuel": err.fuel})
        raise
    if result.fuel is not None:
        connections.describe({"fuel": result.fuel})
    tell(connections.route, name, result.lines)
    return result.value


async def _ask_server(connections: Connections, arguments: Arguments) -> Any:
    name: str = arguments["name"]
    server = _server(connections, name.partition("/")[0])
    if server is None:
        raise _unknown(connections, name)
    if server.secret is not None:
        connections.permit(Ask("secret", "use", server.secret.name))
    session = connections.session(server)

    def known() -> str:
        return ", ".join(_known(connections)) or "none"

    return await session.call(name, arguments["arguments"], known)


async def _list(connections: Connections, arguments: Arguments) -> list[dict[str, Any]]:
    """The tools that may be called, with what each takes."""
    listed = [(name, tool.description, tool.input) for name, tool in connections.tools.named.items()]
    for server in _servers(connections):
        if server.secret is not None and not _may(connections, Ask("secret", "use", server.secret.name)):
            continue  # nor could a tool of it be called
        served = await connections.session(server).tools()
        listed += [(f"{server.name}/{own}", tool.description, tool.input) for own, tool in served.items()]
    found = []
    for name, description, schema in listed:
        if _may(connections, Ask("tool", "execute", name)):
            takes = documents.loads(schema.text) if schema is not None else {}
            found.append({"name": name, "description": description, "input": takes})
    return found


def _may(connections: Connections, ask: Ask) -> bool:
    verdict = connections.verdict(ask)
    return verdict.is_allowed or verdict.is_shadow


def _servers(connections: Connections) -> list[ToolServer]:
    return [tool for tool in connections.reach.tools if isinstance(tool, ToolServer)]


def _server(connections: Connections, name: str) -> ToolServer | None:
    return next((server for server in _servers(connections) if server.name == name), None)


def _known(connections: Connections) -> list[str]:
    """The tools of the route by the names that are known without asking a server."""
    patterns = [f"{server.name}/{name}" for server in _servers(connections) for name in server.granted]
    return [*connections.tools.named, *patterns]


def _unknown(connections: Connections, name: str) -> ProcessorError:
    known = ", ".join(_known(connections)) or "none"
    remedy = f"Add it to `tools`, and to the route's `tools`; the tools of the route are {known}."
    about = About("tool.execute", name)
    return ProcessorError("E335", f"there is no tool {name!r}", remedy=remedy, about=about)


def _ask(arguments: Arguments) -> Ask:
    return Ask("tool", "execute", arguments["name"])


def _size(arguments: Arguments) -> Mapping[str, int]:
    return {"requests": 1, "tool_calls": 1, "bytes": len(documents.dumps(arguments["arguments"]))}


_ARGUMENTS = (
    Argument("name", Text(1, NAME_CHARS)),
    Argument("arguments", JsonObject(), required=False, default={}),
)

TOOL = Capability(
    "tool",
    _ARGUMENTS,
    perform=_call,
    ask=_ask,
    event="tool",
    cost=lambda arguments: {"tool_calls": 1},
    is_outside=False,
    is_request=False,
    is_method=False,
)
SERVED_TOOL = Capability(
    "served_tool",
    _ARGUMENTS,
    perform=_ask_server,
    ask=_ask,
    event="tool",
    cost=_size,
    answer_cost=lambda answer: {"bytes": len(documents.dumps(answer))},
    is_method=False,
)
TOOLS = Capability(
    "tool_list",
    (),
    perform=_list,
    ask=lambda arguments: None,  # to look is not to do
    event=None,
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
