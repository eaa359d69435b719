"""The tools that are of this process: WebAssembly modules and Python functions, each behind the wall.

A `Toolbox` is one for a process, and has the cell of the modules and the zygote of the functions. A route has
`RouteTools` of it: for each tool as many workers as there are calls at a time, which no other route and no
other tool uses. A tool gets no rights at all: no calls, no files, no secrets.

What a tool answers is as hostile as what a guest sends: JSON, bounded in bytes and depth, and checked against
its schema before anybody gets it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from processor.errors import About, Faults, GuestError, LanguageError, ProcessorError
from processor.model import Failed, Group, Limits
from processor.reach import FunctionTool, Tool, ToolServer, WasmTool
from processor.sandbox import documents, toolwire
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.toolwire import Done
from processor.sandbox.values import DEPTH
from processor.sandbox.workers import Lost, Overdue, ToolCell, ToolWorker

log = logging.getLogger("processor")

AT_ONCE = max(2, os.cpu_count() or 1)  # calls of one tool of one route; more wait
LINES = 20  # of what a tool says on stderr, in the log
_LINE_CHARS = 1000
_SAID_CHARS = 500

LocalTool = WasmTool | FunctionTool


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool returned, with its fuel where it is metered, and what it said beside it."""

    value: Any
    fuel: int | None = None
    lines: Sequence[str] = ()


class ToolError(ProcessorError):
    """A tool that has not done what it was called for (E333); `fuel` is what it took, where it is metered."""

    def __init__(self, name: str, why: str, fuel: int | None = None) -> None:
        super().__init__("E333", f"tool {name}: {why}", about=About("tool.execute", name))
        self.fuel = fuel


class _Mortal(Protocol):
    @property
    def alive(self) -> bool: ...

    async def close(self) -> None: ...


W = TypeVar("W", bound=_Mortal)
T = TypeVar("T")


async def started(name: str, starting: Awaitable[T]) -> T:
    """What a worker of a tool is started for. Whatever keeps it from starting is an error of that tool alone.

    Raises ProcessorError E333, E506 and E507.
    """
    try:
        return await starting
    except Faults as err:
        why, remedy = str(err.faults[0]), ""
    except LanguageError as err:
        why, remedy = err.what, err.remedy
    except GuestError as err:
        raise ToolError(name, err.what) from err
    raise ProcessorError("E506", f"the tool {name} is unusable: {why}", remedy=remedy)


class _Pool(Generic[W]):
    """Workers of one tool, started where a call finds none, until `close`."""

    def __init__(self, name: str, start: Callable[[], Awaitable[W]]) -> None:
        self._name = name
        self._start = start
        self._idle: list[W] = []
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._is_closed = False

    @asynccontextmanager
    async def one(self) -> AsyncIterator[W]:
        async with self._at_once:
            worker = self._take()
            if worker is None:
                try:
                    worker = await started(self._name, self._start())
                except ProcessorError as err:  # it was usable when the route began, and may be again
                    raise err if isinstance(err, ToolError) else ToolError(self._name, str(err)) from err
            try:
                yield worker
            finally:
                if worker.alive and not self._is_closed:
                    self._idle.append(worker)
                else:
                    await worker.close()

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(worker.close() for worker in self._idle))
        self._idle.clear()

    def _take(self) -> W | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
        return None


class Toolbox:
    """The processes of all tools, each started when a call needs it, until `close`."""

    def __init__(self) -> None:
        self.cell = ToolCell()
        self._zygote: Zygote | None = None
        self._is_borrowed = False
        self._starting = asyncio.Lock()

    def borrow(self, zygote: Zygote) -> None:
        """Start functions from a zygote that is another's, who keeps it while there are tools."""
        self._zygote, self._is_borrowed = zygote, True

    async def prepare(self, tools: Sequence[Tool]) -> None:
        """Compile the modules, and load the functions, so that calls find them ready.

        Raises ProcessorError E506 for one that cannot be called, E507 where wasmtime is not installed, and
        E333 where the machine refuses a process.
        """
        for tool in tools:
            if isinstance(tool, WasmTool):
                await started(tool.name, self.cell.prepare(tool))
            elif isinstance(tool, FunctionTool):
                guest = await started(tool.name, self.guest(tool))
                await guest.close()

    async def unusable(self, tools: Iterable[Tool]) -> dict[str, ProcessorError]:
        """By the names of those of these tools that cannot be called, why (E506, E507).

        Raises ProcessorError E333 where the machine refuses a process.
        """
        found: dict[str, ProcessorError] = {}
        for tool in dict.fromkeys(tools):
            try:
                await self.prepare([tool])
            except ToolError:
                raise
            except ProcessorError as err:
                found[tool.name] = err
        return found

    async def guest(self, tool: FunctionTool) -> Guest:
        """A guest that calls the function of this tool."""
        async with self._starting:
            if self._zygote is None:
                self._zygote = await Zygote.start()
        limits = Limits(
            wall_s=tool.timeout_s,
            cpu_s=tool.timeout_s,
            memory_mb=tool.memory_mb,
            outputs=1,
            output_bytes=toolwire.OUTPUT_BYTES,
            calls=0,
            requests=0,
        )
        return await self._zygote.spawn(tool.program, limits)

    async def close(self) -> None:
        """End all of them. Idempotent; a later call starts others."""
        await self.cell.close()
        if self._zygote is not None and not self._is_borrowed:
            zygote, self._zygote = self._zygote, None
            await zygote.close()


class RouteTools:
    """The tools of one route that run here, until `close`."""

    def __init__(self, tools: Sequence[Tool], toolbox: Toolbox) -> None:
        self.named: Mapping[str, LocalTool] = {
            tool.name: tool for tool in tools if not isinstance(tool, ToolServer)
        }
        self._toolbox = toolbox
        self._modules: dict[str, _Pool[ToolWorker]] = {}
        self._functions: dict[str, _Pool[Guest]] = {}

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """What the tool of this name returns. Raises ProcessorError E333 and E337."""
        tool = self.named[name]
        check_arguments(name, tool.input, arguments)
        given = documents.dumps(arguments)
        if len(given) > toolwire.INPUT_BYTES:
            raise ToolError(
                name, f"its arguments have {len(given):,} bytes, more than {toolwire.INPUT_BYTES:,}"
            )
        if isinstance(tool, WasmTool):
            result = await self._run(tool, given)
        else:
            result = await self._call(tool, given)
        if tool.output is not None and (fault := tool.output.fault(result.value)):
            raise ToolError(name, f"its result does not fit tools.{name}.output: {fault}", result.fuel)
        return result

    async def close(self) -> None:
        """End their workers. Idempotent; a later call starts new ones."""
        closing = [pool.close() for pool in self._modules.values()]
        closing += [pool.close() for pool in self._functions.values()]
        self._modules.clear()
        self._functions.clear()
        await asyncio.gather(*closing)

    async def _run(self, tool: WasmTool, given: bytes) -> ToolResult:
        if tool.name not in self._modules:
            self._modules[tool.name] = _Pool(tool.name, lambda: self._toolbox.cell.worker(tool))
        async with self._modules[tool.name].one() as worker:
            try:
                done = await worker.call(given, tool.fuel, tool.timeout_s)
            except Overdue:
                why = f"it did not end within {tool.timeout_s:g} s (tools.{tool.name}.timeout_ms)"
                raise ToolError(tool.name, why) from None
            except Lost as err:
                raise ToolError(tool.name, f"its worker died ({err})") from None
        return _result_of(tool, done)

    async def _call(self, tool: FunctionTool, given: bytes) -> ToolResult:
        if tool.name not in self._functions:
            self._functions[tool.name] = _Pool(tool.name, lambda: self._toolbox.guest(tool))
        async with self._functions[tool.name].one() as guest:
            outcome = await guest.run([Group("", [given], {})])
        if isinstance(outcome, Failed):
            raise ToolError(tool.name, _because(tool, outcome))
        lines = [line.text for line in outcome.logs if not line.dropped]
        [returned] = _document(tool.name, outcome.outputs[0].body, None)
        return ToolResult(returned, None, lines)


def check_arguments(name: str, schema: Any, arguments: Mapping[str, Any]) -> None:
    """Raise ProcessorError E337 for arguments that do not fit the schema of a tool, where it has one."""
    if schema is not None and (fault := schema.fault(arguments)):
        what = f"the arguments of the tool {name} do not fit its schema: {fault}"
        raise ProcessorError("E337", what, about=About("tool.execute", name))


def tell(route: str, name: str, lines: Sequence[str]) -> None:
    """Log what a tool said beside its result."""
    for line in lines[:LINES]:
        log.info("tool %s: %s", name, line[:_LINE_CHARS], extra={"route": route})
    if len(lines) > LINES:
        log.info("tool %s: %d more lines", name, len(lines) - LINES, extra={"route": route})


def _result_of(tool: WasmTool, done: Done) -> ToolResult:
    said = done.errors.decode("utf-8", "replace").strip()
    match done.end:
        case "fuel":
            why = f"trap: out of fuel (limit {tool.fuel:,}, tools.{tool.name}.fuel)"
        case "flood":
            why = f"its output has more than {toolwire.OUTPUT_BYTES:,} bytes"
        case "trap":
            why = f"trap: {done.why}{_behind(said)}"
        case _ if done.exit:
            why = f"exit {done.exit}{_behind(said)}"
        case _:
            value = _document(tool.name, done.output, done.fuel)
            return ToolResult(value, done.fuel, said.splitlines())
    raise ToolError(tool.name, why, done.fuel)


def _behind(said: str) -> str:
    """The last that a tool said, as a sentence has it."""
    text = " ".join(said.split())
    return f": {text[-_SAID_CHARS:]}" if text else ""


def _document(name: str, text: bytes, fuel: int | None) -> Any:
    try:
        value = documents.loads(text)
    except ValueError as err:
        at = getattr(err, "pos", 0)
        why = f"its output is not JSON at byte {at}" if text.strip() else "it has written no result to stdout"
        raise ToolError(name, why, fuel) from None
    if nests_deeper(text, value, DEPTH):
        raise ToolError(name, f"its result has more than {DEPTH} levels", fuel)
    return value


def _because(tool: FunctionTool, outcome: Failed) -> str:
    failure = outcome.failure
    if failure.code in ("E311", "E312"):
        return f"it did not end within {tool.timeout_s:g} s (tools.{tool.name}.timeout_ms)"
    if failure.code == "E313":
        return f"it used more memory than {tool.memory_mb} MB (tools.{tool.name}.memory_mb)"
    return failure.text
