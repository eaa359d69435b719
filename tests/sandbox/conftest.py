"""What tests of the wall share: a guest with a program in it, and a sealed process that runs plain Python.

`spawned` gives the real thing. `jailed` leaves the language layer out on purpose: what a guest could do if
the dialect were lost is for the kernel to refuse, and is tested with nothing else in the way.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from processor.model import Group, Limits, Program
from processor.sandbox.calls import Perform
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.offer import OPEN_HEAP, HeapOffer

Spawned = Callable[..., AbstractAsyncContextManager[Guest]]


@pytest.fixture(scope="session")
def spawned() -> Spawned:
    """`async with spawned(source, memory_mb=64) as guest`: a loaded guest of a zygote of its own."""

    @asynccontextmanager
    async def spawn(
        source: str,
        perform: Perform | None = None,
        secrets: Mapping[str, str] | None = None,
        emits: Sequence[str] = (),
        language: str = "restricted",
        heap: HeapOffer = OPEN_HEAP,
        **limits: Any,
    ) -> AsyncIterator[Guest]:
        zygote = await Zygote.start()
        try:
            program = Program(dedent(source), "runnable.py", language)
            yield await zygote.spawn(
                program, Limits(**limits), perform=perform, secrets=secrets, emits=emits, heap=heap
            )
        finally:
            await zygote.close()

    return spawn


@pytest.fixture(scope="session")
def one() -> Callable[..., Group]:
    """`one({"a": 1})`: a message with that document for a fresh context; `key` and `context` as in Group."""

    def group(*documents: Any, key: str = "", context: dict[str, bytes] | None = {}) -> Group:  # noqa: B006
        return Group(key, [json.dumps(document).encode() for document in documents], context)

    return group


@dataclass(frozen=True)
class Jailed:
    """What became of plain Python in a sealed process."""

    exit: int  # negative: the signal that killed it
    layers: dict[str, str]
    result: Any
    error: str


# Stands in for the zygote: the same cell, the same seal, but what runs then is any Python at all.
_BOOT = """
import os, sys
channel, profile, source = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path += sys.argv[4:]
import ctypes, json, mmap, resource, signal, socket, subprocess, threading, time
from processor.sandbox import jail
code = compile(source, "attack", "exec")
baseline, _ = jail.memory_in_use()
exec(profile)
layers = jail.enter_cell()
parent = os.getpid()
pid = os.fork()
if pid:
    os.close(channel)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status))
    sys.stdout.flush()
    os._exit(0)
os.dup2(channel, 3)
layers.update(jail.seal(jail.MemoryLimit(baseline, 32), parent))
def say(**what):
    os.write(3, json.dumps(what).encode() + b"\\n")
say(layers=layers)
space = {"result": None}
try:
    exec(code, {**globals(), **space}, space)
except BaseException as err:
    say(error=f"{type(err).__name__}: {err}")
else:
    say(result=space["result"])
os._exit(0)
"""


@pytest.fixture(scope="session")
def jailed() -> Callable[..., Jailed]:
    """`jailed("result = os.getpid()")`; `profile` runs before the jail closes, to take layers away."""

    def run(source: str, profile: str = "") -> Jailed:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), dedent(profile),
                    dedent(source), *filter(os.path.exists, sys.path), str(Path(__file__).parents[2]),
                ],
                env={}, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[theirs.fileno()],
            )  # fmt: skip
            theirs.close()
            said: dict[str, Any] = {}
            with ours.makefile("rb") as lines:
                for line in lines:
                    said.update(json.loads(line))
            out, err = process.communicate(timeout=30)
        assert said.get("layers"), err.decode()
        return Jailed(int(out), said["layers"], said.get("result"), said.get("error", ""))

    return run


@pytest.fixture(scope="session")
def within() -> Callable[..., Any]:
    """`await within(5, guest.run(...))`: a deadline for what must not hang."""

    def bounded(deadline_s: float, awaitable: Any) -> Any:
        return asyncio.wait_for(awaitable, deadline_s)

    return bounded
