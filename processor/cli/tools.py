"""`tool`: call a tool of a configuration by hand, find those that cannot be called, and list them."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import typer

from processor.capability.registry import HostCalls
from processor.capability.toolbox import RouteTools, ToolError
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, say
from processor.config import Config, load, tool_fault
from processor.errors import Fault, Faults, ProcessorError
from processor.reach import FunctionTool, Reach, Tool, ToolServer, WasmTool
from processor.sandbox import documents
from processor.telemetry import configure_logging


def tool(action: str, path: Path, name: str | None, arguments: str | None, *, format: str | None) -> int:
    """Do one action of the verb. Raises Faults, and ProcessorError for a tool that is not there."""
    if (name is None) is (action == "run"):
        what = "run needs NAME, a tool of the configuration" if action == "run" else f"{action} takes no NAME"
        raise typer.BadParameter(what, param_hint="NAME")
    configure_logging("human", "warning")
    if action == "run" and name is not None:
        given = _arguments(sys.stdin.read() if arguments == "-" else arguments or "{}")
        return asyncio.run(_run(load(path), name, given, Screen(format)))
    if action == "check":
        return asyncio.run(_check(load(path, needs_login=False), Screen(format)))
    return _list(load(path, needs_login=False, needs_secrets=False), Screen(format))


def _arguments(text: str) -> dict[str, Any]:
    try:
        given = documents.loads(text.encode())
    except ValueError as err:
        raise typer.BadParameter(f"they are no JSON: {err}", param_hint="ARGUMENTS") from None
    if not isinstance(given, dict):
        raise typer.BadParameter('they are a JSON object, such as {"a": 1}', param_hint="ARGUMENTS")
    return given


async def _run(config: Config, name: str, arguments: dict[str, Any], screen: Screen) -> int:
    """Call a tool once, whatever the policies of routes say: it is the operator who asks."""
    own, slash, _ = name.partition("/")
    found = config.runtime_tools.get(own)
    if found is None or isinstance(found, ToolServer) is not bool(slash):
        known = ", ".join(
            f"{each.name}/…" if isinstance(each, ToolServer) else each.name
            for each in config.runtime_tools.values()
        )
        raise ProcessorError("E335", f"there is no tool {name!r} in {config.path}; it has {known or 'none'}")
    calls = HostCalls()
    began_s = time.perf_counter()
    try:
        if isinstance(found, ToolServer):
            governor = calls.for_route(Reach("tools", tools=(found,)))
            given = {"name": name, "arguments": arguments}
            value, fuel = await governor.lane().perform("served_tool", given), None
        else:
            if unusable := await calls.toolbox.unusable([found]):
                raise Faults([tool_fault(config, *each) for each in unusable.items()])
            began_s = time.perf_counter()
            tools = RouteTools([found], calls.toolbox)
            try:
                result = await tools.call(name, arguments)
            finally:
                await tools.close()
            for line in result.lines:
                say(f"{name}: {line}")
            value, fuel = result.value, result.fuel
    except ToolError as err:
        complain(err)
        _tell_cost(found, err.fuel, began_s)
        return EXIT_FAILED
    finally:
        await calls.close()
    screen.document(value)
    _tell_cost(found, fuel, began_s)
    return EXIT_OK


def _tell_cost(tool: Tool, fuel: int | None, began_s: float) -> None:
    took_ms = (time.perf_counter() - began_s) * 1000
    metered = f", fuel {fuel:,} of {tool.fuel:,}" if isinstance(tool, WasmTool) and fuel is not None else ""
    say(f"{took_ms:.1f} ms with its start{metered}")


async def _check(config: Config, screen: Screen) -> int:
    """Compile every module, load every function, and ask every server for its list."""
    calls = HostCalls()
    faults: list[Fault] = []
    said: list[str] = []
    try:
        tools = list(config.runtime_tools.values())
        unusable = await calls.toolbox.unusable(tools)
        faults += [tool_fault(config, *each) for each in unusable.items()]
        for each in tools:
            if isinstance(each, ToolServer):
                governor = calls.for_route(Reach("tools", tools=(each,)))
                try:
                    listed = await governor.lane().perform("tool_list", {})
                    said.append(f"{each.name}: {len(listed)} tools of {each.url}")
                except ProcessorError as err:
                    faults.append(tool_fault(config, each.name, err))
            elif each.name not in unusable:
                said.append(f"{each.name}: {_what(each)} can be called")
    finally:
        await calls.close()
    if screen.is_json:
        screen.document({"ok": not faults, "faults": [str(fault) for fault in faults]})
    for line in [] if screen.is_json else said:
        screen.line(line)
    if faults:
        complain(Faults(faults))
    return EXIT_FAILED if faults else EXIT_OK


def _list(config: Config, screen: Screen) -> int:
    """Show the tools, what they may take, and the routes that list them."""
    rows = []
    for name, each in config.runtime_tools.items():
        routes = [
            route.name for route in config.routes.values() if name in (own.name for own in route.reach.tools)
        ]
        row: dict[str, Any] = {"tool": name, "kind": _what(each), "routes": routes}
        row["timeout_ms"] = round(each.timeout_s * 1000)
        if isinstance(each, ToolServer):
            row |= {"url": each.url, "names": list(each.names)}
        else:
            row |= {"memory_mb": each.memory_mb, "sha256": each.sha256}
            row |= {"fuel": each.fuel} if isinstance(each, WasmTool) else {}
        rows.append(row)
    if screen.is_json:
        for row in rows:
            screen.document(row)
        return EXIT_OK
    if not rows:
        say("the configuration has no tools")
        return EXIT_OK
    head = ("tool", "kind", "routes", "timeout", "sha256 or url")
    screen.table(
        head,
        [
            (
                row["tool"],
                row["kind"],
                ", ".join(row["routes"]) or "none",
                f"{row['timeout_ms']} ms",
                row.get("url") or row["sha256"][:16],
            )
            for row in rows
        ],
        elastic=3,
    )
    return EXIT_OK


def _what(tool: Tool) -> str:
    if isinstance(tool, WasmTool):
        return "module"
    return "function" if isinstance(tool, FunctionTool) else "server"
