"""The hostile side of tools: the process that workers are forked from, and what a worker does.

A tool is a WebAssembly module, a command of WASI preview 1: its arguments are one JSON object on stdin, its
result is one JSON value on stdout. `toolbox` is the process that the host executes, as `guest.zygote` is:
it imports wasmtime, closes itself into a cell and forks. A worker has one module for its life. It compiles
it, or takes what another worker made of it, seals itself, and calls it as often as it is asked to: each call
has an instance of its own, with memory of its own, and ends without more fuel. What a call may take of time
is the host's to say, who kills the worker.

What must stay true:
- A module runs only behind the seal; before it, it is only compiled.
- Nothing of a call is left for the next one.
- A module has what `wasi` defines, and nothing else of its host.

Nobody imports this module but that process, and nothing here is trusted by the host.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any, NoReturn

import wasmtime

from processor.sandbox import jail, toolwire
from processor.sandbox.channel import Channel
from processor.sandbox.nursery import Nursery, keep_heap, open_control, tend
from processor.sandbox.toolwire import Done, Order, Ready
from processor.sandbox.wasi import Console, Exited, Flooded, Wasi

_EXPORTS = 1000
_TABLE_ELEMENTS = 1 << 20
_TABLES = 4
_COMPILING_BYTES = 1 << 30  # of address space, for the compiler
# Of address space beyond the memory of the instance: what wasmtime and Python take while a call runs.
_ROOM_BYTES = 96 << 20
_WASM = b"\0asm"
_PROBE = b'(module (memory (export "memory") 1) (func (export "_start") unreachable))'
_BROKEN = 70


def toolbox(control_fd: int) -> NoReturn:
    """Fork a worker for every order that arrives on the control socket; end when it closes."""
    control, woken, wake = open_control(control_fd)
    keep_heap()
    jail.prepare()
    baseline, resident = jail.memory_in_use()
    layers = jail.enter_cell()
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    worker = WasmRunner(baseline)
    # What wasmtime sets up for its first trap needs system calls that a sealed worker has not.
    worker.run(worker.compiled(_PROBE), b"", b"", 1000, 1 << 20)
    tend(control, woken, {"cell": layers, "resident": resident}, Nursery(control, baseline, worker))


def _engine() -> Any:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.parallel_compilation = False  # a thread would keep the process from forking
    config.memory_init_cow = False  # it takes a memfd, which ends a sealed worker
    config.memory_reservation = 0
    config.memory_guard_size = 0
    config.memory_reservation_for_growth = 1 << 20
    config.memory_may_move = True
    config.wasm_threads = False
    config.wasm_memory64 = False  # pointers of WASI have 32 bits
    config.wasm_multi_memory = False
    config.wasm_gc = False
    config.wasm_component_model = False
    config.cranelift_nan_canonicalization = True  # the same call has the same result everywhere
    config.wasm_relaxed_simd_deterministic = True
    return wasmtime.Engine(config)


class BadModule(Exception):
    """A module that no worker can call; the text says why."""


class WasmRunner:
    """One module at work. The first process makes one without a module, and forks."""

    def __init__(self, baseline_bytes: int) -> None:
        self._baseline_bytes = baseline_bytes
        self._channel = Channel()
        self._engine = _engine()
        self._wasi = Wasi()

    def live(self, channel_fd: int, parent: int, memory: jail.MemoryLimit, *, is_ahead: bool) -> NoReturn:
        """The whole life of a worker, from the fork to its last exit."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if channel_fd != jail.CHANNEL_FD:
                os.dup2(channel_fd, jail.CHANNEL_FD)
            os.closerange(jail.CHANNEL_FD + 1, 1 << 16)
            sys.unraisablehook = lambda _: None
            self._work(parent)
        finally:
            os._exit(_BROKEN)  # whatever a module has done, its worker ends

    def _work(self, parent: int) -> None:
        channel = self._channel
        order = toolwire.read_order(channel.receive())
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        room = self._baseline_bytes + _COMPILING_BYTES + 4 * len(order.module)
        resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        try:
            module, made = self._loaded(order)
            pre = self._linked(module)
        except BadModule as err:
            channel.send(toolwire.write_ready(channel.nonce, Ready({}, b"", str(err))))
            return
        size = 2 * len(made or order.module) + _ROOM_BYTES
        limit = jail.MemoryLimit(self._baseline_bytes + size, order.memory_mb)
        layers = jail.seal(limit, parent)
        channel.send(toolwire.write_ready(channel.nonce, Ready(layers, made)))
        name, memory_bytes = order.name.encode(), order.memory_mb << 20
        while True:
            given, fuel = toolwire.read_call(channel.receive())
            done = self.run(pre, name, given, fuel, memory_bytes)
            channel.send(toolwire.write_done(channel.nonce, done))

    def _loaded(self, order: Order) -> tuple[Any, bytes]:
        """A module, and what it was compiled to where this was done here. Raises BadModule."""
        try:
            if order.is_compiled:
                return wasmtime.Module.deserialize(self._engine, order.module), b""
            text = order.module if order.module.startswith(_WASM) else bytes(wasmtime.wat2wasm(order.module))
            module = wasmtime.Module(self._engine, text)
            self._check(module)
            return module, bytes(module.serialize())
        except (wasmtime.WasmtimeError, UnicodeDecodeError) as err:
            said = " ".join(str(err).split())
            raise BadModule(f"it is no WebAssembly module: {said}") from None

    def _check(self, module: Any) -> None:
        """Raise BadModule for what is not a command of WASI that may be called here."""
        exports = module.exports
        if len(exports) > _EXPORTS:
            raise BadModule(f"it has {len(exports):,} exports, more than {_EXPORTS:,}")
        found = {str(each.name): each.type for each in exports}
        start, memory = found.get("_start"), found.get("memory")
        if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
            what = "it exports no function `_start` without parameters"
            raise BadModule(f"{what}; build it as a WASI command, which is not a library or a component")
        if not isinstance(memory, wasmtime.MemoryType):
            raise BadModule("it exports no `memory`, in which its arguments and its result would be")
        if fault := self._wasi.fault(module.imports):
            raise BadModule(fault)

    def _linked(self, module: Any) -> Any:
        linker = wasmtime.Linker(self._engine)
        self._wasi.define(linker, module.imports)
        return linker.instantiate_pre(module)

    def compiled(self, text: bytes) -> Any:
        """A module of ours, ready to be called."""
        return self._linked(self._loaded(Order("probe", text, 1))[0])

    def run(self, pre: Any, name: bytes, given: bytes, fuel: int, memory_bytes: int) -> Done:
        """Call a module once, in an instance of its own."""
        store = wasmtime.Store(self._engine)
        store.set_fuel(fuel)
        store.set_limits(
            memory_size=memory_bytes,
            table_elements=_TABLE_ELEMENTS,
            instances=1,
            tables=_TABLES,
            memories=1,
        )
        console = self._wasi.console = Console(name, given)
        end: toolwire.End = "exit"
        code, why = 0, ""
        try:
            pre.instantiate(store).exports(store)["_start"](store)
        except Exited as err:
            code = err.code
            err.__traceback__ = None  # with its frames it would keep the store until a collection
        except Flooded:
            end = "flood"
        except wasmtime.Trap as err:
            is_empty = err.trap_code == wasmtime.TrapCode.OUT_OF_FUEL
            end, why = ("fuel", "") if is_empty else ("trap", _trap(err))
        except wasmtime.WasmtimeError as err:
            end, why = "trap", str(err).strip().splitlines()[-1].strip()
        except MemoryError:
            end, why = "trap", "its memory could not be had"
        used = min(max(fuel - store.get_fuel(), 0), fuel)
        store.close()  # whatever still refers to it: its memory is gone before the next call
        return Done(end, code, why, used, bytes(console.output), bytes(console.errors))


def _trap(err: Any) -> str:
    code = err.trap_code
    return str(code.name).lower().replace("_", " ") if code is not None else str(err).strip().splitlines()[0]
