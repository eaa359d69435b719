"""WebAssembly tools behind the wall: what a module gets, what it may take, and what a hostile one costs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.errors import ProcessorError
from processor.reach import WasmTool
from processor.sandbox.host import Zygote
from processor.sandbox.toolwire import ERROR_BYTES, OUTPUT_BYTES, Done
from processor.sandbox.workers import Lost, Overdue, ToolCell
from tests.conftest import waited

FUEL = 10_000_000
WASI = "wasi_snapshot_preview1"
# What these modules have in common: a way to read, to write, and to end.
_HEAD = f"""
  (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "{WASI}" "proc_exit" (func $exit (param i32)))
"""
_SAY = """
  (func $say (param $fd i32) (param $place i32) (param $size i32) (result i32)
    (i32.store (i32.const 0) (local.get $place)) (i32.store (i32.const 4) (local.get $size))
    (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
"""


def module(start: str, more: str = "", imports: str = "", memory: str = "1") -> bytes:
    """A command whose `_start` does this; 16 is the place of 9 bytes `[1,"two"]`."""
    text = f"""(module {_HEAD} {imports}
      (memory (export "memory") {memory}) (data (i32.const 16) "[1,\\22two\\22]") {_SAY} {more}
      (func (export "_start") {start}))"""
    return text.encode()


# Reads all of its arguments and writes them again.
ECHO = module(
    """(local $size i32)
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 60000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (local.set $size (i32.load (i32.const 8)))
    (drop (call $say (i32.const 1) (i32.const 1024) (local.get $size)))"""
)
SAY = "(drop (call $say (i32.const 1) (i32.const 16) (i32.const 9)))"


def tool(content: bytes, **limits: Any) -> WasmTool:
    return WasmTool("t", content, **limits)


@asynccontextmanager
async def tools() -> AsyncIterator[ToolCell]:
    cell = ToolCell()
    try:
        yield cell
    finally:
        await cell.close()


async def ran(cell: ToolCell, content: bytes, given: bytes = b"{}", **limits: Any) -> Done:
    """What came of one call, by a worker of its own."""
    called = tool(content, **{"fuel": FUEL, **limits})
    worker = await cell.worker(called)
    try:
        return await worker.call(given, called.fuel, called.timeout_s)
    finally:
        await worker.close()


async def unusable(cell: ToolCell, content: bytes) -> str:
    with pytest.raises(ProcessorError) as found:
        await cell.prepare(tool(content))
    assert found.value.code == "E506"
    return found.value.what


async def test_a_tool_reads_its_arguments_and_writes_its_result() -> None:
    """Stdin has the arguments, stdout becomes the result, and the fuel that it took is known."""
    async with tools() as cell:
        done = await ran(cell, ECHO, b'{"a": [1, "\xc3\xa4"]}')
    assert (done.end, done.exit, done.output) == ("exit", 0, b'{"a": [1, "\xc3\xa4"]}')
    assert 0 < done.fuel < FUEL


async def test_a_worker_has_every_layer_that_a_guest_has() -> None:
    """It is sealed before a module runs, with the layers of guests of Runnables."""
    async with tools() as cell:
        await cell.prepare(tool(ECHO))
        report = cell.report
    zygote = await Zygote.start()
    await zygote.close()
    assert report is not None
    assert report.layers == {
        name: state for name, state in zygote.report.layers.items() if name != "tripwire"
    }


async def test_nothing_of_a_call_is_left_for_the_next() -> None:
    """A worker that is called again has memory and globals as they were written."""
    counts = module(
        """(global.set $n (i32.add (global.get $n) (i32.const 1)))
        (i32.store8 (i32.const 17) (i32.add (i32.load8_u (i32.const 17)) (global.get $n)))"""
        + SAY,
        "(global $n (mut i32) (i32.const 0))",
    )
    async with tools() as cell:
        worker = await cell.worker(tool(counts))
        said = [(await worker.call(b"{}", FUEL, 5)).output for _ in range(3)]
    assert said == [b'[2,"two"]'] * 3


async def test_a_worker_can_be_called_for_ever() -> None:
    """However calls end, nothing of their memory stays with the worker."""
    grow = "(if (i32.lt_s (memory.grow (i32.const 500)) (i32.const 0)) (then unreachable))"
    ends = {
        "exit": module(f"{grow} (call $exit (i32.const 7))"),
        "trap": module(f"{grow} (call $f)", "(func $f call $f)"),
        "flood": module(
            f"{grow} (loop (drop (call $say (i32.const 1) (i32.const 0) (i32.const 65536))) br 0)"
        ),
    }
    async with tools() as cell:
        for end, content in ends.items():
            worker = await cell.worker(tool(content))
            for _ in range(40):
                done = await worker.call(b"{}", FUEL, 10)
                assert (done.end, done.why) == (end, "stack overflow" if end == "trap" else "")
            await worker.close()


async def test_a_module_is_compiled_once_for_all_workers() -> None:
    """The second worker takes what the first one made of it, and calls the same."""
    async with tools() as cell:
        first = await cell.worker(tool(ECHO))
        kept = dict(cell._compiled)
        second = await cell.worker(tool(ECHO))
        assert cell._compiled == kept
        assert [len(each) > len(ECHO) for each in kept.values()] == [True]
        said = [(await each.call(b"[7]", FUEL, 5)).output for each in (first, second)]
    assert said == [b"[7]", b"[7]"]


# How calls end.

ENDS: dict[str, tuple[bytes, dict[str, Any], tuple[str, int, str]]] = {
    "an exit code": (module("(call $exit (i32.const 7))"), {}, ("exit", 7, "")),
    "a trap": (module("unreachable"), {}, ("trap", 0, "unreachable")),
    "an endless loop": (module("(loop br 0)"), {}, ("fuel", 0, "")),
    "an endless recursion": (module("call $f", "(func $f call $f)"), {}, ("trap", 0, "stack overflow")),
    "a pointer out of its memory": (
        module("(drop (i32.load (i32.const 0x7fffffff)))"),
        {},
        ("trap", 0, "memory out of bounds"),
    ),
    "a division by zero": (
        module("(drop (i32.div_s (i32.const 1) (i32.const 0)))"),
        {},
        ("trap", 0, "integer division by zero"),
    ),
    "a flood of output": (
        module("(loop (drop (call $say (i32.const 1) (i32.const 0) (i32.const 65536))) br 0)"),
        {},
        ("flood", 0, ""),
    ),
    "one write of more than its memory has": (
        module("(call $exit (call $say (i32.const 2) (i32.const 16) (i32.const 0x7fffffff)))"),
        {},
        ("exit", 21, ""),
    ),
    "a read to where its memory is not": (
        module(
            "(i32.store (i32.const 0) (i32.const -8)) (i32.store (i32.const 4) (i32.const 64))"
            "(call $exit (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))"
        ),
        {},
        ("exit", 21, ""),
    ),
    "more vectors than there are": (
        module("(call $exit (call $write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8)))"),
        {},
        ("exit", 28, ""),
    ),
    "more memory than it may have": (
        module("(call $exit (i32.sub (i32.const 5) (memory.grow (i32.const 4000))))"),
        {"memory_mb": 2},
        ("exit", 6, ""),
    ),
    "memory from the start that it may not have": (
        module("", memory="4000"),
        {"memory_mb": 2},
        ("trap", 0, ""),
    ),
    "data where its memory is not": (
        module("", '(data (i32.const 0x7ffffff0) "0123456789")'),
        {},
        ("trap", 0, "memory out of bounds"),
    ),
    "a table without end": (
        module("", "(table 0x7fffffff funcref)"),
        {},
        ("trap", 0, ""),
    ),
}


async def test_whatever_a_module_does_ends_its_own_call() -> None:
    """Each end is told apart, and the same cell, and the same worker, go on with the next call."""
    async with tools() as cell:
        for name, (content, limits, (end, code, why)) in ENDS.items():
            called = tool(content, **{"fuel": FUEL, **limits})
            worker = await cell.worker(called)
            for _ in range(2):
                done = await worker.call(b"{}", FUEL, 10)
                assert (done.end, done.exit) == (end, code), name
                assert why in done.why, name
                assert len(done.output) <= OUTPUT_BYTES
            await worker.close()
            assert (await ran(cell, ECHO, b"[1]")).output == b"[1]", name


async def test_stderr_is_kept_up_to_its_bound_and_the_rest_is_dropped() -> None:
    """A tool that says more goes on, and the host has the beginning."""
    flood = module(
        "(local $i i32) (loop (drop (call $say (i32.const 2) (i32.const 16) (i32.const 30000)))"
        " (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 9))))" + SAY
    )
    async with tools() as cell:
        done = await ran(cell, flood)
    assert (done.end, done.output, len(done.errors)) == ("exit", b'[1,"two"]', ERROR_BYTES)


async def test_a_call_that_takes_too_long_is_killed_by_the_clock() -> None:
    """Fuel without end does not help it: its worker is gone, and another one takes the next call."""
    async with tools() as cell:
        called = tool(module("(loop br 0)"), fuel=1 << 53)
        worker = await cell.worker(called)
        with pytest.raises(Overdue):
            await worker.call(b"{}", called.fuel, 0.2)
        with pytest.raises(Lost):
            await worker.call(b"{}", called.fuel, 5)
        assert not worker.alive
        assert (await ran(cell, ECHO, b"[1]")).output == b"[1]"


async def test_a_call_that_is_cancelled_kills_its_worker() -> None:
    """Nobody knows how far it has come."""
    async with tools() as cell:
        worker = await cell.worker(tool(module("(loop br 0)"), fuel=1 << 53))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.call(b"{}", 1 << 53, 60), 0.1)
        await worker.close()
        assert not worker.alive


# What a module may import.

DENIED = (
    "fd_advise", "fd_allocate", "fd_datasync", "fd_fdstat_set_flags", "fd_fdstat_set_rights",
    "fd_filestat_get", "fd_filestat_set_size", "fd_filestat_set_times", "fd_prestat_dir_name", "fd_readdir",
    "fd_renumber", "fd_sync", "fd_tell", "path_create_directory", "path_filestat_get",
    "path_filestat_set_times", "path_link", "path_open", "path_readlink", "path_remove_directory",
    "path_rename", "path_symlink", "path_unlink_file", "poll_oneoff", "proc_raise", "sock_accept",
    "sock_recv", "sock_send", "sock_shutdown",
)  # fmt: skip
# The errno that a call with zeroes has; 0 where it does something.
GIVEN = {
    "args_get": (2, 0), "args_sizes_get": (2, 0), "environ_get": (2, 0), "environ_sizes_get": (2, 0),
    "clock_res_get": (2, 0), "fd_close": (1, 0), "fd_fdstat_get": (2, 0), "fd_prestat_get": (2, 8),
    "fd_read": (4, 0), "fd_write": (4, 8), "random_get": (2, 0), "sched_yield": (0, 0),
}  # fmt: skip


def calling(name: str, parameters: str, values: str) -> bytes:
    declared = f'(import "{WASI}" "{name}" (func $it (param {parameters}) (result i32)))'
    return module(f"(call $exit (call $it {values}))", imports=declared)


async def test_every_function_of_wasi_does_what_a_tool_may_or_says_that_it_may_not() -> None:
    """The ones for a command without files work; files, sockets and signals are refused with 76."""
    async with tools() as cell:
        for name in DENIED:
            assert (await ran(cell, calling(name, "i32 i32", "(i32.const 0) (i32.const 0)"))).exit == 76, name
        for name, (count, errno) in GIVEN.items():
            content = calling(name, "i32 " * count, "(i32.const 0) " * count)
            assert (await ran(cell, content)).exit == errno, name
        for name in ("fd_pread", "fd_pwrite"):
            values = "(i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 0)"
            assert (await ran(cell, calling(name, "i32 i32 i32 i64 i32", values))).exit == 70
        values = "(i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0)"
        assert (await ran(cell, calling("fd_seek", "i32 i64 i32 i32", values))).exit == 70
        values = "(i32.const 9) (i64.const 0) (i32.const 0)"
        assert (await ran(cell, calling("clock_time_get", "i32 i64 i32", values))).exit == 28


async def test_a_tool_knows_its_name_and_no_environment() -> None:
    """It has one argument, which is the name that it is called by."""
    names = module(
        """(drop (call $sizes (i32.const 900) (i32.const 904)))
        (drop (call $args (i32.const 908) (i32.const 32)))
        (drop (call $say (i32.const 1) (i32.load (i32.const 908)) (i32.sub (i32.load (i32.const 904))
        (i32.const 1))))""",
        imports=f'(import "{WASI}" "args_get" (func $args (param i32 i32) (result i32)))'
        f'(import "{WASI}" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))',
    )
    async with tools() as cell:
        assert (await ran(cell, names)).output == b"t"


UNUSABLE = {
    "it is no WebAssembly module": b"\0asm\1\0\0\0\xff\xff",
    "expected `(`": b"not a module",
    "exports no function `_start`": b'(module (memory (export "memory") 1))',
    "without parameters": b'(module (memory (export "memory") 1) (func (export "_start") (param i32)))',
    "it exports no `memory`": b'(module (func (export "_start")))',
    "it imports env.now": module("", imports='(import "env" "now" (func))'),
    "it imports env.memory": b'(module (import "env" "memory" (memory 1)) (func (export "_start")))',
    "with other types than those of WASI": module(
        "", imports=f'(import "{WASI}" "random_get" (func (param i64) (result i32)))'
    ),
    f"it imports {WASI}.made_up with other types": module(
        "", imports=f'(import "{WASI}" "made_up" (func (result f64)))'
    ),
    "it has 1,202 exports": module("", "".join(f'(export "e{n}" (memory 0))' for n in range(1200))),
    "unknown memory": b'(module (func (export "_start") (drop (i32.load (i32.const 0)))))',
}


async def test_a_module_that_is_no_tool_is_refused_with_why() -> None:
    """Each is E506 before a call of it is made, and the cell goes on."""
    async with tools() as cell:
        for why, content in UNUSABLE.items():
            if "memory" in why and why.startswith("it imports env.m"):
                assert "memory" in await unusable(cell, content)
            else:
                assert why in await unusable(cell, content)
        assert (await ran(cell, ECHO, b"[1]")).output == b"[1]"


async def test_a_cell_that_died_is_started_again() -> None:
    """The next call finds another one, with what was compiled."""
    async with tools() as cell:
        await cell.prepare(tool(ECHO))
        running = cell._cell
        assert running is not None
        os.kill(running._process.pid, signal.SIGKILL)
        await waited(running._down.done, "the cell is known to be dead")
        assert (await ran(cell, ECHO, b"[2]")).output == b"[2]"
        assert cell._cell is not running
