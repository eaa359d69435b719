"""The part of WASI preview 1 that a tool has: arguments on stdin, a result on stdout, and nothing of a host.

A tool is a command that is called once: it has a name, bytes to read, two outputs that are bounded, the time
and random numbers. There is no environment, no directory and no socket; every other function of
`wasi_snapshot_preview1` says that it may not (76). Pointers and lengths come from a hostile module: each is
taken as an unsigned number, and one that lies outside of its memory is an error of that one call (21).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import wasmtime

from processor.sandbox.toolwire import ERROR_BYTES, OUTPUT_BYTES

MODULE = "wasi_snapshot_preview1"
BADF, FAULT, INVALID, SEEKS_NOT, NOT_CAPABLE = 8, 21, 28, 70, 76
_VECTORS = 1024  # of one read or write, as Linux has it
_RANDOM_BYTES = 1 << 20  # of one call
_CHARACTER_DEVICE, _READ_AND_WRITE = 2, 0x42
_CLOCKS = {0: time.CLOCK_REALTIME, 1: time.CLOCK_MONOTONIC}
_U32 = 0xFFFFFFFF

Memory = Any
Types = tuple[str, ...]  # the names of wasm's own types


class Exited(Exception):
    """The tool has ended itself, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Flooded(Exception):
    """The tool has written more to stdout than it may."""


class _Outside(Exception):
    """A pointer out of the tool's memory."""


class Console:
    """What one call of a tool reads and writes."""

    def __init__(self, name: bytes, given: bytes) -> None:
        self.arguments: Sequence[bytes] = (name + b"\0",)
        self.output = bytearray()
        self.errors = bytearray()
        self._given = memoryview(given)

    def read(self, size: int) -> memoryview:
        """The next bytes of stdin, at most so many."""
        part, self._given = self._given[:size], self._given[size:]
        return part

    def write(self, descriptor: int, data: bytes | bytearray) -> None:
        """Take what is written to stdout or stderr. Raises Flooded."""
        if descriptor == 2:
            self.errors += data[: ERROR_BYTES - len(self.errors)]
        elif len(self.output) + len(data) > OUTPUT_BYTES:
            raise Flooded
        else:
            self.output += data


class Wasi:
    """The imports of every tool, defined once in a process; `console` is of the call in hand."""

    def __init__(self) -> None:
        self.console = Console(b"", b"")
        # By name: the types of the parameters, and the function, whose result is an errno.
        self._functions: dict[str, tuple[Types, Callable[..., int]]] = {
            "args_get": (_numbers(2), self._args_get),
            "args_sizes_get": (_numbers(2), self._args_sizes_get),
            "environ_get": (_numbers(2), lambda memory, *_: 0),
            "environ_sizes_get": (_numbers(2), self._environ_sizes_get),
            "clock_res_get": (_numbers(2), self._clock_res_get),
            "clock_time_get": (("i32", "i64", "i32"), self._clock_time_get),
            "fd_close": (_numbers(1), lambda memory, descriptor: 0 if descriptor <= 2 else BADF),
            "fd_fdstat_get": (_numbers(2), self._fd_fdstat_get),
            "fd_prestat_get": (_numbers(2), lambda memory, *_: BADF),
            "fd_pread": (("i32", "i32", "i32", "i64", "i32"), lambda memory, *_: SEEKS_NOT),
            "fd_pwrite": (("i32", "i32", "i32", "i64", "i32"), lambda memory, *_: SEEKS_NOT),
            "fd_read": (_numbers(4), self._fd_read),
            "fd_seek": (("i32", "i64", "i32", "i32"), lambda memory, *_: SEEKS_NOT),
            "fd_write": (_numbers(4), self._fd_write),
            "random_get": (_numbers(2), self._random_get),
            "sched_yield": ((), lambda memory: 0),
        }

    def fault(self, imports: Iterable[Any]) -> str:
        """Why these imports of a module cannot be given to it; empty where they can."""
        for each in imports:
            name, kind = f"{each.module[:60]}.{str(each.name)[:60]}", each.type
            if each.module != MODULE or not isinstance(kind, wasmtime.FuncType):
                return f"it imports {name}; a tool may import functions of {MODULE}, and nothing else"
            given, results = tuple(map(str, kind.params)), tuple(map(str, kind.results))
            known = self._functions.get(str(each.name))
            if each.name == "proc_exit":
                is_right = (given, results) == (("i32",), ())
            else:
                is_right = results == ("i32",) and (known is None or given == known[0])
            if not is_right:
                return f"it imports {name} with other types than those of WASI preview 1"
        return ""

    def define(self, linker: Any, imports: Iterable[Any]) -> None:
        """Give a module its imports; those that `fault` finds nothing wrong with."""
        for each in {str(each.name): each for each in imports}.values():
            if each.name == "proc_exit":
                linker.define_func(MODULE, each.name, each.type, _exit)
                continue
            known = self._functions.get(str(each.name))
            function = self._guarded(known[1]) if known is not None else _refuse
            linker.define_func(MODULE, each.name, each.type, function, access_caller=known is not None)

    def _guarded(self, function: Callable[..., int]) -> Callable[..., int]:
        """As wasmtime calls it: signed numbers in, an errno out."""

        def call(caller: Any, *given: int) -> int:
            try:
                return function(_Bytes(caller), *(number & _U32 for number in given))
            except _Outside:
                return FAULT

        return call

    def _args_sizes_get(self, memory: _Bytes, count: int, size: int) -> int:
        arguments = self.console.arguments
        memory.put_u32(count, len(arguments))
        memory.put_u32(size, sum(map(len, arguments)))
        return 0

    def _args_get(self, memory: _Bytes, pointers: int, texts: int) -> int:
        for number, argument in enumerate(self.console.arguments):
            memory.put_u32(pointers + 4 * number, texts)
            memory.put(texts, argument)
            texts += len(argument)
        return 0

    def _environ_sizes_get(self, memory: _Bytes, count: int, size: int) -> int:
        memory.put_u32(count, 0)
        memory.put_u32(size, 0)
        return 0

    def _clock_res_get(self, memory: _Bytes, clock: int, resolution: int) -> int:
        if clock not in _CLOCKS:
            return INVALID
        memory.put(resolution, struct.pack("<Q", 1000))
        return 0

    def _clock_time_get(self, memory: _Bytes, clock: int, precision: int, moment: int) -> int:
        if clock not in _CLOCKS:
            return INVALID
        memory.put(moment, struct.pack("<Q", time.clock_gettime_ns(_CLOCKS[clock])))
        return 0

    def _fd_fdstat_get(self, memory: _Bytes, descriptor: int, stat: int) -> int:
        if descriptor > 2:
            return BADF
        memory.put(stat, struct.pack("<BxHxxxxQQ", _CHARACTER_DEVICE, 0, _READ_AND_WRITE, 0))
        return 0

    def _fd_read(self, memory: _Bytes, descriptor: int, vectors: int, count: int, taken: int) -> int:
        if descriptor != 0:
            return BADF
        if count > _VECTORS:
            return INVALID
        total = 0
        for place, size in memory.vectors(vectors, count):
            memory.check(place, size)
            part = self.console.read(size)
            memory.put(place, bytes(part))
            total += len(part)
            if len(part) < size:
                break
        memory.put_u32(taken, total)
        return 0

    def _fd_write(self, memory: _Bytes, descriptor: int, vectors: int, count: int, taken: int) -> int:
        if descriptor not in (1, 2):
            return BADF
        if count > _VECTORS:
            return INVALID
        total = 0
        for place, size in memory.vectors(vectors, count):
            if descriptor == 1 and size > OUTPUT_BYTES:
                raise Flooded
            # Of stderr no more is copied than is kept, whatever a module says it wrote.
            self.console.write(descriptor, memory.get(place, size, ERROR_BYTES if descriptor == 2 else size))
            total += size
        memory.put_u32(taken, total & _U32)
        return 0

    def _random_get(self, memory: _Bytes, place: int, size: int) -> int:
        memory.check(place, size)
        for at in range(place, place + size, _RANDOM_BYTES):
            memory.put(at, os.urandom(min(_RANDOM_BYTES, place + size - at)))
        return 0


def _numbers(count: int) -> Types:
    return ("i32",) * count


def _exit(code: int) -> None:
    raise Exited(code & _U32)


def _refuse(*_: Any) -> int:
    return NOT_CAPABLE


class _Bytes:
    """The memory of the module that calls, by offsets which it gave."""

    def __init__(self, caller: Any) -> None:
        self._caller = caller
        self._memory = caller["memory"]

    def check(self, place: int, size: int) -> None:
        """Raise _Outside unless so many bytes are there."""
        if place + size > self._memory.data_len(self._caller):
            raise _Outside

    def get(self, place: int, size: int, most: int | None = None) -> bytearray:
        """The bytes at a place, or the first of them, where no more than `most` are wanted."""
        self.check(place, size)
        found: bytearray = self._memory.read(self._caller, place, place + min(size, most or size))
        return found

    def put(self, place: int, data: bytes) -> None:
        self.check(place, len(data))
        if data:
            self._memory.write(self._caller, data, place)

    def put_u32(self, place: int, number: int) -> None:
        self.put(place, struct.pack("<I", number))

    def vectors(self, place: int, count: int) -> Iterator[tuple[int, int]]:
        """The places and sizes that a read or a write names."""
        return struct.iter_unpack("<II", self.get(place, 8 * count))
