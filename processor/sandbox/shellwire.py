"""All that crosses the wall between the host and the watcher over a shell step: an order, and its outcome.

The frames are those of `wire`. The process that writes the answer has run nothing of the user's, but it has
read what that wrote: the host holds it to exact types and bounded sizes as it does a guest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from processor.sandbox import wire
from processor.sandbox.wire import Frame, Violation

OUTPUT_BYTES = 1 << 20  # of what a step writes to stdout, and of the end of what it writes to stderr
_WHY_CHARS = 1000
_LAYERS = 32

# How a step ended: with an exit code, after its time, with too much output, without its program having been
# started, without a jail for it, or with a process of ours.
End = Literal["exit", "time", "flood", "unstarted", "unjailed", "lost"]
_ENDS: frozenset[str] = frozenset(("exit", "time", "flood", "unstarted", "unjailed", "lost"))


@dataclass(frozen=True, slots=True)
class ShellOrder:
    """A program and its arguments, where it runs, and what it may take. Without `argv` the jail is tried."""

    argv: tuple[str, ...]
    env: dict[str, str]
    root: str
    cwd: str
    writes: tuple[str, ...]  # below the root
    tmp: str  # its folder for what is private and passing, where it has no `/tmp` of its own
    wall_s: float
    memory_mb: int
    tmp_mb: int
    file_mb: int
    processes: int
    descriptors: int
    layers: tuple[str, ...]  # those that must hold


@dataclass(frozen=True, slots=True)
class ShellDone:
    """What came of a step."""

    end: End
    exit: int  # the number of a signal, negative, where one ended it
    why: str
    layers: dict[str, str]
    output: bytes
    errors: bytes


def write_order(nonce: int, order: ShellOrder) -> bytes:
    return wire.pack(nonce, asdict(order))


def read_order(frame: Frame) -> ShellOrder:
    given = frame.header
    lists = {name: tuple(given[name]) for name in ("argv", "writes", "layers")}
    return ShellOrder(**{**given, **lists})


def write_done(nonce: int, done: ShellDone) -> bytes:
    why = done.why.encode("utf-8", "replace").decode()[:_WHY_CHARS]
    header = {"end": done.end, "exit": done.exit, "why": why, "layers": done.layers}
    return wire.pack(nonce, header, [done.output, done.errors])


def read_done(frame: Frame) -> ShellDone:
    """Raises Violation."""
    header: dict[str, Any] = frame.header
    if header.keys() != {"end", "exit", "why", "layers"} or len(frame.blobs) != 2:
        raise Violation("not the end of a step")
    end, code, why, layers = header["end"], header["exit"], header["why"], header["layers"]
    if type(end) is not str or end not in _ENDS or type(why) is not str or len(why) > _WHY_CHARS:
        raise Violation("an end that no step has")
    if type(code) is not int or not -128 <= code <= 255:
        raise Violation("an exit code that no program has")
    if type(layers) is not dict or len(layers) > _LAYERS:
        raise Violation("not a report of layers")
    if any(type(text) is not str or len(text) > 300 for pair in layers.items() for text in pair):
        raise Violation("not a report of layers")
    output, errors = frame.blobs
    if len(output) > OUTPUT_BYTES or len(errors) > OUTPUT_BYTES:
        raise Violation("more output than the limit")
    return ShellDone(end, code, why, layers, output, errors)  # type: ignore[arg-type]
