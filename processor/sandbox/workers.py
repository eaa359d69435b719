"""The trusted side of WebAssembly tools: their cell, the workers in it, and what a call may take.

`ToolCell` is the one process that workers are forked from. A worker has one module of one route, and does one
call at a time; it is killed by the host's clock, and another one is forked where a call needs it. So whatever
a module does costs its own call, and is seen by no other tool. What a module was compiled to is kept in
memory, and nowhere else: whoever can write it can have its code run.

Every byte from a worker goes through `toolwire`; anything unexpected kills the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os

from processor.errors import GuestError, LanguageError, ProcessorError
from processor.model import Failure, Limits
from processor.reach import WasmTool
from processor.sandbox import toolwire, wire
from processor.sandbox.cells import START_S, Cell, no_guest
from processor.sandbox.jail import JailReport
from processor.sandbox.launch import execute_toolbox, out_of_descriptors
from processor.sandbox.link import Gone, Link, violated
from processor.sandbox.toolwire import Done, Order

COMPILE_S = 60.0  # for a module, on a machine that is busy
COMPILED_BYTES = 256 << 20  # of all modules, that are kept for other workers
# How much a worker may send in one frame; what a guest may follows from its limits in the same way.
_FRAMES = Limits(output_bytes=toolwire.COMPILED_BYTES // 2, context_bytes=0)


class Overdue(Exception):
    """A call took more time than it may."""


class Lost(Exception):
    """A worker has died over its call; the text says of what."""


class ToolCell:
    """The process that workers are forked from, started when the first one is needed, until `close`."""

    def __init__(self) -> None:
        self._cell: Cell | None = None
        self._starting = asyncio.Lock()
        self._compiling: dict[str, asyncio.Lock] = {}
        self._compiled: dict[str, bytes] = {}  # by the hash of the module; the oldest first

    async def prepare(self, tool: WasmTool) -> None:
        """Compile the module of a tool, so that a call need not.

        Raises ProcessorError E506 for one that cannot be called, E507 where wasmtime is not installed, and
        GuestError E502.
        """
        await (await self.worker(tool)).close()

    async def worker(self, tool: WasmTool) -> ToolWorker:
        """A worker with the module of this tool. Raises as `prepare` does."""
        if tool.sha256 in self._compiled:
            return await self._open(tool)
        async with self._compiling.setdefault(tool.sha256, asyncio.Lock()):
            return await self._open(tool)

    async def close(self) -> None:
        """End the process, and every worker with it. Idempotent; a later call starts another one."""
        async with self._starting:
            cell, self._cell = self._cell, None
            if cell is not None:
                await cell.close()

    @property
    def report(self) -> JailReport | None:
        """What the kernel took from the cell and from its workers; None before there was one."""
        return self._cell.report if self._cell is not None and self._cell.sealed else None

    async def _open(self, tool: WasmTool) -> ToolWorker:
        made = self._compiled.get(tool.sha256)
        order = Order(tool.name, tool.module if made is None else made, tool.memory_mb, made is not None)
        try:
            worker, ready = await self._loaded(order)
        except Gone:  # the cell died since we looked; the next one gets no second chance
            worker, ready = await self._loaded(order)
        if made is None:
            self._compiled[tool.sha256] = ready.compiled
            while sum(map(len, self._compiled.values())) > COMPILED_BYTES and len(self._compiled) > 1:
                del self._compiled[next(iter(self._compiled))]
        return worker

    async def _loaded(self, order: Order) -> tuple[ToolWorker, toolwire.Ready]:
        """A worker that is ready for calls. Raises Gone where the cell has died."""
        cell = await self._running()
        worker = await ToolWorker.fork(cell)
        try:
            ready = await worker.load(order)
            if ready.unusable:
                raise _unfit(order.name, ready.unusable)
            cell.sealed = cell.sealed or ready.layers
            if ready.layers != cell.sealed:
                raise no_guest(f"its jail has other layers than before: {ready.layers}")
        except BaseException as err:
            await worker.close()
            if isinstance(err, Lost) and not cell.is_up:
                raise Gone from err
            if isinstance(err, Lost):
                raise _unfit(order.name, f"its worker died over it ({err})") from err
            raise
        return worker, ready

    async def _running(self) -> Cell:
        async with self._starting:
            if self._cell is None or not self._cell.is_up:
                if self._cell is not None:
                    await self._cell.close()
                if importlib.util.find_spec("wasmtime") is None:
                    raise ProcessorError("E507", "WebAssembly tools need wasmtime, which is not installed")
                try:
                    self._cell = await Cell.launch(execute_toolbox, START_S)
                except LanguageError as err:
                    raise GuestError(err.code, err.what) from err
            return self._cell


def _unfit(name: str, why: str) -> ProcessorError:
    """What is said of a module that cannot be called."""
    return ProcessorError("E506", f"the tool {name} is unusable: {why}")


class ToolWorker:
    """One worker, from its fork until `close`; it does one call at a time."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    async def fork(cls, cell: Cell) -> ToolWorker:
        """A worker that waits for its module. Raises Gone where the cell has died."""
        forked = await cell.fork()

        def kill_for_us() -> None:
            with contextlib.suppress(Gone):
                cell.kill(forked.order)

        _, channel, handle, ending = forked
        try:
            return cls(Link(channel, handle, ending, _FRAMES, cell.kills, kill_for_us, lambda: None))
        except OSError as err:
            channel.close()
            os.close(handle)
            raise no_guest(out_of_descriptors(err)) from err

    @property
    def alive(self) -> bool:
        return self._link.alive

    @property
    def pid(self) -> int:
        return self._link.pid

    async def load(self, order: Order) -> toolwire.Ready:
        """What the worker says to its module. Raises Lost, and ProcessorError E506 after COMPILE_S."""
        try:
            frame = await self._asked(toolwire.write_order(self._link.ask(), order), COMPILE_S)
            return toolwire.read_ready(frame)
        except Overdue:
            raise _unfit(order.name, f"it was not compiled within {COMPILE_S:g} s") from None
        except wire.Violation as err:
            raise Lost(self._violated(err)) from err

    async def call(self, arguments: bytes, fuel: int, timeout_s: float) -> Done:
        """What came of a call with so much fuel. Raises Overdue and Lost, and the worker is dead then."""
        frame = await self._asked(toolwire.write_call(self._link.ask(), arguments, fuel), timeout_s)
        try:
            done = toolwire.read_done(frame, fuel)
            if self._link.has_more:
                raise wire.Violation("bytes after the end of its answer")
        except wire.Violation as err:
            raise Lost(self._violated(err)) from err
        self._link.rest()
        return done

    async def close(self) -> None:
        """Kill the worker and wait until it is gone. Idempotent."""
        await self._link.close(Failure("E314", "the worker was closed", lethal=True))

    async def _asked(self, request: bytes, timeout_s: float) -> wire.Frame:
        self._link.write(request)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._link.receive()
        except TimeoutError:
            self._link.kill(Failure("E312", "its time was up", lethal=True))
            raise Overdue from None
        except Gone:
            raise Lost((await self._link.obituary()).text) from None
        except wire.Violation as err:
            raise Lost(self._violated(err)) from err
        except BaseException:
            self._link.kill(Failure("E314", "the call was cancelled", lethal=True))
            raise

    def _violated(self, err: wire.Violation) -> str:
        failure = violated(err)
        self._link.kill(failure)
        return failure.text
