"""The embedded nats-server: real processes, nothing replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.embedded import EmbeddedServer, find_binary, jetstream_answers
from processor.errors import BrokerError

WaitUntil = Callable[..., Any]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()


def test_it_is_ready_when_start_returns(nats_server: EmbeddedServer) -> None:
    """After `start`, JetStream answers on a port of the loopback address."""
    assert jetstream_answers(nats_server.port)
    assert nats_server.url == f"nats://127.0.0.1:{nats_server.port}"
    assert command_of(nats_server.pid) == str(find_binary())


def test_it_listens_on_the_loopback_address_only(nats_server: EmbeddedServer) -> None:
    """The server has no password, so no other machine may reach it."""
    port = f"{nats_server.port:04X}"
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    sockets = [line.split() for line in tables.splitlines()]
    listening = [fields[1] for fields in sockets if fields[1].endswith(f":{port}") and fields[3] == "0A"]
    assert listening == [f"0100007F:{port}"]


def test_two_servers_do_not_meet(nats_server: EmbeddedServer, nats_server_file: EmbeddedServer) -> None:
    """Each server has its own port and its own store."""
    assert nats_server.port != nats_server_file.port
    assert nats_server.store_dir != nats_server_file.store_dir


def test_stop_leaves_nothing_but_a_named_store(tmp_path: Path) -> None:
    """`stop` ends the process; a store that the caller named stays, a temporary one goes."""
    named = EmbeddedServer.start(tmp_path / "store")
    named.stop()
    assert not named.alive
    assert not running(named.pid)
    assert (tmp_path / "store" / "jetstream").is_dir()
    for memory in (False, True):
        temporary = EmbeddedServer.start(memory=memory)
        temporary.stop()
        assert not temporary.store_dir.exists()


def test_stop_twice_is_harmless(tmp_path: Path) -> None:
    """A second `stop` finds nothing to do."""
    server = EmbeddedServer.start(tmp_path)
    server.stop()
    server.stop()


def test_restart_keeps_the_port_and_the_store(nats_server_file: EmbeddedServer) -> None:
    """After `kill` and `restart`, a client finds the same server: same URL, same streams."""
    url, pid = nats_server_file.url, nats_server_file.pid
    request(nats_server_file.port, "$JS.API.STREAM.CREATE.KEPT", '{"name":"KEPT","subjects":["kept"]}')
    nats_server_file.kill()
    assert not nats_server_file.alive
    nats_server_file.restart()
    assert nats_server_file.url == url
    assert nats_server_file.pid != pid
    assert '"KEPT"' in request(nats_server_file.port, "$JS.API.STREAM.NAMES", "")


def request(port: int, subject: str, body: str) -> str:
    """One request in the raw protocol, and the reply's text."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        stream = connection.makefile("rw", newline="")
        stream.write(
            f'CONNECT {{"verbose":false}}\r\nSUB reply 1\r\nPUB {subject} reply {len(body)}\r\n{body}\r\n'
        )
        stream.flush()
        while not stream.readline().startswith("MSG "):
            pass
        return stream.readline()


def test_a_store_is_used_by_one_server_at_a_time(tmp_path: Path) -> None:
    """A second server on the same store is refused with a sentence that names the process using it."""
    with EmbeddedServer.start(tmp_path) as first:
        with pytest.raises(BrokerError) as refusal:
            EmbeddedServer.start(tmp_path)
        assert str(refusal.value) == (
            f"{tmp_path} E411 the store directory is in use by process {os.getpid()}."
            " Stop that one first, or give this run a directory of its own."
        )
        assert first.alive
    EmbeddedServer.start(tmp_path).stop()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A path that is no directory is refused before anything is started."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=r"file E411 the store directory cannot be used: .*\."):
        EmbeddedServer.start(tmp_path / "file")


def test_a_server_that_does_not_come_up_gives_its_own_reason(tmp_path: Path) -> None:
    """When the server ends at once, its last words are part of the error, and nothing is left behind."""
    (tmp_path / "jetstream").write_text("not a directory")
    with pytest.raises(BrokerError, match=r"E411 the embedded nats-server did not come up: .*directory"):
        EmbeddedServer.start(tmp_path)


HOST = """
import sys, threading, time
from pathlib import Path
from processor.embedded import EmbeddedServer
started = []
starter = threading.Thread(target=lambda: started.append(EmbeddedServer.start(Path(sys.argv[1]))))
starter.start()
starter.join()
print(started[0].pid, flush=True)
sys.stdin.read()
print(started[0].alive, flush=True)
sys.stdin.close()
"""


def host_process(store_dir: Path) -> subprocess.Popen[str]:
    """A process that starts a server from a thread that ends, then waits for the end of its input."""
    return subprocess.Popen(
        [sys.executable, "-c", HOST, str(store_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_it_dies_with_its_parent(tmp_path: Path, wait_until: WaitUntil) -> None:
    """When the process that started it is killed, the server goes too, and its store is free again."""
    with host_process(tmp_path) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        host.send_signal(signal.SIGKILL)
        host.wait()
        EmbeddedServer.start(tmp_path).stop()
        wait_until(lambda: not running(pid), "the server died with its parent")


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel ties a parent's death to a thread; the server is tied to the process all the same."""
    with host_process(tmp_path) as host:
        assert host.stdout is not None
        assert running(int(host.stdout.readline()))
        alive, _ = host.communicate("")
        assert alive == "True\n"


def test_it_can_be_used_from_many_threads(tmp_path: Path) -> None:
    """Servers started and stopped in parallel do not disturb each other."""
    urls: list[str] = []

    def use(n: int) -> None:
        with EmbeddedServer.start(tmp_path / str(n)) as server:
            urls.append(server.url)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(urls)) == 4
