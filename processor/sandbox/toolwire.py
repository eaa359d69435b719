"""All that crosses the wall between the host and a worker of tools: a module, then calls, one after another.

The frames are those of `wire`. The host treats what it reads here as hostile, as there: exact types, bounded
sizes; whatever does not fit is a `Violation`, which costs the worker its life and the call its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from processor.sandbox import wire
from processor.sandbox.wire import Frame, Violation

INPUT_BYTES = 1 << 20  # of the arguments of one call
OUTPUT_BYTES = 1 << 20  # of what a tool writes to stdout
ERROR_BYTES = 64 << 10  # and to stderr, of which the rest is dropped
MODULE_BYTES = 8 << 20  # of a module's file
COMPILED_BYTES = 64 << 20  # of what is made of it
_WHY_CHARS = 1000

# How a call ended: with an exit code, in a trap, without more fuel, or with more output than it may have.
End = Literal["exit", "trap", "fuel", "flood"]
_ENDS: frozenset[str] = frozenset(("exit", "trap", "fuel", "flood"))


@dataclass(frozen=True, slots=True)
class Order:
    """A module for a worker, the name that it is called by, and the memory of its instances.

    One that `is_compiled` is what another worker made of it.
    """

    name: str
    module: bytes
    memory_mb: int
    is_compiled: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's answer to its module: the layers of its jail, or why the module is unusable."""

    layers: dict[str, str]
    compiled: bytes
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a call."""

    end: End
    exit: int
    why: str  # of a trap
    fuel: int  # that it took
    output: bytes
    errors: bytes


def write_order(nonce: int, order: Order) -> bytes:
    form = "compiled" if order.is_compiled else "wasm"
    header = {"module": form, "name": order.name, "memory_mb": order.memory_mb}
    return wire.pack(nonce, header, [order.module])


def read_order(frame: Frame) -> Order:
    header = frame.header
    return Order(header["name"], frame.blobs[0], header["memory_mb"], header["module"] == "compiled")


def write_ready(nonce: int, ready: Ready) -> bytes:
    header = {"sealed": ready.layers, "unusable": _shown(ready.unusable)}
    return wire.pack(nonce, header, [ready.compiled])


def read_ready(frame: Frame) -> Ready:
    """Raises Violation."""
    layers, unusable = frame.header.get("sealed"), frame.header.get("unusable")
    if frame.header.keys() != {"sealed", "unusable"} or type(layers) is not dict or len(layers) > 32:
        raise Violation("not a worker's first answer")
    if any(type(text) is not str or len(text) > 300 for pair in layers.items() for text in pair):
        raise Violation("not a report of layers")
    if type(unusable) is not str or len(unusable) > _WHY_CHARS or len(frame.blobs) != 1:
        raise Violation("not a word on a module")
    if len(frame.blobs[0]) > COMPILED_BYTES:
        raise Violation("a compiled module that is too large")
    return Ready(layers, frame.blobs[0], unusable)


def write_call(nonce: int, arguments: bytes, fuel: int) -> bytes:
    return wire.pack(nonce, {"fuel": fuel}, [arguments])


def read_call(frame: Frame) -> tuple[bytes, int]:
    return frame.blobs[0], frame.header["fuel"]


def write_done(nonce: int, done: Done) -> bytes:
    header = {"end": done.end, "exit": done.exit, "why": _shown(done.why), "fuel": done.fuel}
    return wire.pack(nonce, header, [done.output, done.errors])


def read_done(frame: Frame, fuel: int) -> Done:
    """What came of a call that had so much fuel. Raises Violation."""
    header: dict[str, Any] = frame.header
    if header.keys() != {"end", "exit", "why", "fuel"} or len(frame.blobs) != 2:
        raise Violation("not the end of a call")
    end, code, why, used = header["end"], header["exit"], header["why"], header["fuel"]
    if type(end) is not str or end not in _ENDS or type(why) is not str or len(why) > _WHY_CHARS:
        raise Violation("an end that no call has")
    if type(code) is not int or type(used) is not int or not 0 <= used <= fuel or not 0 <= code < 1 << 32:
        raise Violation("a figure that no call has")
    output, errors = frame.blobs
    if len(output) > OUTPUT_BYTES or len(errors) > ERROR_BYTES:
        raise Violation("more output than the limit")
    return Done(end, code, why, used, output, errors)  # type: ignore[arg-type]


def _shown(text: str) -> str:
    """As much of a sentence as crosses, without what JSON cannot carry."""
    return text.encode("utf-8", "replace").decode()[:_WHY_CHARS]
