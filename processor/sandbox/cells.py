"""The trusted side of a zygote's process: its start, the orders to fork, and how those that it forked ended.

A `Cell` is one life of such a process. `host` forks guests from one for each language and set of packages,
`tools` forks workers of tools from one of their own. What is inside of it is `nursery` on the hostile side.
Nothing here knows what a forked process does, or speaks with it: that is for a `Link` over its channel.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import orjson

from processor.errors import GuestError, LanguageError, ProcessorError
from processor.sandbox.endings import Ending, OutOfMemoryKills
from processor.sandbox.jail import JailReport
from processor.sandbox.launch import out_of_descriptors
from processor.sandbox.link import LAST_WORDS_S, Gone

START_S = 20.0  # for a zygote that imports nothing but ours, and for each fork

Execute = Callable[[int, IO[bytes]], "subprocess.Popen[bytes]"]  # with its end of the control socket


class Forked(NamedTuple):
    """A process that was forked: its number in orders, both ends of what is known of it, and its end."""

    order: int
    channel: socket.socket
    handle: int
    ending: asyncio.Future[Ending | None]


def no_guest(why: str) -> GuestError:
    return GuestError(
        "E502",
        f"the guest could not be started: {why}",
        remedy="Guests need Linux 5.4 or newer and a Python that may start processes.",
    )


class Cell:
    """One life of a zygote's process: the control socket and what is awaited on it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, errors: IO[bytes]) -> None:
        self.is_up = True
        self.layers: dict[str, str] = {}
        self.sealed: dict[str, str] = {}  # the layers of its guests
        self.took_s = 0.0  # until it was ready
        self.resident_bytes = 0  # then
        self.brought: Mapping[str, Any] = {}  # what it said besides
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._control = control
        self._errors = errors
        self._errors_text = ""
        self.kills = OutOfMemoryKills.here()
        self._handle = os.pidfd_open(process.pid)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._down: asyncio.Future[None] = self._loop.create_future()
        self._orders = 0
        self._forked: dict[int, asyncio.Future[list[int]]] = {}  # descriptors: its process, its channel
        self._endings: dict[int, asyncio.Future[Ending | None]] = {}
        self._loop.add_reader(control, self._readable)
        self._loop.add_reader(self._handle, self._ended)

    @classmethod
    async def launch(
        cls, execute: Execute, ready_s: float, unready: Callable[[str], ProcessorError] | None = None
    ) -> Cell:
        """A zygote's process that `execute` starts, ready to fork within `ready_s`.

        Raises GuestError E502, or what `unready` makes of why it was not ready, and LanguageError E505 for
        what it says that it cannot import.
        """
        began_s = time.monotonic()
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError) as err:
            raise no_guest(f"{sys.platform} has no process descriptors here ({err})") from err
        with contextlib.ExitStack() as opened:
            try:
                ours, theirs = map(
                    opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                )
                errors = opened.enter_context(os.fdopen(os.memfd_create("zygote-errors"), "r+b"))
            except OSError as err:
                raise no_guest(out_of_descriptors(err)) from err
            ours.setblocking(False)
            try:
                process = execute(theirs.fileno(), errors)
            except OSError as err:
                raise no_guest(f"{sys.executable}: {err.strerror}") from err
            theirs.close()
            opened.pop_all()  # ours and the errors are the cell's from here on
        cell = cls(process, ours, errors)
        try:
            async with asyncio.timeout(ready_s):
                await cell._ready
        except (TimeoutError, Gone) as err:
            took_s = time.monotonic() - began_s
            why = cell._last_words() or f"the zygote was not ready after {took_s:.0f} s"
            raise (unready or no_guest)(why) from err
        finally:
            if not cell.layers:
                await cell.close()
        cell.took_s = time.monotonic() - began_s
        return cell

    @property
    def report(self) -> JailReport:
        """What the kernel took from this zygote and from its guests."""
        return JailReport.of({**self.layers, **self.sealed})

    async def fork(self) -> Forked:
        """A process that is closing its jail. Raises Gone where the zygote has died."""
        if not self.is_up:
            raise Gone
        self._orders += 1
        order = self._orders
        forked = self._forked[order] = self._loop.create_future()
        ending = self._endings[order] = self._loop.create_future()
        try:
            self._send({"id": order})
            async with asyncio.timeout(START_S):
                try:
                    handle, channel_fd = await forked
                except asyncio.CancelledError:
                    if forked.done() and not forked.cancelled() and forked.exception() is None:
                        for descriptor in forked.result():  # without its channel the guest ends
                            os.close(descriptor)
                    raise
        except TimeoutError as err:
            raise no_guest(f"the zygote did not fork within {START_S:g} s") from err
        finally:
            del self._forked[order]
        channel = socket.socket(fileno=channel_fd)
        channel.setblocking(False)
        return Forked(order, channel, handle, ending)

    def kill(self, order: int) -> None:
        """Make the zygote kill a process that we may not signal: root without CAP_KILL, uid dropped."""
        self._send({"kill": order})

    async def close(self) -> None:
        if self.is_up:
            self._control.shutdown(socket.SHUT_RDWR)
            try:
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.shield(self._down)
            except TimeoutError:
                self._process.kill()
                await self._down

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(orjson.dumps(message))
        except OSError as err:
            raise Gone from err

    def _readable(self) -> None:
        try:
            message, passed, _, _ = self._control.recvmsg(16384, socket.CMSG_SPACE(8))
        except BlockingIOError:
            return
        except OSError:
            message, passed = b"", []
        if not message:
            self._loop.remove_reader(self._control)
            return
        self._handle_message(
            orjson.loads(message), [fd for item in passed for fd in array.array("i", item[2])]
        )

    def _handle_message(self, message: dict[str, Any], fds: list[int]) -> None:
        if "cell" in message:
            self.layers = message["cell"]
            self.resident_bytes, self.brought = message["resident"], message
            _settle(self._ready, None)
        elif "unusable" in message:
            if not self._ready.done():
                self._ready.set_exception(unusable(message["unusable"], message["why"], message["nearest"]))
        elif "forked" in message:
            waiting = self._forked.get(message["forked"])
            if waiting is not None and not waiting.done() and len(fds) == 2:
                waiting.set_result(fds)
                return
            for fd in fds:  # the guest sees its channel close, and ends
                os.close(fd)
            if waiting is not None and not waiting.done():  # the kernel drops what we have no number for
                full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                waiting.set_exception(no_guest(out_of_descriptors(full)))
        elif "refused" in message:
            del self._endings[message["refused"]]
            waiting = self._forked.get(message["refused"])
            if waiting is not None and not waiting.done():
                waiting.set_exception(no_guest(message["why"]))
        else:
            ending = self._endings.pop(message["ended"])
            _settle(ending, Ending(message["exit"], message["resident"] - self.resident_bytes))

    def _ended(self) -> None:
        """The zygote's process has ended: reap it and let go of everything that waits for it."""
        self._readable()  # why it gave up, if it said so
        self.is_up = False
        self._loop.remove_reader(self._handle)
        self._loop.remove_reader(self._control)
        self._process.wait()
        os.close(self._handle)
        self._control.close()
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._forked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(Gone())
        for ending in self._endings.values():
            _settle(ending, None)
        with self._errors:
            self._errors.seek(0)
            self._errors_text = self._errors.read(1 << 16).decode("utf-8", "replace")
        _settle(self._down, None)

    def _last_words(self) -> str:
        """What the zygote's process said before it gave up; empty where it has not."""
        if self.is_up:
            return ""
        lines = self._errors_text.strip().splitlines() or ["it said nothing"]
        return f"the zygote ended with exit code {self._process.returncode}: {lines[-1][:300]}"


def unusable(package: str, why: str, nearest: str) -> LanguageError:
    verb = "Install" if "is not installed" in why else "Mend"
    remedy = f"Did you mean {nearest!r}?" if nearest else f"{verb} it, or remove it from `packages`."
    return LanguageError("E505", f"the package {package!r} {why}", package=package, remedy=remedy)


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
