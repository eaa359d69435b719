"""What every test can use, and what every test is held to.

Fixtures: `nats_server` and `nats_server_file` are real servers, one per test; `wait_until` is the only way
to wait; a test written as `async def` runs in a fresh event loop, and `run_async` does the same for a
coroutine inside a plain test. After every test nothing may be left: no process, thread, open file or
asyncio task that was not there before. `test_leaks.py` shows that this check can fail.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import inspect
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from processor.embedded import EmbeddedServer

# How long an example takes is the machine's affair, and no rule of ours.
settings.register_profile("processor", deadline=None)
settings.load_profile("processor")

POLL_S = 0.005
# What is closed needs a moment to be gone: a killed process, a cancelled task.
LEAK_GRACE_S = 3.0

# Orphans of a killed process become our children, so that the leak check sees them.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

# The tests start hundreds of programs. Where the environment forbids Python to keep what it compiled, each
# of them would compile the whole package again; so this run has a folder for it.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    _compiled = tempfile.TemporaryDirectory(prefix="processor-compiled-", ignore_cleanup_errors=True)
    atexit.register(_compiled.cleanup)
    os.environ["PYTHONPYCACHEPREFIX"] = _compiled.name

# A shell starts what runs in its background with Ctrl-C ignored, and so would be every program that a test
# stops with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def nats_server() -> Iterator[EmbeddedServer]:
    """A server whose store is in memory where the machine has a memory file system."""
    with EmbeddedServer.start(memory=True) as server:
        yield server


@pytest.fixture
def nats_server_file(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server whose store is on disk, for tests about what survives."""
    with EmbeddedServer.start(tmp_path / "nats") as server:
        yield server


def waited(predicate: Callable[[], Any], sentence: str, deadline_s: float = 10) -> Any:
    """Block until `predicate()` is true and return its value; in an event loop: `await` the result.

    The predicate may be a coroutine function inside an event loop. `sentence` says what was waited for, and
    is the failure when `deadline_s` has passed.
    """
    deadline = time.monotonic() + deadline_s

    async def poll() -> Any:
        while True:
            found = predicate()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            if time.monotonic() > deadline:
                pytest.fail(f"not within {deadline_s:g} s: {sentence}")
            await asyncio.sleep(POLL_S)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        return poll()
    while not (found := predicate()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {deadline_s:g} s: {sentence}")
        time.sleep(POLL_S)
    return found


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    return waited


async def without_strays(main: Awaitable[Any]) -> Any:
    """The value of `main`; fails when it leaves tasks behind."""
    result = await main
    deadline = time.monotonic() + LEAK_GRACE_S
    while strays := asyncio.all_tasks() - {asyncio.current_task()}:
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {', '.join(f'asyncio task {task!r}' for task in strays)}")
        await asyncio.wait(strays, timeout=POLL_S)
    return result


@pytest.fixture(scope="session")
def run_async() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    return lambda main: asyncio.run(without_strays(main))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(without_strays(pyfuncitem.obj(**arguments)))
    return True


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a process holds that can be forgotten, each with a description."""

    processes: dict[str, str]
    files: dict[str, str]
    threads: dict[str, str]

    @classmethod
    def take(cls) -> Inventory:
        return cls(
            descendants(),
            {fd: f"open file {target}" for fd, target in open_files()},
            {f"{t.ident} {t.name}": f"thread {t.name}" for t in threading.enumerate()},
        )

    def growth_since(self, before: Inventory) -> list[str]:
        return [
            f"{what} ({key})"
            for held, held_before in (
                (self.processes, before.processes),
                (self.files, before.files),
                (self.threads, before.threads),
            )
            for key, what in held.items()
            if held_before.get(key) != what
        ]


def processes() -> dict[int, list[tuple[int, str, str]]]:
    """The children of every process: their ids, names and states."""
    parents: dict[int, list[tuple[int, str, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            except OSError:  # it ended just now
                continue
            state, parent = rest.split()[:2]
            parents.setdefault(int(parent), []).append((int(entry.name), name, state))
    return parents


def guests_of(pid: int) -> list[int]:
    """The guests of a host: its zygote forks them, in a PID namespace by the first process there."""
    children = processes()
    zygotes = [zygote for zygote, _, _ in children.get(pid, [])]
    forked = [child for zygote in zygotes for child, _, _ in children.get(zygote, [])]
    below = [guest for first in forked for guest, _, _ in children.get(first, [])]
    return [process for process in below + forked if not is_first_in_namespace(process)]


def is_first_in_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended just now
        return True
    [numbers] = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
    return len(numbers) > 1 and numbers[-1] == "1"


@asynccontextmanager
async def frozen(pid: int) -> AsyncIterator[None]:
    """A process that does nothing until the block is left."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # The signal stops nobody before one thread of the process has run and taken it.
        await waited(lambda: is_stopped(pid), f"process {pid} has stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def descendants() -> dict[str, str]:
    """Every living process below ours; a dead child that nobody waits for is reaped on the way."""
    parents = processes()
    found: dict[str, str] = {}
    below = [os.getpid()]
    while below:
        parent_pid = below.pop()
        for pid, name, state in parents.get(parent_pid, []):
            if state == "Z":
                if parent_pid == os.getpid():
                    reap(pid)
            else:
                found[str(pid)] = f"process {name}"
                below.append(pid)
    return found


def reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # its owner was faster
        pass


def open_files() -> Iterator[tuple[str, str]]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield fd, os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            pass


@pytest.fixture(autouse=True)
def _own_levels() -> Iterator[None]:
    """What a test lets Processor log is its own affair."""
    levels = {name: logging.getLogger(name).level for name in ("", "processor")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True)
def leak_check() -> Iterator[None]:
    """Fail a test that leaves something behind, and end left processes so that the next test is not hurt."""
    before = Inventory.take()
    yield
    growth: list[str] = []

    def nothing_is_left() -> bool:
        growth[:] = Inventory.take().growth_since(before)
        return not growth

    try:
        waited(nothing_is_left, "nothing is left", LEAK_GRACE_S)
    except pytest.fail.Exception:
        for pid in descendants().keys() - before.processes.keys():
            os.kill(int(pid), signal.SIGKILL)
        pytest.fail(f"left behind: {', '.join(growth)}")


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
