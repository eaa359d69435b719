"""The hostile side of shell steps: the process that cells are forked from, and what watches over one step.

`shellbox` is the process that the host executes, as `toolbox.toolbox` is: it runs no program itself, and
forks. Of every step there are three processes:

- the watcher reads the order, makes the namespaces, keeps the clock and reads what the program says;
- the first process waits for the program, takes in what that leaves behind, and has seen to the jail: it is
  process 1 of a namespace, so that its end is the end of all of the step, or in a Landlock domain of which
  the program cannot signal it;
- the program is executed by a third one, which is sealed before.

What must stay true:
- No program is executed but behind the layers that the order names.
- When a step is answered, no process of it is left; a watcher that ends takes the step along.
- Nothing that is executed holds a descriptor of ours but its output.

Nobody imports this module but that process, and nothing here is trusted by the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

import orjson

from processor.sandbox import jail, shell_jail, shellwire
from processor.sandbox.channel import Channel
from processor.sandbox.nursery import Nursery, open_control, tend
from processor.sandbox.shell_jail import Room, Trees
from processor.sandbox.shellwire import OUTPUT_BYTES, ShellDone, ShellOrder
from processor.sandbox.syscalls import attempt, off

_BROKEN = 70
_PATH = "/usr/local/bin:/usr/bin:/bin"
_READ_BYTES = 1 << 16
_LOOK_S = 3600.0  # poll counts milliseconds in 32 bits


def shellbox(control_fd: int) -> NoReturn:
    """Fork a watcher for every order that arrives on the control socket; end when it closes."""
    control, woken, wake = open_control(control_fd)
    jail.prepare()
    baseline, resident = jail.memory_in_use()
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    watcher = Watcher()
    tend(control, woken, {"cell": {"watch": "on"}, "resident": resident}, Nursery(control, baseline, watcher))


class Watcher:
    """What watches over one step. The first process makes one, and forks."""

    def __init__(self) -> None:
        self._channel = Channel()
        self._layers: dict[str, str] = {}

    def live(self, channel_fd: int, parent: int, memory: jail.MemoryLimit, *, is_ahead: bool) -> NoReturn:
        """The whole life of a watcher, from the fork to its last exit."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if channel_fd != jail.CHANNEL_FD:
                os.dup2(channel_fd, jail.CHANNEL_FD)
            os.closerange(jail.CHANNEL_FD + 1, 1 << 16)
            sys.unraisablehook = lambda _: None
            order = shellwire.read_order(self._channel.receive())
            done = self._watch(order, parent)
            self._channel.send(shellwire.write_done(self._channel.nonce, done))
            os._exit(0)
        finally:
            os._exit(_BROKEN)

    def _watch(self, order: ShellOrder, parent: int) -> ShellDone:
        room = Room(
            order.root, order.writes, order.memory_mb, order.processes, order.descriptors, order.file_mb,
            order.tmp_mb, int(order.wall_s) + 2,
        )  # fmt: skip
        try:
            shell_jail.look_for(room)
            trees = self._confine(room)
        except shell_jail.Misplaced as err:
            return ShellDone("unstarted", 0, str(err), self._layers, b"", b"")
        jail.die_with_parent(parent)  # last: a change of user clears it
        pipes = StepPipes()
        tasks = shell_jail.tasks_beside(self._layers)
        first = os.fork()
        if first == 0:
            os.close(jail.CHANNEL_FD)
            FirstProcess(order, room, self._layers, pipes, tasks).live(trees)
        if trees is not None:
            trees.close()
        pipes.only_read()
        end = pipes.follow(time.monotonic() + order.wall_s)
        self._end_all(first)
        if end is None:
            os._exit(0)
        pipes.drain()
        if end == "exit" and len(pipes.output) > OUTPUT_BYTES:
            end = "flood"
        return self._told(end, pipes)

    def _confine(self, room: Room) -> Trees | None:
        """All that is done before the fork: another user, namespaces, and what the root will be made of.

        Raises Misplaced for a folder that the other user cannot see.
        """
        layers = self._layers
        attempt(layers, "oom_first", jail.be_first_out_of_memory)
        trees = self._roots_trees(room) if os.geteuid() == 0 else None
        if os.geteuid() == 0:
            attempt(layers, "uid_drop", jail.drop_user)
        else:
            layers["uid_drop"] = f"on(already uid {os.geteuid()})"
        attempt(layers, "no_new_privs", shell_jail.take_no_privileges)
        if not attempt(layers, "namespaces", jail.unshare):
            layers["own_root"] = "off(needs namespaces)"
            attempt(layers, "own_signals", shell_jail.keep_signals)
            shell_jail.look_for(room)
        elif trees is None:
            shell_jail.look_for(room)
            try:
                trees = shell_jail.open_trees(room)
            except OSError as err:
                layers["own_root"] = off(err)
        if layers["namespaces"].startswith("on"):
            jail.forbid_namespaces()  # not before: a copied tree is a namespace to the kernel
            return trees
        if trees is not None:
            trees.close()
        return None

    def _roots_trees(self, room: Room) -> Trees | None:
        """What root may copy, who can reach more than nobody, and say whose the files are to be."""
        with contextlib.suppress(OSError):
            owner = shell_jail.namespace_of_owner(room)
            try:
                return shell_jail.open_trees(room, owner)
            except OSError:  # not every file system can show its files as another's
                return shell_jail.open_trees(room)
            finally:
                os.close(owner)
        return None

    def _end_all(self, first: int) -> None:
        """Kill whatever is left of the step, and wait until it is gone."""
        if self._layers["namespaces"].startswith("on"):
            os.kill(first, signal.SIGKILL)  # process 1: all of its namespace goes with it
        elif self._layers["own_signals"].startswith("on"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all that we may signal is of the step
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def _told(self, end: shellwire.End, pipes: StepPipes) -> ShellDone:
        told = pipes.told()
        layers = {**self._layers, **told.get("layers", {})}
        output, errors = bytes(pipes.output[:OUTPUT_BYTES]), bytes(pipes.errors[-OUTPUT_BYTES:])
        why, code = "", told.get("exit", 0)
        if "unjailed" in told:
            end, why = "unjailed", told["unjailed"]
        elif "unstarted" in told:
            end, why = "unstarted", told["unstarted"]
        elif end == "exit" and not {"layers", "exit"} <= told.keys():
            end, why = "lost", "a process around its program was killed, or ended by a fault of ours"
        return ShellDone(end, code, why, layers, output, errors)


class StepPipes:
    """What a step says: its two outputs, and the report of the processes around it.

    A report is a line of JSON: the layers, why the program was not started, or its exit code.
    """

    def __init__(self) -> None:
        self.output, self.errors, self._report = bytearray(), bytearray(), bytearray()
        self._into: dict[int, bytearray] = {}
        self.writers: list[int] = []
        for place in (self.output, self.errors, self._report):
            reader, writer = os.pipe()
            self._into[reader] = place
            self.writers.append(writer)

    def only_read(self) -> None:
        """Leave the other ends to those that write."""
        for writer in self.writers:
            os.close(writer)

    def follow(self, deadline_s: float) -> shellwire.End | None:
        """Take in what is said until the first process has ended, there is too much, or it is that time.

        The first process holds the other end of the report for as long as it lives, and nobody else does.
        None is returned where the host has hung up.
        """
        poll = select.poll()
        for reader in (*self._into, jail.CHANNEL_FD):
            poll.register(reader, select.POLLIN)
        while True:
            left_s = min(max(deadline_s - time.monotonic(), 0.0), _LOOK_S)
            ready = [reader for reader, _ in poll.poll(int(left_s * 1000) + 1)]
            if jail.CHANNEL_FD in ready:
                return None
            if time.monotonic() >= deadline_s:
                return "time"
            for reader in ready:
                if not self._read(reader):
                    poll.unregister(reader)
                    if self._into[reader] is self._report:
                        return "exit"
            if len(self.output) > OUTPUT_BYTES:
                return "flood"

    def drain(self) -> None:
        """Take in what is left, when all that could write has been killed."""
        for reader in self._into:
            os.set_blocking(reader, False)
            with contextlib.suppress(BlockingIOError):
                while len(self.output) <= OUTPUT_BYTES and self._read(reader):
                    pass

    def _read(self, reader: int) -> bool:
        """Whether there was something to read, or may be later."""
        data = os.read(reader, _READ_BYTES)
        place = self._into[reader]
        place += data
        if place is self.errors and len(place) > 2 * OUTPUT_BYTES:
            del place[:-OUTPUT_BYTES]
        return bool(data)

    def told(self) -> dict[str, Any]:
        """All that was reported."""
        found: dict[str, Any] = {}
        for line in bytes(self._report).splitlines():
            found.update(orjson.loads(line))
        return found


class FirstProcess:
    """What waits for the program of a step, and executes it in a process of its own."""

    def __init__(
        self, order: ShellOrder, room: Room, layers: dict[str, str], pipes: StepPipes, tasks: int
    ) -> None:
        self._order = order
        self._room = room
        self._layers = layers
        self._output, self._errors, self._report = pipes.writers
        self._tasks = tasks

    def live(self, trees: Trees | None) -> NoReturn:
        """The whole life of the first process, from the fork to its exit; the program's is within it."""
        try:
            layers = self._layers
            if trees is not None:
                attempt(layers, "own_root", lambda: shell_jail.build_root(trees, self._room))
            shell_jail.drop_privileges(layers)
            if layers["namespaces"].startswith("on"):
                jail.die_with_parent(0)
            else:
                shell_jail.take_along(os.getppid())
            program = os.fork()
            if program == 0:
                self._become_program()
            os.close(self._output)
            os.close(self._errors)
            while True:
                pid, status = os.wait()
                if pid == program:
                    self._tell({"exit": os.waitstatus_to_exitcode(status)})
                    break
        finally:
            os._exit(0)  # all else of the step ends with us, or is killed by the watcher

    def _become_program(self) -> NoReturn:
        try:
            self._prepare()
            self._execute()
        except (OSError, MemoryError) as err:
            self._tell({"unstarted": _why(err, self._order)})
        finally:
            os._exit(_BROKEN)

    def _prepare(self) -> None:
        """Seal this process, and leave it nothing but its output and, until it executes, the report."""
        order, layers = self._order, self._layers
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDONLY)
        for place, number in ((nothing, 0), (self._output, 1), (self._errors, 2)):
            os.dup2(place, number)
        self._report = os.dup2(self._report, jail.CHANNEL_FD, inheritable=False)
        os.closerange(jail.CHANNEL_FD + 1, 1 << 16)
        os.umask(0o022)
        os.chdir(order.cwd)
        shell_jail.seal(self._room, layers, tmp=self._tmp, tasks=self._tasks)

    @property
    def _tmp(self) -> str:
        return "/tmp" if self._layers["own_root"].startswith("on") else self._order.tmp

    def _execute(self) -> NoReturn:
        order, layers = self._order, self._layers
        lost = [f"{name} is {layers[name]}" for name in order.layers if not layers[name].startswith("on")]
        if why := shell_jail.lacking(layers) or "; ".join(lost):
            self._tell({"layers": layers, "unjailed": why})
            os._exit(_BROKEN)
        self._tell({"layers": layers})  # where nobody reads it any more, nothing is executed
        if not order.argv:
            os._exit(0)
        tmp = self._tmp
        env = {"PATH": _PATH, "HOME": tmp, "TMPDIR": tmp, "LANG": "C.UTF-8", **order.env}
        shell_jail.reset_signals()
        os.execvpe(order.argv[0], order.argv, env)

    def _tell(self, what: dict[str, Any]) -> None:
        os.write(self._report, orjson.dumps(what) + b"\n")


def _why(err: OSError | MemoryError, order: ShellOrder) -> str:
    """Why a program could not be executed, in the words of who wrote the step."""
    name = order.argv[0][:200] if order.argv else order.cwd
    if isinstance(err, MemoryError):
        return f"{name}: {order.memory_mb} MB are too little to start a program with"
    words = {
        errno.ENOENT: "there is no such program, or no such interpreter as its first line names",
        errno.EACCES: "it may not be executed (chmod +x), or read",
        errno.ENOEXEC: "it is no program, and its first line names no interpreter (#!/usr/bin/env bash)",
    }
    return f"{name}: {words.get(err.errno or 0, err.strerror)}"
