"""The process that others are forked from: it obeys its host's orders, and keeps one fork ahead of them.

`guest` makes a nursery of guests with Runnables, `toolbox` one of workers with tools; what one of these is
before it has a life of its own, a `Newborn`, is made once, and forked. The host's side is `cells`. Nothing
here is trusted by it.
"""

from __future__ import annotations

import array
import ctypes
import gc
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import orjson

from processor.sandbox import jail


class Newborn(Protocol):
    """What every process that is forked is before it has a life of its own."""

    def live(self, channel_fd: int, parent: int, memory: jail.MemoryLimit, *, is_ahead: bool) -> NoReturn:
        """The whole life of one, from the fork to its last exit."""


def open_control(control_fd: int) -> tuple[socket.socket, int, int]:
    """The control socket, and both ends of a pipe that is written to when a child has ended."""
    control = socket.socket(fileno=control_fd)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return control, woken, wake


def keep_heap() -> None:
    """Make the C library keep some freed memory.

    By default it returns the top of the heap to the kernel after every run and faults it in again in the
    next, which costs more than all the JSON of the run (measured: 1.5 µs per document).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other libraries do not need it
    if mallopt is not None:
        for parameter, value in ((_M_TRIM_THRESHOLD, 8 << 20), (_M_MMAP_THRESHOLD, 1 << 20)):
            mallopt(ctypes.c_int(parameter), ctypes.c_int(value))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tend(control: socket.socket, woken: int, ready: Mapping[str, Any], nursery: Nursery) -> NoReturn:
    """Say that the process is ready, and fork for every order until the control socket closes."""
    gc.collect()
    gc.freeze()  # what is shared with the guests stays shared: the collector must not write to it
    gc.set_threshold(5_000, 20, 50)  # instances and contexts live long: looking at them often finds nothing
    control.send(orjson.dumps(ready))
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        due = {fd for fd, _ in poll.poll()}
        if woken in due:
            os.read(woken, 4096)
        nursery.report_ended()  # before an order in any case, or it may get a guest that has died
        if control.fileno() in due:
            nursery.obey()
        if not poll.poll(0):
            nursery.look_ahead()


class Nursery:
    """Hands out guests to order. One is forked and sealed ahead of the order, so that nobody waits for it."""

    def __init__(self, control: socket.socket, baseline: int, newborn: Newborn) -> None:
        """`newborn` is forked."""
        self._control = control
        self._baseline = baseline
        self._newborn = newborn
        self._orders: dict[int, int] = {}  # of the guests that were handed out and live, by their pid
        self._ahead: tuple[int, socket.socket] | None = None
        self._is_due = False

    def obey(self) -> None:
        """Do what the host asks: a guest, or the end of one."""
        try:
            message = self._control.recv(4096)
        except OSError:
            os._exit(0)
        if not message:
            os._exit(0)
        order = orjson.loads(message)
        if "kill" in order:
            for pid in [pid for pid, known in self._orders.items() if known == order["kill"]]:
                os.kill(pid, signal.SIGKILL)
            return
        try:
            pid, channel = self._ahead or self._fork(is_ahead=False)
        except OSError as err:
            tell(self._control, {"refused": order["id"], "why": f"fork: {err.strerror}"})
            return
        self._ahead, self._is_due = None, True
        self._orders[pid] = order["id"]
        handle = os.pidfd_open(pid)
        tell(self._control, {"forked": order["id"]}, [handle, channel.fileno()])
        os.close(handle)
        channel.close()

    def look_ahead(self) -> None:
        """Have a guest ready for the next order, once for every order: one that dies is not replaced."""
        if self._is_due:
            self._is_due = False
            with suppress(OSError):  # the order will be told why
                self._ahead = self._fork(is_ahead=True)

    def report_ended(self) -> None:
        while self._orders or self._ahead:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):  # it has made us its tracer, as only a guest without seccomp can
                os.kill(pid, signal.SIGKILL)
            elif self._ahead is not None and pid == self._ahead[0]:
                self._ahead[1].close()
                self._ahead = None
            else:
                ended, resident = self._orders.pop(pid), usage.ru_maxrss << 10
                report = {"ended": ended, "exit": os.waitstatus_to_exitcode(status), "resident": resident}
                tell(self._control, report)

    def _fork(self, *, is_ahead: bool) -> tuple[int, socket.socket]:
        """A new guest, and our end of its channel. Raises OSError."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                memory = jail.MemoryLimit(self._baseline)
                self._newborn.live(theirs.fileno(), parent, memory, is_ahead=is_ahead)
        return pid, ours


def tell(control: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        control.sendmsg([orjson.dumps(message)], passed)
    except OSError:  # the host is gone, and every guest goes with us
        os._exit(0)
