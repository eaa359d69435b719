"""A real network between a processor and its server is cut: packets are dropped, and nobody is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.embedded import find_binary
from tests.conftest import waited
from tests.faults import host, ledger
from tests.faults.test_server_trouble import make_input, running
from tests.running import connected, listens

OURS, THEIRS = "10.231.77.1", "10.231.77.2"
# Waits until its network is there, and then is the program that it was given.
HELD = "import os, sys; sys.stdin.readline(); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def may_make_networks() -> bool:
    if not all(shutil.which(program) for program in ("ip", "unshare", "nsenter")):
        return False
    name = f"pt{os.getpid()}"
    try:
        command("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        command("ip", "link", "del", name)
        command("unshare", "--net", "true")
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[int]:
    """The port of a server that listens on every address."""
    if not may_make_networks():
        pytest.skip("needs ip, unshare and nsenter, and the right to use them")
    store = tmp_path / "nats"
    store.mkdir()
    (store / "conf").write_text(f'listen: "0.0.0.0:{free_port}"\njetstream {{ store_dir: "{store}" }}\n')
    process = subprocess.Popen([str(find_binary()), "-c", str(store / "conf"), "-l", str(store / "log")])
    try:
        waited(lambda: listens(free_port), "the server listens")
        yield free_port
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def away(config: Path, port: int) -> AsyncIterator[str]:
    """A processor in a network namespace of its own; yields our end of the virtual cable to it.

    The namespace ends with the process, and the cable with the namespace.
    """
    arguments = [host.__file__, str(config), f"nats://{OURS}:{port}", "none", "1", "run"]
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        ["unshare", "--net", sys.executable, "-c", HELD, *arguments],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    own, pid, ours = os.readlink("/proc/self/ns/net"), str(process.pid), f"po{process.pid}"
    try:
        await waited(lambda: os.readlink(f"/proc/{pid}/ns/net") != own, "it has a network of its own")
        inside = ("nsenter", "--target", pid, "--net")
        command("ip", "link", "add", ours, "type", "veth", "peer", "name", "theirs", "netns", pid)
        command("ip", "address", "add", f"{OURS}/30", "dev", ours)
        command("ip", "link", "set", ours, "up")
        command(*inside, "ip", "address", "add", f"{THEIRS}/30", "dev", "theirs")
        command(*inside, "ip", "link", "set", "theirs", "up")
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        yield ours
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


async def test_a_processor_behind_a_network_that_is_cut_is_replaced_and_comes_back(
    server: int, tmp_path: Path, wait_until: Any
) -> None:
    """Messages flow before, during and after the cut; two processors work, one of them beyond it."""
    config = ledger.write_config(tmp_path, "app")
    url = f"nats://127.0.0.1:{server}"
    async with connected(url) as broker:
        await make_input(broker)
        async with away(config, server) as cable, running(config, url):
            await wait_until(partial(ledger.has_owners, broker, "app", 2), "both have a part")
            sent = await ledger.feed(broker, 400, poison=2)
            await wait_until(lambda: ledger.settled(broker, "app", 50), "they work")
            command("ip", "link", "set", cable, "down")
            sent += await ledger.feed(broker, 400, poison=2, first=len(sent))
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "one has done all", 30)
            assert await ledger.has_owners(broker, "app", 1)
            command("ip", "link", "set", cable, "up")
            await wait_until(partial(ledger.has_owners, broker, "app", 2), "both have a part again", 40)
            sent += await ledger.feed(broker, 200, first=len(sent))
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "all are settled", 30)
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)
