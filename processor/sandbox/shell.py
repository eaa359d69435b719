"""The trusted side of shell steps: a program of the system, run once, in a cell of its own.

`ShellCells` is the one process that cells are forked from. A step is an argv, never a text for a shell; it
has the system's programs and the recipe's root to read, what `writes` names and a `/tmp` to write, and
nothing of the host: no network, no other process, no environment but its own. `shell_jail` has the layers.
Where they do not add up to a jail, `start` refuses, and so does each step that lost one since.

What a program says is bytes: nothing here reads them. Every frame goes through `shellwire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from processor.errors import ProcessorError
from processor.model import Failure, Limits
from processor.sandbox import shellwire, wire
from processor.sandbox.cells import START_S, Cell, no_guest
from processor.sandbox.jail import NOBODY
from processor.sandbox.launch import execute_shellbox, out_of_descriptors
from processor.sandbox.link import Gone, Link, violated
from processor.sandbox.shell_jail import lacking
from processor.sandbox.shellwire import OUTPUT_BYTES, ShellDone, ShellOrder

_FRAMES = Limits(output_bytes=OUTPUT_BYTES, context_bytes=0)
_GRACE_S = 10.0  # for the watcher to start a program, and to answer when its time is up
_ENDING_S = 5.0  # for it to kill a step that nobody waits for any more
_STRINGS_BYTES = 1 << 20  # of arguments and environment, in which the kernel allows some more


@dataclass(frozen=True, slots=True)
class ShellLimits:
    """What one step may take; memory, files and descriptors are of each of its processes."""

    wall_s: float = 60.0
    memory_mb: int = 256
    tmp_mb: int = 64  # of `/tmp`, which is memory; not bounded where there is no namespace for it
    file_mb: int = 64
    processes: int = 32
    descriptors: int = 64


_DEFAULT = ShellLimits()


@dataclass(frozen=True, slots=True)
class ShellOutcome:
    """What came of a step. `stderr` is its end where there was more; of `stdout` too much is a failure.

    `code` is the exit code, negative for the number of the signal that ended the program, and None where
    `failure` says why there is none: E307 too much output, E312 too much time, E314 killed from outside,
    E715 no jail, E721 not started.
    """

    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    failure: Failure | None


class ShellCells:
    """Runs steps, each in a cell of its own, until `close`."""

    def __init__(self) -> None:
        self._cell: Cell | None = None
        self._layers: Mapping[str, str] = {}
        self._starting = asyncio.Lock()

    @classmethod
    async def start(cls) -> ShellCells:
        """Cells whose jail was tried.

        Raises ProcessorError E715 where this process may have neither namespaces nor Landlock 6, or no
        seccomp, and GuestError E502 where no process can be started.
        """
        cells = cls()
        try:
            done = await cells._run(_Request((), {}, "/usr", "/usr", (), ShellLimits()))
            if isinstance(done, Failure):
                raise ProcessorError("E715", f"shell steps have no jail here: {done.text}")
            if why := done.why or lacking(done.layers):
                raise ProcessorError("E715", f"shell steps have no jail here: {why}")
        except BaseException:
            await cells.close()
            raise
        cells._layers = done.layers
        return cells

    @property
    def layers(self) -> Mapping[str, str]:
        """Which layers hold here, as `JailReport` has them: "on", "on(7)", "off(EPERM: ...)"."""
        return self._layers

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        root: Path,
        *,
        cwd: Path | None = None,
        writes: Sequence[Path] = (),
        limits: ShellLimits = _DEFAULT,
    ) -> ShellOutcome:
        """What came of a program that was executed with these arguments, below `root`.

        A name without a slash is looked for in the PATH, another one from `cwd` on, which is the root where
        none is given. `writes` are folders below the root. When it returns, or is cancelled, no process of
        the step is left. Raises GuestError E502 where no process can be started.
        """
        began_s = time.monotonic()
        done: ShellDone | Failure
        try:
            request = _request(argv, env, root, cwd, writes, limits)
        except _Unfit as err:
            done = Failure("E721", str(err))
        else:
            done = await self._run(request)
        seconds = time.monotonic() - began_s
        if isinstance(done, Failure):
            return ShellOutcome(None, b"", b"", seconds, done)
        failure = _failure(done, limits)
        return ShellOutcome(None if failure else done.exit, done.output, done.errors, seconds, failure)

    async def close(self) -> None:
        """End every step, and the process that they were forked from. Idempotent."""
        async with self._starting:
            cell, self._cell = self._cell, None
            if cell is not None:
                await cell.close()

    async def _run(self, request: _Request) -> ShellDone | Failure:
        needs_folder = not self._layers.get("own_root", "").startswith("on")
        async with _private_folder() if needs_folder else contextlib.nullcontext("/tmp") as tmp:
            must_hold = [name for name, state in self._layers.items() if state.startswith("on")]
            order = request.order(tmp, must_hold)
            try:
                return await self._watched(order)
            except Gone:  # the cell died since we looked; the next one gets no second chance
                return await self._watched(order)

    async def _watched(self, order: ShellOrder) -> ShellDone | Failure:
        """What the watcher over one step says. Raises Gone where the cell has died before there was one."""
        cell = await self._running()
        channel, link = await _forked(cell)
        try:
            link.write(shellwire.write_order(link.ask(), order))
            async with asyncio.timeout(order.wall_s + _GRACE_S):
                return shellwire.read_done(await link.receive())
        except TimeoutError:
            return Failure("E312", f"the step and what watches over it took {order.wall_s + _GRACE_S:g} s")
        except Gone:
            return Failure("E314", f"what watches over the step has ended: {(await link.obituary()).text}")
        except wire.Violation as err:
            return violated(err)
        finally:
            # It ends by itself when we hang up, and ends its step before; killed, it may leave some of that.
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_WR)
            await link.close(Failure("E314", "the step was closed", lethal=True), after_s=_ENDING_S)

    async def _running(self) -> Cell:
        async with self._starting:
            if self._cell is None or not self._cell.is_up:
                if self._cell is not None:
                    await self._cell.close()
                self._cell = await Cell.launch(execute_shellbox, START_S)
            return self._cell


async def _forked(cell: Cell) -> tuple[socket.socket, Link]:
    """The channel of a new watcher, and the link that owns it. Raises Gone where the cell has died."""
    _, channel, handle, ending = await cell.fork()

    def hang_up() -> None:  # root without the right to signal its own: the watcher sees that, and ends
        with contextlib.suppress(OSError):
            channel.shutdown(socket.SHUT_RDWR)

    try:
        return channel, Link(channel, handle, ending, _FRAMES, cell.kills, hang_up, lambda: None)
    except OSError as err:
        channel.close()
        os.close(handle)
        raise no_guest(out_of_descriptors(err)) from err


@contextlib.asynccontextmanager
async def _private_folder() -> AsyncIterator[str]:
    """A folder that is the step's alone, for where it has no `/tmp` of its own."""
    folder = tempfile.mkdtemp(prefix="processor-step-")
    try:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
    finally:
        # Not TemporaryDirectory: it may change the mode of what a link of the step's leads to.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _failure(done: ShellDone, limits: ShellLimits) -> Failure | None:
    match done.end:
        case "exit":
            return None
        case "time":
            return Failure("E312", f"the step ran longer than its limit of {limits.wall_s:g} s")
        case "flood":
            return Failure("E307", f"the step wrote more than {OUTPUT_BYTES} bytes to stdout")
        case "unstarted":
            return Failure("E721", done.why)
        case "lost":
            return Failure("E314", f"the step was lost: {done.why}")
        case "unjailed":
            return Failure("E715", f"shell steps have no jail here any more: {done.why}")


class _Unfit(ValueError):
    """Something that no program can be started with; the text says what."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What `run` was asked for, in the terms of an order."""

    argv: tuple[str, ...]
    env: dict[str, str]
    root: str
    cwd: str
    writes: tuple[str, ...]
    limits: ShellLimits

    def order(self, tmp: str, layers: Sequence[str]) -> ShellOrder:
        given = (self.argv, self.env, self.root, self.cwd, self.writes, tmp)
        return ShellOrder(*given, **asdict(self.limits), layers=tuple(layers))


def _request(
    argv: Sequence[str],
    env: Mapping[str, str],
    root: Path,
    cwd: Path | None,
    writes: Sequence[Path],
    limits: ShellLimits,
) -> _Request:
    """Raises _Unfit."""
    if not argv or not argv[0]:
        raise _Unfit("there is no program to start: the argv is empty")
    for text in argv:
        if not _can_be_given(text):
            raise _Unfit(f"the argument {text[:60]!r} has a character that no program gets")
    for name, value in env.items():
        if not name or "=" in name or not _can_be_given(name):
            raise _Unfit(f"{name[:60]!r} is no name of a variable")
        if not _can_be_given(value):  # which may be nobody's to see
            raise _Unfit(f"the value of {name[:60]} has a character that no program gets")
    texts = [*argv, *env, *env.values()]
    if (size := sum(len(text.encode()) + 1 for text in texts)) > _STRINGS_BYTES:
        raise _Unfit(f"arguments and environment are {size} bytes long (limit {_STRINGS_BYTES})")
    base = root.resolve()
    if base == base.parent:
        raise _Unfit("the root of a recipe cannot be the root of the file system")
    where = base if cwd is None else (base / cwd).resolve()
    if not where.is_relative_to(base):
        raise _Unfit(f"the working directory {str(where)[:200]!r} is not below the root {str(base)[:200]!r}")
    below = tuple(_below(base, path) for path in writes)
    return _Request(tuple(argv), dict(env), str(base), str(where), below, limits)


def _below(root: Path, path: Path) -> str:
    """A folder that may be written, from the root on; links on the way are for the kernel to refuse."""
    inside = os.path.relpath(os.path.normpath(root / path), root)
    if inside.split(os.sep)[0] in ("..", "."):
        raise _Unfit(f"the folder {str(path)[:200]!r} in `writes` is not below the root {str(root)[:200]!r}")
    return inside


def _can_be_given(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
