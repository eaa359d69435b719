"""Processes to measure: their processor time and memory, and the servers that cases run on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processor.embedded import EmbeddedServer, find_binary

AGAIN = "Run it again, and report it if it happens again."  # the remedy of what should not have ended
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers that are up; `url` lists their addresses with commas."""

    url: str
    pids: tuple[int, ...]
    running: tuple[subprocess.Popen[bytes], ...] = ()  # of a cluster


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB; 0 for one that is gone."""
    return _status_mb(pid, "VmRSS")


def own_mb(pid: int) -> float:
    """Memory that a process shares with nobody, in MB; what is resident where that may not be read."""
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        return sum(int(row[1]) for row in rows if row[0] in ("Private_Clean:", "Private_Dirty:")) / 1024
    except OSError:
        return rss_mb(pid)


def descendants(pid: int) -> list[int]:
    """The processes below a process, without itself."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in map(int, listed) for each in (child, *descendants(child))]


def _status_mb(pid: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextlib.contextmanager
def one_server(folder: Path) -> Iterator[Servers]:
    """A server with a file store in `folder`, as `processor dev` runs it."""
    with EmbeddedServer.start(folder) as server:
        yield Servers(server.url, (server.pid,))


@contextlib.contextmanager
def three_servers(folder: Path) -> Iterator[Servers]:
    """A cluster of three with file stores in `folder`; its first election is the caller's to wait for."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(6)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[3:])
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(3):
            conf = folder / f"n{number}.conf"
            conf.write_text(
                f'server_name: n{number}\nlisten: "127.0.0.1:{ports[number]}"\n'
                f'jetstream {{ store_dir: "{folder}/n{number}" }}\n'
                f'cluster {{ name: bench, listen: "127.0.0.1:{ports[3 + number]}", routes: [{routes}] }}\n'
            )
            command = [str(find_binary()), "-c", str(conf), "-l", str(folder / f"n{number}.log")]
            running.append(subprocess.Popen(command))
        urls = [f"nats://127.0.0.1:{port}" for port in ports[:3]]
        yield Servers(",".join(urls), tuple(server.pid for server in running), tuple(running))
    finally:
        for server in running:
            server.kill()
            server.wait()


def now_s() -> float:
    """The clock that servers stamp messages with, in seconds since 1970."""
    return time.time()
